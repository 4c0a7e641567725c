"""Who does the work of a step: a pool of workers, here of processes on this machine. `ray_pool` is its peer."""

import asyncio
import contextlib
import functools
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from stillhouse.pipeline.errors import RunError, safe_error, safe_message
from stillhouse.pipeline.in_order import InOrder, begin, in_processes, num_at_once
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.pipeline.run.worker import Worker
from stillhouse.schemas.config import Config, WorkersConfig
from stillhouse.stages.teacher.gpus import visible_gpus

CLOSE_TIMEOUT_S = 60.0
"""What a worker gets to end its engine before it is killed; after an error or an interrupt, a sixth of it."""
ACTIVITY_EVERY_S = 1.0
"""How often a worker says what it is doing."""

PRELOADED = ["stillhouse.pipeline.run.pool", "datasketch", "transformers.tokenization_utils_tokenizers"]
"""Imported before workers are forked: 4 s of CPU that each would spend, and each that replaces a dead one. Not torch,
whose threads do not survive a fork."""

Task = Callable[..., Iterator[ShardResult]]


@dataclass(frozen=True)
class Job:
    """One step of a stage, for all of its workers."""

    config: Config
    stage: str
    step: str
    num_shards: int
    """Of the run, not of this job."""
    is_async: bool
    teacher: str | None = None
    """Whose rows are made, where there are several."""
    run_id: str = field(default_factory=lambda: secrets.token_hex(6))

    @functools.cached_property
    def view(self) -> Config:
        """The run as these workers see it: with the teacher whose rows are made as its only one."""
        return self.config if self.teacher is None else self.config.of_teacher(self.teacher)

    @property
    def resources(self) -> WorkersConfig:
        workers: WorkersConfig = getattr(self.view.resources, self.stage)
        return workers

    @property
    def shards_in_flight(self) -> int:
        """Shards that a worker holds at once."""
        return self.resources.shards_in_flight if self.is_async else 1

    def build(self) -> Worker:
        return Worker(self.config, self.stage, self.step, self.run_id, self.num_shards, self.teacher)


class Pool(Protocol):
    """Workers somewhere. Nothing is started before the first call, because a finished run needs none."""

    def require(self, config: Config, stages: Sequence[str]) -> list[str]:
        """Asked before the first of `stages` begins. Raises `RunError` where a worker of one of them needs what no
        machine has or can get; returns a sentence for each that has to wait for a machine."""
        ...

    def map_shards(
        self, job: Job, shards: Sequence[str], on_activity: Callable[[Activity], None]
    ) -> Iterator[ShardResult]:
        """The result of each shard or piece of one (`run.sharing`), as it is ready. A worker that dies is replaced, and
        what it held is done again."""
        ...

    def run_task(self, config: Config, stage: str, task: Task, *arguments: Any) -> Iterator[ShardResult]:
        """What `task` yields, called with the configuration and `arguments`. Raises `safe_error` of what it raises."""
        ...

    @property
    def in_order(self) -> InOrder | None:
        """By what a task calls other processes, wherever it runs; can be pickled. None where there are no others."""
        ...

    def close(self, error: BaseException | None = None) -> None:
        """Ends all that was started; `error` is what ended the run."""
        ...


class LocalPool:
    """Processes of this machine. They are forked from a clean server process, which has imported once what they need.

    Each talks to this process over a pipe. One that dies (an engine that takes all memory, a poison row) is replaced,
    as often as the attempts that are counted in the run folder allow. Ends with this process, however that ends.
    """

    in_order = staticmethod(in_processes)

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._workers: list[_Process] = []

    def require(self, config: Config, stages: Sequence[str]) -> list[str]:
        for stage in stages:
            num_gpus = getattr(config.resources, stage).num_gpus
            _check_gpus(stage, num_gpus, _gpus(num_gpus))
        return []

    def map_shards(
        self, job: Job, shards: Sequence[str], on_activity: Callable[[Activity], None]
    ) -> Iterator[ShardResult]:
        todo, num_left = deque(shards), len(shards)
        gpus = _gpus(job.resources.num_gpus)
        places = deque(range(_num_workers(job, len(shards), gpus)))
        while num_left:
            while places and len(self._workers) * job.shards_in_flight < num_left:
                place = places.popleft()
                self._workers.append(_Process(self._context, job, place, _share(gpus, place, job.resources.num_gpus)))
            while todo and self._workers:
                freest = min(self._workers, key=lambda worker: len(worker.shards))
                if len(freest.shards) >= job.shards_in_flight:
                    break
                freest.give(todo.popleft())
            for worker in _ready(self._workers):
                for message in worker.messages():
                    if isinstance(message, Activity):
                        on_activity(message)
                        continue
                    worker.shards.discard(message.unit or message.shard)
                    num_left -= 1
                    yield message
                if worker.is_dead:
                    self._workers.remove(worker)
                    todo.extendleft(sorted(worker.shards, reverse=True))
                    places.append(worker.place)
        self._end_workers(CLOSE_TIMEOUT_S)

    def run_task(self, config: Config, stage: str, task: Task, *arguments: Any) -> Iterator[ShardResult]:
        multiprocessing.forkserver.ensure_running()  # imports while ingest reads
        try:
            yield from task(config, *arguments)
        except Exception as error:  # of any kind: only what is safe to show goes on
            raise safe_error(error) from None

    def close(self, error: BaseException | None = None) -> None:
        self._end_workers(CLOSE_TIMEOUT_S if error is None else CLOSE_TIMEOUT_S / 6)

    def _end_workers(self, timeout_s: float) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.ask_to_end()
        until = time.monotonic() + timeout_s
        for worker in workers:
            worker.end(max(0.0, until - time.monotonic()))


