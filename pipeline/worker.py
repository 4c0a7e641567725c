# ruff: noqa
"""Until pipeline/dataset has moved: old names."""

from stillhouse.pipeline.folder.keys import stage_shard
from stillhouse.pipeline.folder.shard import num_target_tokens  # noqa: F401


def published_key(name: str, num_shards: int) -> str:
    return stage_shard("publish", name, num_shards)
