"""What one worker does to one shard: read, transform, check, split off the dropped rows, commit. Knows no Ray.

Keys in a run folder (`<n>` is a shard such as 00017):
    <stage>/<n>.parquet                   the stage's rows
    ledger/<stage>/<n>.parquet            the rows it dropped (a view of the shard's own metadata)
    dataset/data/train-<n>-of-<N>.parquet what publish writes
    state/<stage>/sketches|assignments/   inputs of a stage that needs a view of the whole data set
    state/set_aside/<stage>/<n>.json      a shard that failed too often
    state/attempts/<run>/                 an empty file per attempt under way, so that one in which a worker died counts
    state/parts/generate/<n>.<lo>-<hi>.*  what is done of a shard that is made in parts, rows lo to hi of its source
    state/staged/                         files that are being written
    state/damaged/<key>.<digest>          files that were not what a run wrote; nothing reads them
"""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import logging
import multiprocessing
import os
import secrets
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from stillhouse.pipeline.shards import DamagedError, Shard, ShardInfo, StorageError, Store

from stillhouse.pipeline import flow, shards
from stillhouse.schemas.config import Config, WorkersConfig, config_hash

PARTITION_KEY = "state/partition.json"
PARTS = "state/parts/generate"
DAMAGED = "state/damaged"
ROW_ATTEMPTS = 2
"""Attempts at a row alone, before it is given up."""
MAX_FAILED_PARTS = 64
"""Failures of a shard's parts after which the teacher is to blame and not a row. One bad row among 1,000 costs 11 (ten
halvings, then itself twice); so five bad rows are found, and a dead teacher is started 64 times at most."""
MAX_FAILED_FRACTION = 0.1
"""Share of a shard's prompts (but one at least) that may be given up as rows; with more, the shard is set aside."""
CLOSE_TIMEOUT_S = 60.0
"""What a broken transform gets to end its processes by itself."""
logger = logging.getLogger("stillhouse")


class StageError(RuntimeError):
    """A stage broke its contract (lost, added or reordered rows, or changed a column)."""


class RedoError(RuntimeError):
    """What a shard is made from is damaged or gone: no failure of the shard, which waits until that is made again."""


@dataclass(frozen=True)
class Done:
    """How one shard went: a row for the progress report, not for the data."""

    stage: str
    shard: str
    seconds: float
    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    num_target_tokens: int = 0
    error: str | None = None
    """Why the shard was set aside; None when it was written."""
    redo: str | None = None
    """Why the shard could not be made yet: something before it has to be made again. Nothing was written."""
    fatal: str | None = None
    """Why no shard can be made: the storage fails, or the worker cannot start. Nothing was written."""
    is_others: bool = False
    """Another run wrote it, while this one was about to."""


def stage_key(stage: str, shard: str) -> str:
    return f"{stage}/{shard}"


def sketch_key(stage: str, shard: str) -> str:
    return f"state/{stage}/sketches/{shard}"


def assignment_key(stage: str, shard: str) -> str:
    return f"state/{stage}/assignments/{shard}"


def published_key(shard: str, num_shards: int) -> str:
    """Hugging Face's name of split `train`, part n of N."""
    return f"dataset/data/train-{shard.removesuffix('.parquet')}-of-{num_shards:05d}.parquet"


def set_aside_key(stage: str, shard: str) -> str:
    return f"state/set_aside/{stage}/{shard.removesuffix('.parquet')}.json"


