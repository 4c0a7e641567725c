"""What one worker does to one shard: read, transform, check, split off the dropped rows, commit. Knows no Ray.

Keys in a run folder (`<n>` is a shard such as 00017):
    <stage>/<n>.parquet                   the stage's rows
    ledger/<stage>/<n>.parquet            the rows it dropped (a view of the shard's own metadata)
    dataset/data/train-<n>-of-<N>.parquet what export publishes
    state/<stage>/sketches|assignments/   inputs of a stage that needs a view of the whole data set
    state/set_aside/<stage>/<n>.json      a shard that failed too often
"""

import asyncio
import contextlib
import functools
import hashlib
import inspect
import json
import logging
import os
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import flow, shards
from pipeline.shards import ShardInfo, Store
from schemas.config import Config, config_hash

PARTITION_KEY = "state/partition.json"
logger = logging.getLogger("stillhouse")


class StageError(RuntimeError):
    """A stage broke its contract (lost, added or reordered rows, or changed a column)."""


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
    num_bytes: int = 0
    sha256: str = ""
    error: str | None = None
    """Why the shard was set aside; None when it was written."""


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
    """One stage's transform and what is around it. `step` is transform, sketch or export."""

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
            self._transform = build(config)

    async def process(self, shard: str) -> Done:
        """Brings one shard into existence. Errors of the shard are counted and, at the limit, set it aside."""
        started = time.monotonic()
        limit = self._config.resources.max_attempts
        marks = [f"state/attempts/{self._run_id}/{self._stage}.{self._step}.{shard}.{n}" for n in range(limit)]
        reason = "its worker died each time"
        for attempt, mark in enumerate(marks):
            if self._store.get_or_none(mark) is not None:
                continue  # an attempt of an earlier worker, which died in it
            # A shard that takes its worker down takes the shards beside it along. Tried again it runs alone, so that
            # only the guilty one uses up its attempts.
            async with self._gate(alone=attempt > 0):
                self._store.put_if_absent(mark, b"")
                try:
                    done = await self._make(shard, started)
                except Exception as error:
                    # The one place where an error of any kind is survived: it costs this shard only, and is counted.
                    reason = describe(error)
                    logger.warning("%s %s: an attempt failed: %s", self._stage, shard, reason)
                    if getattr(self._transform, "broken", False):
                        # Nothing works in this process any more. Ray starts another and gives it what was under way.
                        self.close()
                        os._exit(1)
                else:
                    for made in marks[: attempt + 1]:
                        self._store.delete(made)
                    return done
        failure = f"{self._stage} {shard}: set aside after {limit} attempts; last: {reason}"
        if self._step != "sketch":  # without its sketches a stage cannot run at all, so nothing is set aside
            self._store.put_if_absent(set_aside_key(self._stage, shard), json.dumps({"error": failure}).encode())
        return Done(self._stage, shard, time.monotonic() - started, error=failure)

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

    async def _make(self, shard: str, started: float) -> Done:
        source = stage_key(flow.previous(self._stage), shard)
        # Reading, encoding and syncing block; in a thread they do not hold up an engine in the same process.
        table = await asyncio.to_thread(shards.read, self._store, source, self._columns)
        if self._step == "export":
            return await asyncio.to_thread(self._publish, shard, table, started)
        assert self._transform is not None
        inputs = [table]
        if self._step == "transform" and self._assigned:
            inputs.append(shards.read(self._store, assignment_key(self._stage, shard)))
        result = self._transform(*inputs)
        if inspect.isawaitable(result):
            result = await result
        if self._step == "sketch":
            data = shards.encode(result)
            self._store.put_if_absent(sketch_key(self._stage, shard), data)
            return Done(self._stage, shard, time.monotonic() - started, table.num_rows, table.num_rows)
        samples = self._config.sampling.n if self._stage == "generate" else 1
        check_contract(self._stage, table, result, samples)
        return await asyncio.to_thread(
            commit, self._store, self._stage, shard, result, self._hash, table.num_rows * samples, started
        )

    def _publish(self, shard: str, table: pa.Table, started: float) -> Done:
        key = published_key(shard, self._num_shards)
        data = shards.encode(table)
        self._store.put_if_absent(key, data)
        return Done(
            "export",
            shard,
            time.monotonic() - started,
            table.num_rows,
            table.num_rows,
            num_target_tokens=_num_target_tokens(table),
            num_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )


