"""A run on a Ray cluster that this machine reaches over HTTP alone: looked at, submitted, followed, stopped.

`client` talks to the cluster's job server, `package` says what travels, `submission` what is submitted and under which
id. `probe` runs there and says what it finds, on each node `node`; `preflight` judges that here. `commands` are the
commands.
"""

RAYS_COPY = "/runtime_resources/working_dir_files/"
"""Where Ray 2.60 unpacks a job's working directory (ray/_private/runtime_env/working_dir.py)."""