class Worker:
    """One stage's transform and what is around it. `step` is transform, sketch or publish."""

    def __init__(self, config: Config, stage: str, step: str, run_id: str, num_shards: int) -> None:
        self._config = config
        self._hash = config_hash(config)
        self._store = Store(config.run_dir)
        self._stage, self._step, self._run_id, self._num_shards = stage, step, run_id, num_shards
        self._transform: flow.Transform | None = None
        self._changed, self._num_inside, self._is_alone = asyncio.Condition(), 0, False
        spec = next((spec for spec in flow.STAGES if spec.name == stage), None)
        self._assigned = spec is not None and spec.assign is not None
        self._columns = spec.sketch_columns if spec is not None and step == "sketch" else None
        if spec is not None:
            build = spec.sketch if step == "sketch" else spec.build
            assert build is not None
            with self._started():
                self._transform = build(config)

    @contextlib.contextmanager
    def _started(self) -> Iterator[None]:
        """Counts starts that end in the death of the process, which Ray would repeat for ever (an engine that takes all
        memory, say). Raises `StageError` when it is always so; any start that comes to its end clears the count."""
        folder, prefix = f"state/attempts/{self._run_id}", f"{self._stage}.{self._step}.start."
        begun = [name for name in self._store.list(folder) if name.startswith(prefix)]
        resources: WorkersConfig = getattr(self._config.resources, self._stage)
        if len(begun) >= self._config.resources.max_attempts + resources.max_workers:  # so many may be starting now
            raise StageError(
                f"{self._stage}: its workers died {len(begun)} times in a row while starting; see Ray's logs for why "
                "(memory?), then run again"
            )
        mark = f"{folder}/{prefix}{secrets.token_hex(4)}"
        self._store.put_if_absent(mark, b"")
        try:
            yield
        except Exception:
            self._forgive(mark)  # it has a reason, which ends the run
            raise
        for name in [*begun, mark.rpartition("/")[2]]:
            self._store.delete(f"{folder}/{name}")

    async def process(self, shard: str) -> Done:
        """Brings one shard into existence. Errors of the shard are counted and, at the limit, set it aside; what is not
        its fault (storage, damage to what it is made from) is told and not counted."""
        started = time.monotonic()
        try:
            return await self._process(shard, started)
        except StorageError as error:
            return Done(self._stage, shard, time.monotonic() - started, fatal=str(error))
        except RedoError as error:
            return Done(self._stage, shard, time.monotonic() - started, redo=str(error))

    async def _process(self, shard: str, started: float) -> Done:
        limit = self._config.resources.max_attempts
        marks = [self._mark(shard, str(n)) for n in range(limit)]
        num_made = len(list(itertools.takewhile(self._store.exists, marks)))
        if (done := await asyncio.to_thread(self._existing, shard, started)) is not None:
            for mark in marks[:num_made]:
                self._store.delete(mark)
            return dataclasses.replace(done, is_others=not num_made)  # with marks, a worker that died wrote it
        reason = "its worker died each time"
        is_split = self._splits and bool(self._parts(shard))  # an earlier run was about to make it in parts
        for attempt in range(limit if is_split else num_made, limit):
            # A shard that takes its worker down takes the shards beside it along. Tried again it runs alone, so that
            # only the guilty one uses up its attempts.
            async with self._gate(alone=attempt > 0):
                self._store.put_if_absent(marks[attempt], b"")
                try:
                    done = await self._make(shard, started)
                except (StorageError, RedoError):
                    self._forgive(marks[attempt])
                    raise
                except Exception as error:
                    # The one place where an error of any kind is survived: it costs this shard only, and is counted.
                    reason = describe(error)
                    logger.warning("%s %s: an attempt failed: %s", self._stage, shard, reason)
                    self._end_if_broken()
                else:
                    for mark in marks[: attempt + 1]:
                        self._store.delete(mark)
                    return done
        failure = f"{self._stage} {shard}: set aside after {limit} attempts; last: {reason}"
        if self._splits:
            try:
                return await self._make_in_parts(shard, started)
            except _TooManyFailures as error:
                failure = f"{self._stage} {shard}: set aside after {limit} attempts and {error}; last: {reason}"
        if self._step != "sketch":  # without its sketches a stage cannot run at all, so nothing is set aside
            self._store.put_if_absent(set_aside_key(self._stage, shard), json.dumps({"error": failure}).encode())
        return Done(self._stage, shard, time.monotonic() - started, error=failure)

    def _mark(self, shard: str, attempt: str) -> str:
        return f"state/attempts/{self._run_id}/{self._stage}.{self._step}.{shard}.{attempt}"

    def _forgive(self, mark: str) -> None:
        """Takes an attempt back that failed for no fault of the shard."""
        with contextlib.suppress(StorageError):  # the run ends with the first one; its marks count in no other run
            self._store.delete(mark)

    def _end_if_broken(self) -> None:
        """Nothing works in this process any more? Ray starts another and gives it what was under way."""
        if getattr(self._transform, "broken", False):
            # An engine that hangs may not even close.
            closing = threading.Thread(target=self.close, daemon=True)
            closing.start()
            closing.join(CLOSE_TIMEOUT_S)
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(1)

    @contextlib.asynccontextmanager
    async def _gate(self, *, alone: bool) -> AsyncIterator[None]:
        """Lets shards in together, or one with none beside it."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_alone and not (alone and self._num_inside))
            self._num_inside, self._is_alone = self._num_inside + 1, alone
        try:
            yield
        finally:
            async with self._changed:
                self._num_inside, self._is_alone = self._num_inside - 1, False
                self._changed.notify_all()

    def close(self) -> None:
        """Ends what the transform started (an engine's processes)."""
        close = getattr(self._transform, "close", None)
        if close is not None:
            close()

    @property
    def _key(self) -> Callable[[str], str]:
        """Where the result for a shard goes."""
        if self._step == "publish":
            return lambda shard: published_key(shard, self._num_shards)
        return functools.partial(sketch_key if self._step == "sketch" else stage_key, self._stage)

    def _existing(self, shard: str, started: float) -> Done | None:
        """The result that is there already, made since the driver listed what is missing; damaged ones are cleared."""
        key, expected = self._key(shard), (self._stage, shard, self._hash)
        if not self._store.exists(key):
            return None
        try:
            info = shards.load(self._store, key, [], expected).info
        except FileNotFoundError:
            return None
        except DamagedError:
            put_away(self._store, key, expected)
            return None
        assert info is not None
        return _done(info, started)

    def _input(self, shard: str) -> Shard:
        """The shard of the stage before, verified. Raises `RedoError`, having put it away, when it is damaged."""
        stage = flow.previous(self._stage)
        return _load_or_redo(self._store, stage_key(stage, shard), (stage, shard, self._hash), self._columns)

    async def _make(self, shard: str, started: float) -> Done:
        # Reading, encoding and syncing block; in a thread they do not hold up an engine in the same process.
        source = await asyncio.to_thread(self._input, shard)
        table = source.table
        if self._step == "publish":
            return await asyncio.to_thread(self._publish, shard, source, started)
        assert self._transform is not None
        inputs = [table]
        if self._step == "transform" and self._assigned:
            inputs.append(await asyncio.to_thread(self._assignment, shard, source))
        result = self._transform(*inputs)
        if inspect.isawaitable(result):
            result = await result
        if self._step == "sketch":
            info = ShardInfo(
                self._stage, shard, self._hash, table.num_rows, table.num_rows, source_sha256=source.sha256
            )
            self._store.put_if_absent(self._key(shard), shards.encode(result, info))
            return Done(self._stage, shard, time.monotonic() - started, table.num_rows, table.num_rows)
        return await asyncio.to_thread(self._commit, shard, source, result, started)

    def _commit(self, shard: str, source: Shard, result: pa.Table, started: float) -> Done:
        samples = self._config.sampling.n if self._stage == "generate" else 1
        check_contract(self._stage, source.table, result, samples)
        num_rows = source.table.num_rows * samples
        return commit(
            self._store, self._stage, shard, result, self._hash, num_rows, started, source_sha256=source.sha256
        )

    def _assignment(self, shard: str, source: Shard) -> pa.Table:
        """The shard's part of the view of the whole data set. Raises `RedoError` when it belongs to other rows."""
        key = assignment_key(self._stage, shard)
        try:
            found = shards.load(self._store, key, expected=(self._stage, shard, self._hash))
            if found.info is not None and found.info.source_sha256 == source.sha256:
                return found.table
            reason = f"{self._store.path(key)}: was made for another {flow.previous(self._stage)} {shard}"
        except FileNotFoundError:
            reason = f"{self._store.path(key)}: is gone"
        except DamagedError as error:
            reason = str(error)
        forget_view(self._store, self._stage, shard)
        raise RedoError(f"{reason}; it is made again")

    def _publish(self, shard: str, source: Shard, started: float) -> Done:
        from stillhouse.stages.teacher import fidelity

        table = source.table
        tokens = num_target_tokens(table)
        info = ShardInfo(
            "publish",
            shard,
            self._hash,
            table.num_rows,
            table.num_rows,
            tokens,
            source_sha256=source.sha256,
            fidelity=fidelity.statistics(table),
        )
        is_ours = self._store.put_if_absent(self._key(shard), shards.encode(table, info))
        return dataclasses.replace(_done(info, started), is_others=not is_ours)

    # -----------------------------------------------------------------------------------------------------------------
    # A shard in parts: when one of its rows ends the engine each time, the others must still be answered.

    @property
    def _splits(self) -> bool:
        return self._stage == "generate" and self._step == "transform"

    def _parts(self, shard: str) -> dict[tuple[int, int], str]:
        """Keys of what is done of a shard, by the range of its source's rows."""
        parts = {}
        for name in self._store.list(PARTS):
            number, extent, kind = name.split(".")
            if f"{number}.parquet" == shard and kind in ("parquet", "failed"):
                low, high = extent.split("-")
                parts[int(low), int(high)] = f"{PARTS}/{name}"
        return parts

    async def _make_in_parts(self, shard: str, started: float) -> Done:
        """Halves the rows that fail until the guilty ones are alone; each of these gets drop_reason `teacher_failed`,
        once it has failed `ROW_ATTEMPTS` times with nothing beside it.

        An attempt at a part is an empty file like one at a shard, because most of them end with this process. Parts
        that are done stay over a killed run. Raises `_TooManyFailures` after `MAX_FAILED_PARTS` failures, or for more
        than `MAX_FAILED_FRACTION` of the rows: then it is not some rows, but the teacher.
        """
        source = await asyncio.to_thread(self._input, shard)
        self._drop_strange_parts(shard, source)
        parts = self._parts(shard)
        base = self._mark(shard, "")
        folder, _, prefix = base.rpartition("/")
        marks = (name.removeprefix(prefix) for name in self._store.list(folder) if name.startswith(prefix))
        failed = {mark for mark in marks if "-" in mark}
        whole = (0, source.table.num_rows)
        num_given_up = sum(key.endswith(".failed") for key in parts.values())
        # The same halves in every process, so that what one has learned serves the next.
        missing = [whole]
        while missing:
            low, high = missing.pop()
            stem = f"{PARTS}/{shard.removesuffix('.parquet')}.{low}-{high}"
            if (low, high) in parts:
                continue
            limit = 1 if high - low > 1 else ROW_ATTEMPTS
            attempt = sum(f"{low}-{high}.{n}" in failed for n in range(limit))
            is_begun = any(low <= begin and end <= high for begin, end in parts)  # by a run that was killed since
            if high - low > 1 and ((low, high) == whole or attempt == limit or is_begun):
                middle = (low + high) // 2
                missing += [(middle, high), (low, middle)]
                continue
            if attempt == limit:
                num_given_up += 1
                if num_given_up > max(1, MAX_FAILED_FRACTION * whole[1]):
                    self._forget_failures(shard, base, failed)
                    raise _TooManyFailures(f"{num_given_up} of its {whole[1]} rows, each alone")
                self._store.put_if_absent(f"{stem}.failed", b"")
                logger.warning("%s %s: row %d of its source fails alone", self._stage, shard, low)
                continue
            if len(failed) >= MAX_FAILED_PARTS:
                self._forget_failures(shard, base, failed)
                raise _TooManyFailures(f"{len(failed)} of parts of it")
            mark = f"{low}-{high}.{attempt}"
            async with self._gate(alone=True):
                self._store.put_if_absent(base + mark, b"")
                try:
                    assert self._transform is not None
                    result = await self._transform(source.table.slice(low, high - low))
                    await asyncio.to_thread(self._put_part, f"{stem}.parquet", shard, source, result)
                except StorageError:
                    self._forgive(base + mark)
                    raise
                except Exception as error:
                    logger.warning("%s %s rows %d to %d: failed: %s", self._stage, shard, low, high, describe(error))
                    failed.add(mark)
                    missing.append((low, high))
                    self._end_if_broken()
                else:
                    self._store.delete(base + mark)
        result = await self._joined(shard, source)
        done = await asyncio.to_thread(self._commit, shard, source, result, started)
        for key in self._parts(shard).values():
            self._store.delete(key)
        for name in [*failed, *(str(n) for n in range(self._config.resources.max_attempts))]:
            self._store.delete(base + name)
        return done

    def _forget_failures(self, shard: str, base: str, failed: set[str]) -> None:
        """What a teacher that fails on everything said of single rows must not count when the shard is tried again."""
        for key in self._parts(shard).values():
            if key.endswith(".failed"):
                self._store.delete(key)
        for name in failed:
            self._store.delete(base + name)

    def _drop_strange_parts(self, shard: str, source: Shard) -> None:
        for key in self._parts(shard).values():
            if key.endswith(".parquet"):
                with contextlib.suppress(DamagedError, FileNotFoundError):
                    if shards.read_footer(self._store, key)[0].source_sha256 == source.sha256:
                        continue
                self._store.delete(key)

    def _put_part(self, key: str, shard: str, source: Shard, result: pa.Table) -> None:
        info = ShardInfo(self._stage, shard, self._hash, result.num_rows, result.num_rows, source_sha256=source.sha256)
        self._store.put_if_absent(key, shards.encode(result, info))

    async def _joined(self, shard: str, source: Shard) -> pa.Table:
        """All parts of a shard, in order; rows that failed carry what they came with and null elsewhere."""
        assert self._transform is not None
        tables = [await self._transform(source.table.slice(0, 0))]  # for its columns
        for (low, high), key in sorted(self._parts(shard).items()):
            if key.endswith(".failed"):
                tables.append(_failed_rows(source.table.slice(low, high - low), tables[0].schema, self._config))
                continue
            try:
                part = await asyncio.to_thread(shards.load, self._store, key)
            except DamagedError as error:
                self._store.delete(key)
                raise RedoError(f"{error}; it is made again") from None
            except FileNotFoundError:
                raise RedoError(f"{self._store.path(key)}: is gone; another run may have used it") from None
            tables.append(part.table)
        return pa.concat_tables(tables)


class _TooManyFailures(Exception):  # noqa: N818 - never leaves this module
    """So many parts of a shard fail that its rows are not to blame."""


def _failed_rows(prompts: pa.Table, schema: pa.Schema, config: Config) -> pa.Table:
    """`prompts`, `sampling.n` times each, as generate would return rows that the teacher has failed on."""
    samples = config.sampling.n
    rows = prompts.take(pa.array(np.repeat(np.arange(prompts.num_rows), samples)))
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


def _load_or_redo(
    store: Store, key: str, expected: tuple[str, str, str], columns: Sequence[str] | None = None
) -> Shard:
    try:
        return shards.load(store, key, columns, expected)
    except FileNotFoundError:
        raise RedoError(f"{store.path(key)}: is gone; it is made again") from None
    except DamagedError as error:
        raise RedoError(f"{error}; {put_away(store, key, expected)}") from None


def put_away(store: Store, key: str, expected: tuple[str, str, str]) -> str:
    """Moves a file that is not the shard `expected` (stage, shard, configuration hash) out of the way; with it goes the
    view of its ledger. Returns what to tell. A file that turns out to be right, because another run was faster, stays.
    """
    try:
        data = store.get(key)
    except FileNotFoundError:
        return "it is made again"
    with contextlib.suppress(DamagedError):
        shards.decode(data, key, [], expected)
        return "another run has made it again"
    kept = f"{DAMAGED}/{key}.{hashlib.sha256(data).hexdigest()[:8]}"
    store.put_if_absent(kept, data)
    if expected[0] in flow.NAMES:
        store.delete(f"ledger/{expected[0]}/{expected[1]}")
    if store.get_or_none(key) == data:
        store.delete(key)
    return f"kept as {kept}, it is made again"


def forget_view(store: Store, stage: str, shard: str) -> None:
    """Deletes a stage's sketch of `shard`, and all assignments, since each depends on every sketch."""
    store.delete(sketch_key(stage, shard))
    for name in store.list(f"state/{stage}/assignments"):
        store.delete(assignment_key(stage, name))


def _done(info: ShardInfo, started: float) -> Done:
    return Done(
        info.stage,
        info.shard,
        time.monotonic() - started,
        info.rows_in,
        info.rows_out,
        info.dropped,
        info.num_target_tokens,
    )


def ingest(config: Config, num_prompt_tokens: Callable[[list[str]], list[int]] | None = None) -> Iterator[Done]:
    """Reads the source from its start and commits its shards one after the other; shards that exist are checked against
    what the source says now. Ends by fixing the partition. `num_prompt_tokens` replaces the teacher's tokenizer.

    Raises `StageError` when a shard that exists differs: the source changed under a run.
    """
    from stillhouse.stages.ingest import Ingest
    from stillhouse.stages.sources import read_rows

    if num_prompt_tokens is None:
        num_prompt_tokens = prompt_counter(config)
    store, digest = Store(config.run_dir), config_hash(config)
    number, rows = 0, 0
    started = time.monotonic()
    for marked in Ingest(config, num_prompt_tokens)(read_rows(config.source)):
        shard = shards.shard_name(number)
        yield commit(store, "ingest", shard, marked, digest, marked.num_rows, started, reproducible=True)
        number, rows, started = number + 1, rows + marked.num_rows, time.monotonic()
    if not rows:
        raise StageError("ingest: the source has no rows; check source.path and source.limit")
    store.put(PARTITION_KEY, shards.encode_certified({"num_shards": number, "num_rows": rows}))


def prompt_counter(config: Config) -> Callable[[list[str]], list[int]]:
    """Counts first prompts in the teacher's tokens, with its template and the longest system prompt.

    Raises `TemplateError` when the template cannot do what the configuration asks: better here than after dedupe.
    """
    from stillhouse.stages.teacher.chat import load_chat
    from stillhouse.stages.generate import check_template, longest_system_prompt

    chat = load_chat(config)
    check_template(config, chat)
    return functools.partial(chat.num_prompt_tokens, system_prompt=longest_system_prompt(config, chat))


def assign(config: Config, stage: flow.Stage, names: list[str], digests: dict[str, str]) -> None:
    """The step between sketch and transform: reads all sketches of `names`, writes an assignment per shard.

    `digests` are those of the shards that were sketched. A sketch that is damaged, or of other rows, is deleted with
    all assignments; raises `RedoError`, and the caller sketches again.
    """
    assert stage.assign is not None
    store, digest = Store(config.run_dir), config_hash(config)

    def sketches() -> Iterator[pa.Table]:
        for name in names:
            key = sketch_key(stage.name, name)
            try:
                found = shards.load(store, key, expected=(stage.name, name, digest))
                if found.info is None or found.info.source_sha256 != digests.get(name):
                    raise DamagedError(f"{store.path(key)}: was made from another {flow.previous(stage.name)} {name}")
            except FileNotFoundError:
                raise RedoError(f"{store.path(key)}: is gone; it is made again") from None
            except DamagedError as error:
                forget_view(store, stage.name, name)
                raise RedoError(f"{error}; it is made again") from None
            yield found.table

    assignments = stage.assign(sketches(), config)
    for name, assignment in zip(names, assignments, strict=True):
        rows = assignment.num_rows
        info = ShardInfo(stage.name, name, digest, rows, rows, source_sha256=digests[name])
        store.put_if_absent(assignment_key(stage.name, name), shards.encode(assignment, info))


def commit(
    store: Store,
    stage: str,
    shard: str,
    marked: pa.Table,
    digest: str,
    rows_in: int,
    started: float,
    *,
    source_sha256: str = "",
    reproducible: bool = False,
) -> Done:
    """Splits the dropped rows off and puts the rest in place, unless the shard is there already, and whole.

    With `reproducible`, a shard that is there must hold what would be written now; raises `StageError` else.
    """
    dropped = pc.is_valid(marked.column("drop_reason"))
    kept = marked.filter(pc.invert(dropped)).drop_columns(["drop_reason"])
    info = ShardInfo(
        stage=stage,
        shard=shard,
        config_hash=digest,
        rows_in=rows_in,
        rows_out=kept.num_rows,
        num_target_tokens=num_target_tokens(kept),
        ledger=_ledger_rows(marked.filter(dropped)),
        source_sha256=source_sha256,
    )
    key, expected = stage_key(stage, shard), (stage, shard, digest)
    data = shards.encode(kept, info)
    is_ours = store.put_if_absent(key, data)
    if not is_ours:
        try:
            there = shards.load(store, key, None if reproducible else [], expected)
        except DamagedError as error:
            logger.warning("%s; %s", error, put_away(store, key, expected))
            is_ours = store.put_if_absent(key, data)
        else:
            assert there.info is not None
            # Not by their bytes: another version of the Parquet library writes the same rows differently.
            if reproducible and (there.info != info or not there.table.equals(kept)):
                raise StageError(
                    f"{store.path(key)}: differs from what the source gives now; the source changed since this run "
                    "began, so start a new run_dir (or restore the source)"
                )
            info = there.info  # another worker was first: what it wrote is what counts
    write_ledger(store, info)
    # An ingest that goes on meets its own shards, so there it says nothing.
    return dataclasses.replace(_done(info, started), is_others=not is_ours and not reproducible)


def write_ledger(store: Store, info: ShardInfo) -> None:
    """The people's view of a shard's dropped rows."""
    key, data = f"ledger/{info.stage}/{info.shard}", shards.encode(shards.ledger_table([info]))
    if not store.put_if_absent(key, data) and store.get_or_none(key) != data:
        store.put(key, data)


def check_contract(stage: str, before: pa.Table, after: pa.Table, samples: int) -> None:
    """Raises `StageError` unless `after` has the rows of `before`, in order and `samples` times each, with every column
    unchanged that it still has, and says which of them to drop."""
    if "drop_reason" not in after.column_names:
        raise StageError(f"{stage}: returned no drop_reason column; a stage marks every row")
    if after.num_rows != before.num_rows * samples:
        raise StageError(
            f"{stage}: returned {after.num_rows} rows for {before.num_rows} x {samples}; a stage keeps the row set"
        )
    rows = pa.array(np.repeat(np.arange(before.num_rows), samples))
    names = ["prompt_id", "source_row"] if stage == "generate" else before.column_names
    for name in names:
        if name not in after.column_names or not after.column(name).equals(before.column(name).take(rows)):
            raise StageError(f"{stage}: lost, changed or reordered column {name!r}; a stage only adds columns")


def describe(error: BaseException) -> str:
    """An error in words that cannot hold prompt text: our own messages, and of others the type and the place."""
    if type(error).__module__.partition(".")[0] == "stillhouse":
        return str(error)
    place = ""
    if error.__traceback__ is not None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f" at {frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return f"{type(error).__name__}{place}"


def num_target_tokens(table: pa.Table) -> int:
    """Supervised tokens of all rows; 0 of tables from before generate."""
    if "num_target_tokens" not in table.column_names:
        return 0
    return int(pc.sum(table.column("num_target_tokens")).as_py() or 0)


def _ledger_rows(dropped: pa.Table) -> list[dict[str, Any]]:
    names = [n for n in ("prompt_id", "sample_id", "source", "source_row") if n in dropped.column_names]
    scores = next((n for n in ("response_scores", "prompt_scores") if n in dropped.column_names), None)
    rows: list[dict[str, Any]] = dropped.select(names).to_pylist()
    reasons = dropped.column("drop_reason").to_pylist()
    scored = dropped.column(scores).to_pylist() if scores else [None] * len(rows)
    for row, reason, values in zip(rows, reasons, scored, strict=True):
        row["reason"] = reason
        if values is not None:
            row["scores"] = [{"label": label, "score": score} for label, score in values.items()]
    return rows
