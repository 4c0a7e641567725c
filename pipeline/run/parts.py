"""A shard of answers in parts: where workers share it, and when one of its rows ends the engine each time, because the
others must still be answered."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import numpy as np
import pyarrow as pa

from stillhouse.pipeline.errors import DamagedError, RedoError, StorageError, safe_message
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.shard import Shard, ShardId, ShardInfo
from stillhouse.pipeline.folder.store import Folder
from stillhouse.pipeline.run.attempts import Attempts, Gate
from stillhouse.pipeline.run.sharing import by_shard, missing
from stillhouse.schemas.config import Config, config_hash

ROW_ATTEMPTS = 2
"""Attempts at a row alone, before it is given up."""
MAX_FAILED_PARTS = 64
"""Failures of a shard's parts after which the teacher is to blame and not a row. One bad row among 1,000 costs 11 (ten
halvings, then itself twice); so five bad rows are found, and a dead teacher is started 64 times at most."""
MAX_FAILED_FRACTION = 0.1
"""Share of a shard's prompts (but one at least) that may be given up as rows; with more, the shard is set aside."""

logger = logging.getLogger("stillhouse")


class TooManyFailuresError(Exception):
    """So many parts of a shard fail that its rows are not to blame."""


class Parts:
    """The parts of one stage's shards in a run folder. They stay when a run is killed; marks of attempts do not."""

    def __init__(self, config: Config, folder: Folder, stage: str, attempts: Attempts, gate: Gate) -> None:
        self._folder, self._stage, self._samples = folder, stage, config.num_samples(stage)
        self._key = keys.parts(stage)
        self._hash = config_hash(config)
        self._attempts, self._gate = attempts, gate

    def of(self, shard: str) -> dict[tuple[int, int], str]:
        """Keys of what is done of a shard, by the range of its source's rows."""
        names = self._folder.list(self._key)
        return {extent: f"{self._key}/{name}" for name in names for extent in by_shard([name]).get(shard, ())}

    async def make(
        self,
        shard: str,
        source: Shard,
        transform: Callable[[pa.Table], Awaitable[pa.Table]],
        after_failure: Callable[[], None],
        extent: tuple[int, int] | None = None,
    ) -> None:
        """Halves the rows that fail until the guilty ones are alone; each of these gets drop_reason `teacher_failed`,
        once it has failed `ROW_ATTEMPTS` times with nothing beside it. `extent`: only these rows of the source, where
        workers share the shard.

        An attempt at a part is an empty file like one at a shard, because most of them end with this process. Raises
        `TooManyFailuresError` after `MAX_FAILED_PARTS` failures, or for more than `MAX_FAILED_FRACTION` of the rows:
        then it is not some rows, but the teacher.
        """
        self._drop_strange(shard, source)
        parts = self.of(shard)
        failed = self._attempts.of_parts(shard)
        num_rows = source.table.num_rows
        whole = extent or (0, num_rows)
        num_given_up = sum(key.endswith(".failed") for key in parts.values())
        # The same halves in every process, so that what one has learned serves the next.
        todo = [whole]
        while todo:
            low, high = todo.pop()
            stem = f"{self._key}/{shard.removesuffix('.parquet')}.{low}-{high}"
            if (low, high) in parts:
                continue
            limit = 1 if high - low > 1 else ROW_ATTEMPTS
            attempt = sum(f"{low}-{high}.{n}" in failed for n in range(limit))
            is_begun = any(low <= begin and end <= high for begin, end in parts)  # by a run that was killed since
            if high - low > 1 and ((low, high) == whole or attempt == limit or is_begun):
                middle = (low + high) // 2
                todo += [(middle, high), (low, middle)]
                continue
            if attempt == limit:
                num_given_up += 1
                if num_given_up > max(1, MAX_FAILED_FRACTION * num_rows):
                    self._forget_failures(shard, failed)
                    raise TooManyFailuresError(f"{num_given_up} of its {num_rows} rows, each alone")
                self._folder.put_if_absent(f"{stem}.failed", b"")
                logger.warning("%s %s: row %d of its source fails alone", self._stage, shard, low)
                continue
            if len(failed) >= MAX_FAILED_PARTS:
                self._forget_failures(shard, failed)
                raise TooManyFailuresError(f"{len(failed)} of parts of it")
            mark = f"{low}-{high}.{attempt}"
            async with self._gate(alone=True):
                self._attempts.begin(shard, mark)
                try:
                    result = await transform(source.table.slice(low, high - low))
                    await asyncio.to_thread(self._put, f"{stem}.parquet", shard, source, result)
                except StorageError:
                    self._attempts.cancel(shard, mark)
                    raise
                except Exception as error:
                    logger.warning(
                        "%s %s rows %d to %d: failed: %s", self._stage, shard, low, high, safe_message(error)
                    )
                    failed.add(mark)
                    todo.append((low, high))
                    after_failure()
                else:
                    self._attempts.end(shard, mark)

    def missing(self, shard: str, source: Shard, extent: tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """Which rows of the source (of `extent` alone) no part holds. Without `extent` by the names of parts, because
        who looks for the last piece looks often; `joined` looks into them."""
        if extent is not None:
            self._drop_strange(shard, source, extent)
        return missing(self.of(shard), *(extent or (0, source.table.num_rows)))

    def clear(self, shard: str) -> None:
        """Deletes the parts of a shard that exists now, and the marks of what failed."""
        for key in self.of(shard).values():
            self._folder.delete(key)
        for mark in [*self._attempts.of_parts(shard), *(str(n) for n in range(self._attempts.limit))]:
            self._attempts.end(shard, mark)

    def _forget_failures(self, shard: str, failed: set[str]) -> None:
        """What a teacher that fails on everything said of single rows must not count when the shard is tried again."""
        for key in self.of(shard).values():
            if key.endswith(".failed"):
                self._folder.delete(key)
        for mark in failed:
            self._attempts.end(shard, mark)

    def _drop_strange(self, shard: str, source: Shard, extent: tuple[int, int] | None = None) -> None:
        """Deletes parts (with rows of `extent`) that were made from other bytes than the source has now."""
        begin, end = extent or (0, source.table.num_rows)
        for (low, high), key in self.of(shard).items():
            if low < end and begin < high and key.endswith(".parquet"):
                with contextlib.suppress(DamagedError, FileNotFoundError):
                    if shards.read_footer(self._folder, key)[0].source_sha256 == source.sha256:
                        continue
                self._folder.delete(key)

    def put(self, shard: str, extent: tuple[int, int], source: Shard, result: pa.Table) -> None:
        """Keeps what was made of some rows of the source."""
        low, high = extent
        self._put(f"{self._key}/{shard.removesuffix('.parquet')}.{low}-{high}.parquet", shard, source, result)

    def _put(self, key: str, shard: str, source: Shard, result: pa.Table) -> None:
        made_of = ShardId(self._stage, shard, self._hash)
        info = ShardInfo(*made_of, result.num_rows, result.num_rows, source_sha256=source.sha256)
        self._folder.put_if_absent(key, shards.encode(result, info))

    async def joined(self, shard: str, source: Shard, transform: Callable[[pa.Table], Awaitable[pa.Table]]) -> pa.Table:
        """All parts of a shard, in order; rows that failed carry what they came with and null elsewhere. Raises
        `RedoError` when one is gone or damaged."""
        tables = [await transform(source.table.slice(0, 0))]  # for its columns
        parts, end = self.of(shard), 0
        if missing(parts, 0, source.table.num_rows):
            raise RedoError(f"{self._stage} {shard}: a part of it is gone; another run may have used it")
        for (low, high), key in sorted(parts.items(), key=lambda part: (part[0][0], -part[0][1])):
            if high <= end:  # two runs that shared it otherwise
                continue
            end = high
            if key.endswith(".failed"):
                tables.append(_failed_rows(source.table.slice(low, high - low), tables[0].schema, self._samples))
                continue
            try:
                part = await asyncio.to_thread(shards.load, self._folder, key)
            except DamagedError as error:
                self._folder.delete(key)
                raise RedoError(f"{error}; it is made again", [key]) from None
            except FileNotFoundError:
                raise RedoError(f"{self._folder.path(key)}: is gone; another run may have used it", [key]) from None
            if part.info is None or part.info.source_sha256 != source.sha256:
                self._folder.delete(key)
                raise RedoError(f"{self._folder.path(key)}: was made of other prompts; it is made again", [key])
            tables.append(part.table)
        return pa.concat_tables(tables).combine_chunks()  # written as what was made at once


def _failed_rows(prompts: pa.Table, schema: pa.Schema, samples: int) -> pa.Table:
    """`prompts`, so many times each, as the stage would return rows that its model has failed on."""
    rows = prompts.take(pa.array(np.repeat(np.arange(prompts.num_rows), samples)))
    if "sample_id" in prompts.column_names:  # a student's
        ids = prompts.column("sample_id").to_pylist()
    else:
        ids = [f"{prompt_id}/{n}" for prompt_id in prompts.column("prompt_id").to_pylist() for n in range(samples)]
    made = {"sample_id": ids, "drop_reason": ["teacher_failed"] * len(ids)}
    columns = [
        pa.array(made[column.name], column.type)
        if column.name in made
        else rows.column(column.name)
        if column.name in rows.column_names
        else pa.nulls(len(ids), column.type)
        for column in schema
    ]
    return pa.table(columns, schema=schema)
