"""What one worker does to one shard: read, transform, check, commit. Knows no Ray."""

import asyncio
import dataclasses
import inspect
import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence

import pyarrow as pa

from stillhouse.pipeline import flow
from stillhouse.pipeline.errors import DamagedError, RedoError, StorageError, safe_message
from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.quarantine import forget_view, load_or_redo, quarantine
from stillhouse.pipeline.folder.shard import Shard, ShardId, ShardInfo
from stillhouse.pipeline.run import sharing, teachers
from stillhouse.pipeline.run.attempts import Attempts, Gate
from stillhouse.pipeline.run.commit import check_contract, commit
from stillhouse.pipeline.run.parts import Parts, TooManyFailuresError
from stillhouse.pipeline.run.result import Activity, ShardResult, of_info
from stillhouse.schemas.config import Config, config_hash
from stillhouse.stages.filters.clock import Clock

CLOSE_TIMEOUT_S = 60.0
"""What a broken transform gets to end its processes by itself."""
logger = logging.getLogger("stillhouse")


class Worker:
    """One step of a stage, and what is around it. `step` is transform or sketch; `teacher` one of several, of whose
    rows alone it is given pieces."""

    def __init__(
        self, config: Config, stage: str, step: str, run_id: str, num_shards: int, teacher: str | None = None
    ) -> None:
        self._config, self._teacher = config, teacher
        self._hash = config_hash(config)
        self._folder = open_folder(config.run_dir)
        self._stage, self._step, self._num_shards = flow.stage(config, stage), step, num_shards
        self._transform: flow.Transform
        self._attempts = Attempts(self._folder, run_id, stage, step, config.resources.max_attempts)
        self._gate = Gate()
        self._parts = Parts(config, self._folder, stage, self._attempts, self._gate)
        self._num_under_way = 0
        self._num_committed = 0  # rows
        self._columns = self._stage.sketch_columns if step == "sketch" else None
        build = self._stage.sketch if step == "sketch" else self._stage.build
        assert build is not None
        view = config if teacher is None else config.of_teacher(teacher)
        with self._attempts.start(getattr(view.resources, stage).max_workers):
            self._transform = build(view)

    async def process(self, unit: str) -> ShardResult:
        """Brings one shard into existence, or where workers share it (`run.sharing`) a piece of it. Errors of the shard
        are counted and, at the limit, set it aside; what is not its fault (storage, damage to what it is made from) is
        reported and not counted."""
        return dataclasses.replace(await self._reported(unit, sharing.parsed(unit)[0]), unit=unit)

    async def _reported(self, unit: str, shard: str) -> ShardResult:
        started = time.monotonic()
        self._num_under_way += 1
        try:
            return await self._process(unit, started)
        except StorageError as error:
            return ShardResult(self._stage.name, shard, time.monotonic() - started, "fatal", str(error))
        except RedoError as error:
            return ShardResult(
                self._stage.name, shard, time.monotonic() - started, "redo", str(error), damaged=error.keys
            )
        finally:
            self._num_under_way -= 1

    def activity(self, worker: str) -> Activity:
        """What is going on in this moment, for another thread."""
        progress = getattr(self._transform, "progress", None)
        done, under_way, tokens = progress() if progress is not None else (0, 0, 0)
        # The transform counts since it was built; what is committed is in the results of its shards.
        done = max(0, done - self._num_committed)
        load = getattr(self._transform, "load", ())
        return Activity(
            worker, self._stage.name, self._step, False, self._num_under_way, done, under_way, tokens, *load
        )

    def close(self) -> None:
        """Ends what the transform started (an engine's processes)."""
        close = getattr(self._transform, "close", None)
        if close is not None:
            close()

    async def _process(self, unit: str, started: float) -> ShardResult:
        shard, extent = sharing.parsed(unit)
        limit = self._attempts.limit
        num_made = self._attempts.num_made(unit)
        if (there := await asyncio.to_thread(self._existing, shard, started)) is not None:
            for attempt in range(num_made):
                self._attempts.end(unit, str(attempt))
            if extent is not None:
                return self._part(shard, started)
            # With marks, it was a worker of this run that died.
            return dataclasses.replace(there, outcome="written" if num_made else "others")
        if extent is not None and self._folder.exists(keys.set_aside(self._stage.name, shard)):
            return self._part(shard, started)  # for the sake of another piece
        reason = "its worker died each time"
        # An earlier run was about to make it in parts.
        is_split = extent is None and self._splits and bool(self._parts.of(shard))
        for attempt in range(limit if is_split else num_made, limit):
            async with self._gate(alone=attempt > 0):
                self._attempts.begin(unit, str(attempt))
                try:
                    made_now = self._make(shard, started) if extent is None else self._share(shard, extent, started)
                    result = await made_now
                except (StorageError, RedoError):
                    self._attempts.cancel(unit, str(attempt))
                    raise
                except Exception as error:
                    # The one place where an error of any kind is survived: it costs this shard only, and is counted.
                    reason = safe_message(error)
                    logger.warning("%s %s: an attempt failed: %s", self._stage.name, unit, reason)
                    self._end_if_broken()
                else:
                    for made in range(attempt + 1):
                        self._attempts.end(unit, str(made))
                    return dataclasses.replace(result, attempts=attempt + 1)
        failure = f"{self._stage.name} {shard}: set aside after {limit} attempts; last: {reason}"
        if self._splits:
            try:
                of_parts = await self._make_in_parts(shard, extent, started)
                for attempt in range(limit if extent is not None else 0):
                    self._attempts.end(unit, str(attempt))
                return of_parts if is_split else dataclasses.replace(of_parts, attempts=limit + 1)
            except TooManyFailuresError as error:
                failure = f"{self._stage.name} {shard}: set aside after {limit} attempts and {error}; last: {reason}"
        if self._step != "sketch":  # without its sketches a stage cannot run at all, so nothing is set aside
            record = json.dumps({"error": failure}).encode()
            self._folder.put_if_absent(keys.set_aside(self._stage.name, shard), record)
        seconds = time.monotonic() - started
        return ShardResult(self._stage.name, shard, seconds, "set_aside", failure, attempts=limit)

    @property
    def _splits(self) -> bool:
        """Whether a shard that fails is made in parts."""
        return self._stage.is_async and self._step == "transform"

    def _end_if_broken(self) -> None:
        """Nothing works in this process any more? The pool starts another and gives it what was under way."""
        if getattr(self._transform, "broken", False):
            # An engine that hangs may not even close.
            closing = threading.Thread(target=self.close, daemon=True)
            closing.start()
            closing.join(CLOSE_TIMEOUT_S)
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(1)

    def _key(self, shard: str) -> str:
        """Where the result for a shard goes."""
        if self._step == "sketch":
            return keys.sketch(self._stage.name, shard)
        return keys.stage_shard(self._stage.name, shard, self._num_shards)

    def _id(self, shard: str) -> ShardId:
        return ShardId(self._stage.name, shard, self._hash)

    def _existing(self, shard: str, started: float) -> ShardResult | None:
        """The result that is there already, made since the driver listed what is missing; damaged ones are cleared."""
        key = self._key(shard)
        if not self._folder.exists(key):
            return None
        try:
            info = shards.load(self._folder, key, [], self._id(shard)).info
        except FileNotFoundError:
            return None
        except DamagedError:
            quarantine(self._folder, key, self._id(shard))
            return None
        assert info is not None
        return of_info(info, time.monotonic() - started)

    def _input(self, shard: str) -> Shard:
        """The shard of the stage before, verified. Raises `RedoError`, having put it away, when it is damaged."""
        before = flow.previous(self._config, self._stage.name)
        key = keys.stage_shard(before, shard, self._num_shards)
        found = load_or_redo(self._folder, key, ShardId(before, shard, self._hash), self._columns)
        return found if self._teacher is None else teachers.grouped(found, self._config)

    async def _make(self, shard: str, started: float) -> ShardResult:
        # Reading, encoding and syncing block; in a thread they do not hold up an engine in the same process.
        source = await asyncio.to_thread(self._input, shard)
        inputs = [source.table]
        if self._step == "transform" and self._stage.assign is not None:
            inputs.append(await asyncio.to_thread(self._assignment, shard, source))
        clock = getattr(self._transform, "clock", Clock())
        clock.read()  # what an attempt that failed took
        result = self._transform(*inputs)
        if inspect.isawaitable(result):
            result = await result
        seconds = clock.read()
        if self._step == "sketch":
            return dataclasses.replace(self._put_sketch(shard, source, result, started), filter_seconds=seconds)
        committed = await asyncio.to_thread(self._commit, shard, source, result, started)
        self._num_committed += committed.rows_in
        return dataclasses.replace(committed, filter_seconds=seconds)

    async def _make_in_parts(self, shard: str, extent: tuple[int, int] | None, started: float) -> ShardResult:
        """A shard, or the piece `extent` of one, that has failed as a whole."""
        source = await asyncio.to_thread(self._input, shard)
        missing = await asyncio.to_thread(self._parts.missing, shard, source, extent)
        await self._parts.make(shard, source, self._answered, self._end_if_broken, extent)
        if extent is not None:
            return await self._joined(shard, source, self._part(shard, started, missing))
        result = await self._parts.joined(shard, source, self._answered)
        committed = await asyncio.to_thread(self._commit, shard, source, result, started)
        self._num_committed += committed.rows_in
        self._parts.clear(shard)
        return committed

    async def _answered(self, table: pa.Table) -> pa.Table:
        return await self._transform(table)

    async def _share(self, shard: str, extent: tuple[int, int], started: float) -> ShardResult:
        """Makes the rows `extent` of a shard's source and, when all others are there, the shard."""
        source = await asyncio.to_thread(self._input, shard)
        missing = await asyncio.to_thread(self._parts.missing, shard, source, extent)
        num_tokens = 0
        for low, high in missing:  # several only where an earlier run has made some
            result = await self._answered(source.table.slice(low, high - low))
            num_tokens += shards.num_target_tokens(result)
            await asyncio.to_thread(self._parts.put, shard, (low, high), source, result)
        return await self._joined(shard, source, self._part(shard, started, missing, num_tokens))

    async def _joined(self, shard: str, source: Shard, part: ShardResult) -> ShardResult:
        """The shard, put together by who makes its last piece; `part` for the others. Two that end in the same moment
        both do it, and one is first."""
        self._num_committed += part.rows_in
        try:
            is_there = await asyncio.to_thread(self._folder.exists, self._key(shard))
            if is_there:
                await asyncio.to_thread(self._parts.clear, shard)
                return part
            if await asyncio.to_thread(self._parts.missing, shard, source, None):
                return part
            result = await self._parts.joined(shard, source, self._answered)
            committed = await asyncio.to_thread(self._commit, shard, source, result, time.monotonic() - part.seconds)
        except RedoError:
            if await asyncio.to_thread(self._folder.exists, self._key(shard)):
                return part
            raise
        self._parts.clear(shard)
        return committed if committed.outcome == "written" else part

    def _part(
        self, shard: str, started: float, made: Sequence[tuple[int, int]] = (), num_tokens: int = 0
    ) -> ShardResult:
        """The result of a piece, for which the rows `made` were answered now."""
        rows = sum(high - low for low, high in made) * self._config.num_samples(self._stage.name)
        seconds = time.monotonic() - started
        return ShardResult(self._stage.name, shard, seconds, "part", rows_in=rows, num_target_tokens=num_tokens)

    def _put_sketch(self, shard: str, source: Shard, sketch: pa.Table, started: float) -> ShardResult:
        num_rows = source.table.num_rows
        info = ShardInfo(*self._id(shard), num_rows, num_rows, source_sha256=source.sha256)
        self._folder.put_if_absent(self._key(shard), shards.encode(sketch, info))
        return of_info(info, time.monotonic() - started)

    def _commit(self, shard: str, source: Shard, result: pa.Table, started: float) -> ShardResult:
        samples = self._config.num_samples(self._stage.name)
        check_contract(self._stage.name, source.table, result, samples)
        if self._teacher is not None:
            result = teachers.in_order(result, source.table, self._config)
        return commit(
            self._folder,
            self._id(shard),
            self._key(shard),
            result,
            result.num_rows,
            time.monotonic() - started,
            source_sha256=source.sha256,
        )

    def _assignment(self, shard: str, source: Shard) -> pa.Table:
        """The shard's part of the view of the whole data set. Raises `RedoError` when it belongs to other rows."""
        stage = self._stage.name
        key = keys.assignment(stage, shard)
        try:
            found = shards.load(self._folder, key, expected=self._id(shard))
            if found.info is not None and found.info.source_sha256 == source.sha256:
                return found.table
            before = flow.previous(self._config, stage)
            reason = f"{self._folder.path(key)}: was made for another {before} {shard}"
        except FileNotFoundError:
            reason = f"{self._folder.path(key)}: is gone"
        except DamagedError as error:
            reason = str(error)
        forget_view(self._folder, stage, shard)
        raise RedoError(f"{reason}; it is made again", [key])
