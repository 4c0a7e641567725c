"""What things look like: configuration, tables, targets, manifest. Imports neither ray nor torch nor vllm."""
