"""Rows through ingest, with words as tokens."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stillhouse.schemas import tables
from stillhouse.schemas.config import Config
from stillhouse.stages.ingest import Ingest
from stillhouse.stages.sources import Row


def configured(path: str | Path = "a.jsonl", source: dict[str, Any] | None = None, **ingest_keys: Any) -> Config:
    return Config.model_validate(
        {
            "run_dir": "run",
            "source": {"path": str(path), **(source or {})},
            "ingest": ingest_keys,
            "teacher": {"model": "./teacher", "max_model_len": 1000},
            "sampling": {"max_tokens": 900},
        }
    )


def num_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def ingested(rows: Iterable[Any], config: Config | None = None) -> list[dict[str, Any]]:
    """All records that ingest makes of rows (or of row values)."""
    stream = (row if isinstance(row, Row) else Row(row) for row in rows)
    config = config or configured()
    shards = list(Ingest(config, num_words)(stream))
    for shard in shards:
        assert shard.schema == tables.marked(tables.prompts(config.personal_kinds))
        shard.validate(full=True)
    return [record for shard in shards for record in shard.to_pylist()]
