"""How a run goes on: which shards are missing, who makes them, how one comes to exist.

`driver` goes from stage to stage; a pool (`pool` on this machine, `ray_pool` on a cluster) hands names of shards to
workers; a `worker` reads, transforms, checks and commits one. `sharing` says in which
order and in which pieces. `attempts` and `parts` are for what fails, `parts` for what is shared too.
"""