def ingest(config: Config, num_prompt_tokens: Callable[[list[str]], list[int]] | None = None) -> Iterator[Done]:
    """Reads the source from its start and commits its shards one after the other; shards that exist are checked against
    what the source says now. Ends by fixing the partition. `num_prompt_tokens` replaces the teacher's tokenizer.

    Raises `StageError` when a shard that exists differs: the source changed under a run.
    """
    from stages.ingest import Ingest
    from stages.sources import read_rows

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
    store.put_if_absent(PARTITION_KEY, json.dumps({"num_shards": number, "num_rows": rows}).encode())


def prompt_counter(config: Config) -> Callable[[list[str]], list[int]]:
    """Counts first prompts in the teacher's tokens, with its template and the longest system prompt.

    Raises `TemplateError` when the template cannot do what the configuration asks: better here than after dedupe.
    """
    from stages.chat import load_chat
    from stages.generate import check_template, longest_system_prompt

    chat = load_chat(config.teacher, drops_thinking=config.generate.thinking == "drop")
    check_template(config, chat)
    return functools.partial(chat.num_prompt_tokens, system_prompt=longest_system_prompt(config, chat))


def assign(config: Config, stage: flow.Stage, names: list[str]) -> None:
    """The step between sketch and transform: reads all sketches of `names`, writes an assignment per shard."""
    assert stage.assign is not None
    store = Store(config.run_dir)
    assignments = stage.assign((shards.read(store, sketch_key(stage.name, name)) for name in names), config)
    for name, assignment in zip(names, assignments, strict=True):
        store.put_if_absent(assignment_key(stage.name, name), shards.encode(assignment))


def commit(
    store: Store,
    stage: str,
    shard: str,
    marked: pa.Table,
    digest: str,
    rows_in: int,
    started: float,
    *,
    reproducible: bool = False,
) -> Done:
    """Splits the dropped rows off and puts the rest in place, unless the shard is there already.

    With `reproducible`, a shard that is there must have the bytes that would be written now; raises `StageError` else.
    """
    dropped = pc.is_valid(marked.column("drop_reason"))
    kept = marked.filter(pc.invert(dropped)).drop_columns(["drop_reason"])
    info = ShardInfo(
        stage=stage,
        shard=shard,
        config_hash=digest,
        rows_in=rows_in,
        rows_out=kept.num_rows,
        num_target_tokens=_num_target_tokens(kept),
        ledger=_ledger_rows(marked.filter(dropped)),
    )
    key = stage_key(stage, shard)
    data = shards.encode(kept, info)
    if not store.put_if_absent(key, data):
        if reproducible and store.get(key) != data:
            raise StageError(
                f"{store.path(key)}: differs from what the source gives now; the source changed since this run began, "
                "so start a new run_dir (or restore the source)"
            )
        info = shards.read_info(store, key)  # another worker was first: what it wrote is what counts
    write_ledger(store, info)
    return Done(
        stage,
        shard,
        time.monotonic() - started,
        info.rows_in,
        info.rows_out,
        info.dropped,
        info.num_target_tokens,
        len(data),
    )


def write_ledger(store: Store, info: ShardInfo) -> None:
    """The people's view of a shard's dropped rows."""
    store.put_if_absent(f"ledger/{info.stage}/{info.shard}", shards.encode(shards.ledger_table([info])))


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
    if type(error).__module__.partition(".")[0] in ("pipeline", "stages", "schemas"):
        return str(error)
    place = ""
    if error.__traceback__ is not None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f" at {frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return f"{type(error).__name__}{place}"


def _num_target_tokens(table: pa.Table) -> int:
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
