"""Ingest: reads the source and fixes the partition of a run."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stillhouse.pipeline import flow
from stillhouse.pipeline.errors import StageError, StorageError
from stillhouse.pipeline.folder import keys, open_folder, partition, purged
from stillhouse.pipeline.folder.shard import ShardId
from stillhouse.pipeline.run.commit import commit
from stillhouse.pipeline.run.result import ShardResult
from stillhouse.schemas.config import Config, config_hash


def ingest(
    config: Config, num_prompt_tokens: Callable[[list[str]], Sequence[int | None]] | None = None
) -> Iterator[ShardResult]:
    """Reads the source from its start and commits its shards one after the other; shards that exist are checked against
    what the source says now. Ends by fixing the partition. `num_prompt_tokens` replaces the teacher's tokenizer.

    Raises `StageError` when a shard that exists differs: the source changed under a run.
    """
    from stillhouse.stages.ingest import Ingest
    from stillhouse.stages.sources import read_rows
    from stillhouse.stages.sources.rules import more_columns

    read: Any = (
        flow.stage(config, "ingest").build(config) if num_prompt_tokens is None else Ingest(config, num_prompt_tokens)
    )
    folder, digest = open_folder(config.run_dir), config_hash(config)
    number, num_rows = 0, 0
    started = time.monotonic()
    register = purged.read(folder)
    for marked in read(read_rows(config.source, more_columns=more_columns(config))):
        marked = register.mark(marked)
        name = keys.shard_name(number)
        seconds = read.clock.read()
        result = commit(
            folder,
            ShardId("ingest", name, digest),
            keys.stage_shard("ingest", name, 0),
            marked,
            marked.num_rows,
            time.monotonic() - started,
            reproducible=True,
        )
        yield dataclasses.replace(result, filter_seconds=seconds)
        number, num_rows, started = number + 1, num_rows + marked.num_rows, time.monotonic()
    if not num_rows:
        raise StageError("ingest: the source has no rows; check source.path and source.limit")
    partition.write(folder, number, num_rows)


def ingest_task(config: Config) -> Iterator[ShardResult]:
    """`ingest` for a pool: a failing storage is a result."""
    try:
        yield from ingest(config)
    except StorageError as error:
        yield ShardResult("ingest", "", 0.0, "fatal", str(error))
