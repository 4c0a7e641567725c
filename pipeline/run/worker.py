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

import pyarrow as pa

from stillhouse.pipeline import flow
from stillhouse.pipeline.errors import DamagedError, RedoError, StorageError, safe_message
from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.quarantine import forget_view, load_or_redo, quarantine
from stillhouse.pipeline.folder.shard import Shard, ShardId, ShardInfo
from stillhouse.pipeline.run.attempts import Attempts, Gate
from stillhouse.pipeline.run.commit import check_contract, commit
from stillhouse.pipeline.run.parts import Parts, TooManyFailuresError
from stillhouse.pipeline.run.result import Activity, ShardResult, of_info
from stillhouse.schemas.config import Config, config_hash

CLOSE_TIMEOUT_S = 60.0
"""What a broken transform gets to end its processes by itself."""
logger = logging.getLogger("stillhouse")


class Worker:
    """One step of a stage, and what is around it. `step` is transform or sketch."""

    def __init__(self, config: Config, stage: str, step: str, run_id: str, num_shards: int) -> None:
        self._config = config
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
        with self._attempts.start(getattr(config.resources, stage).max_workers):
            self._transform = build(config)

    async def process(self, shard: str) -> ShardResult:
        """Brings one shard into existence. Errors of the shard are counted and, at the limit, set it aside; what is not
        its fault (storage, damage to what it is made from) is reported and not counted."""
        started = time.monotonic()
        self._num_under_way += 1
        try:
            return await self._process(shard, started)
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

    async def _process(self, shard: str, started: float) -> ShardResult:
        limit = self._attempts.limit
        num_made = self._attempts.num_made(shard)
        if (there := await asyncio.to_thread(self._existing, shard, started)) is not None:
            for attempt in range(num_made):
                self._attempts.end(shard, str(attempt))
            # With marks, it was a worker of this run that died.
            return dataclasses.replace(there, outcome="written" if num_made else "others")
        reason = "its worker died each time"
        is_split = self._splits and bool(self._parts.of(shard))  # an earlier run was about to make it in parts
        for attempt in range(limit if is_split else num_made, limit):
            async with self._gate(alone=attempt > 0):
                self._attempts.begin(shard, str(attempt))
                try:
                    result = await self._make(shard, started)
                except (StorageError, RedoError):
                    self._attempts.cancel(shard, str(attempt))
                    raise
                except Exception as error:
                    # The one place where an error of any kind is survived: it costs this shard only, and is counted.
                    reason = safe_message(error)
                    logger.warning("%s %s: an attempt failed: %s", self._stage.name, shard, reason)
                    self._end_if_broken()
                else:
                    for made in range(attempt + 1):
                        self._attempts.end(shard, str(made))
                    return dataclasses.replace(result, attempts=attempt + 1)
        failure = f"{self._stage.name} {shard}: set aside after {limit} attempts; last: {reason}"
        if self._splits:
            try:
                of_parts = await self._make_in_parts(shard, started)
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
        return load_or_redo(self._folder, key, ShardId(before, shard, self._hash), self._columns)

    async def _make(self, shard: str, started: float) -> ShardResult:
        # Reading, encoding and syncing block; in a thread they do not hold up an engine in the same process.
        source = await asyncio.to_thread(self._input, shard)
        inputs = [source.table]
        if self._step == "transform" and self._stage.assign is not None:
            inputs.append(await asyncio.to_thread(self._assignment, shard, source))
        result = self._transform(*inputs)
        if inspect.isawaitable(result):
            result = await result
        if self._step == "sketch":
            return self._put_sketch(shard, source, result, started)
        return await asyncio.to_thread(self._commit, shard, source, result, started)

    async def _make_in_parts(self, shard: str, started: float) -> ShardResult:
        source = await asyncio.to_thread(self._input, shard)
        result = await self._parts.make(shard, source, lambda table: self._transform(table), self._end_if_broken)
        committed = await asyncio.to_thread(self._commit, shard, source, result, started)
        self._parts.clear(shard)
        return committed

    def _put_sketch(self, shard: str, source: Shard, sketch: pa.Table, started: float) -> ShardResult:
        num_rows = source.table.num_rows
        info = ShardInfo(*self._id(shard), num_rows, num_rows, source_sha256=source.sha256)
        self._folder.put_if_absent(self._key(shard), shards.encode(sketch, info))
        return of_info(info, time.monotonic() - started)

    def _commit(self, shard: str, source: Shard, result: pa.Table, started: float) -> ShardResult:
        samples = self._config.sampling.n if self._stage.name == "generate" else 1
        check_contract(self._stage.name, source.table, result, samples)
        committed = commit(
            self._folder,
            self._id(shard),
            self._key(shard),
            result,
            source.table.num_rows * samples,
            time.monotonic() - started,
            source_sha256=source.sha256,
        )
        self._num_committed += committed.rows_in
        return committed

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
