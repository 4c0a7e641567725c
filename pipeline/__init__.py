"""How a run happens: the command, the order of stages, the runner, shards on disk, status, manifest."""