class _Process:
    """A worker's process, as the driver sees it."""

    def __init__(self, context: Any, job: Job, place: int, gpus: str | None) -> None:
        self.place = place
        self.shards: set[str] = set()
        """Given to it and not yet done."""
        self.is_dead = False
        self.pipe, theirs = context.Pipe()
        environment = dict(os.environ) | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})
        # Not a daemon: those may have no children, and an engine is a tree of processes.
        self._process = context.Process(target=_serve, args=(theirs, job, f"local-{place}", environment))
        self._process.start()
        theirs.close()

    def give(self, shard: str) -> None:
        self.shards.add(shard)
        with contextlib.suppress(OSError):  # it died, which `messages` finds
            self.pipe.send(shard)

    def messages(self) -> Iterator[ShardResult | Activity]:
        """What it has said since."""
        try:
            while self.pipe.poll():
                kind, values = self.pipe.recv()
                yield Activity(**values) if kind == "activity" else ShardResult.from_json(values)
        except (EOFError, OSError):
            self.is_dead = True

    def ask_to_end(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(None)

    def end(self, timeout_s: float) -> None:
        self._process.join(timeout_s)
        for stop in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                stop()
                self._process.join(5)
        self.pipe.close()


def _ready(workers: list[_Process]) -> list[_Process]:
    """Workers that have said something, or died; waits for the first."""
    ready = multiprocessing.connection.wait([worker.pipe for worker in workers])
    return [worker for worker in workers if worker.pipe in ready]


def _num_workers(job: Job, num_shards: int, gpus: list[str]) -> int:
    """How many workers this machine has room for, one at least."""
    resources = job.resources
    fit = num_at_once(resources)
    if resources.num_gpus:
        _check_gpus(job.stage, resources.num_gpus, gpus)
        fit = min(fit, _num_sharing(resources.num_gpus) * len(gpus) // max(1, int(resources.num_gpus))) or 1
    return max(1, min(num_shards, fit))


def _check_gpus(stage: str, num_gpus: float, gpus: list[str]) -> None:
    if len(gpus) < num_gpus:
        raise RunError(
            f"resources.{stage}.num_gpus: {num_gpus:g} for each worker, and this machine has {len(gpus)}; lower it, or "
            "run on a cluster that has them (without --local)"
        )


def _gpus(num_gpus: float) -> list[str]:
    """Those of this machine, where any are asked for."""
    return visible_gpus() if num_gpus else []


def _share(gpus: list[str], place: int, num_gpus: float) -> str | None:
    """The `CUDA_VISIBLE_DEVICES` of the worker at a place; workers that ask for less than one GPU share one."""
    if not gpus:
        return None
    count = max(1, int(num_gpus))
    first = place // _num_sharing(num_gpus) * count
    return ",".join(gpus[first : first + count])


def _num_sharing(num_gpus: float) -> int:
    """How many workers fit on one GPU: three that ask for 0.3 each, not four."""
    return int(1 / num_gpus) if num_gpus < 1 else 1


# ---------------------------------------------------------------------------------------------------------------------
# In the worker's process


def _serve(pipe: Any, job: Job, name: str, environment: dict[str, str]) -> None:
    """Does shards whose names come over the pipe, until None comes or the driver is gone."""
    begin(environment)
    logging.basicConfig(level=logging.WARNING)
    lock = threading.Lock()

    def send(kind: str, values: dict[str, Any]) -> None:
        with lock, contextlib.suppress(OSError):  # the driver is gone, and so is this process in a moment
            pipe.send((kind, values))

    asyncio.run(_work(pipe, job, name, send))


async def _work(pipe: Any, job: Job, name: str, send: Callable[[str, dict[str, Any]], None]) -> None:
    loop = asyncio.get_running_loop()
    names: asyncio.Queue[str | None] = asyncio.Queue()

    def receive() -> None:
        try:
            while (shard := pipe.recv()) is not None:
                loop.call_soon_threadsafe(names.put_nowait, shard)
            loop.call_soon_threadsafe(names.put_nowait, None)
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    with reporting(job, name, lambda activity: send("activity", activity.__dict__)) as reporter:
        failure = None
        try:
            reporter.worker = job.build()
        except Exception as error:
            failure = ShardResult(job.stage, "", 0.0, "fatal", safe_message(error))
            logging.getLogger("stillhouse").error("%s: a worker cannot start: %s", job.stage, failure.message)

        async def process(shard: str) -> None:
            assert reporter.worker is not None
            send("result", (await reporter.worker.process(shard)).by(name).to_json())

        running = set()
        while (shard := await names.get()) is not None:
            if failure is not None:
                send("result", failure.to_json())
                continue
            running.add(task := asyncio.create_task(process(shard)))
            task.add_done_callback(running.discard)
    if reporter.worker is not None:
        await asyncio.to_thread(reporter.worker.close)


class Reporter:
    """What `reporting` asks; `worker` is None while it starts."""

    worker: Worker | None = None


@contextlib.contextmanager
def reporting(job: Job, name: str, tell: Callable[[Activity], None]) -> Iterator[Reporter]:
    """Has a thread tell every `ACTIVITY_EVERY_S` what a worker is doing."""
    reporter, ended = Reporter(), threading.Event()

    def report() -> None:
        while not ended.wait(ACTIVITY_EVERY_S):
            worker = reporter.worker
            tell(Activity(name, job.stage, job.step, is_starting=True) if worker is None else worker.activity(name))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield reporter
    finally:
        ended.set()
        thread.join()
