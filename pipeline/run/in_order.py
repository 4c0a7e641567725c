"""Calls of a function in processes of this machine, whose results come in the order of the calls.

For what one process decides and many prepare: it sees the results as if it had made each itself.
"""

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Protocol, TypeVar

from stillhouse.pipeline.errors import RunError
from stillhouse.schemas.arrow import keep_pandas_out
from stillhouse.schemas.config import WorkersConfig
from stillhouse.stages.teacher.plugin import end_with_parent

Result = TypeVar("Result")


def died(attempts: int) -> RunError:
    """What is said where no process survives a call."""
    return RunError(
        f"a process died {attempts} times over the same work; where it has taken all memory, lower max_workers of the "
        "stage's resources"
    )


class InOrder(Protocol):
    """How a pool calls a function many times."""

    def __call__(
        self,
        function: Callable[..., Result],
        arguments: Iterable[tuple[Any, ...]],
        workers: WorkersConfig,
        attempts: int,
    ) -> Generator[Result]:
        """The results of `function` for each of `arguments`, in order. Arguments are taken, and results held, for one
        call more than there are `workers`. A call whose process dies is made again, up to `attempts` times; an error of
        its own is raised in its turn."""
        ...


def in_processes(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], workers: WorkersConfig, attempts: int
) -> Generator[Result]:
    """`InOrder` of this machine. Ends its processes with itself and with this one, however that ends. Of a single core
    this process makes use by itself."""
    num_processes = num_at_once(workers)
    if num_processes == 1:
        yield from (function(*given) for given in arguments)
        return
    context = multiprocessing.get_context("forkserver")

    def started() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(num_processes, context, _begin, (dict(os.environ),))

    to_do, num_deaths = iter(arguments), 0
    waiting: deque[tuple[tuple[Any, ...], Future[Result] | None]] = deque()
    others, executor = {*multiprocessing.active_children()}, started()
    try:
        while True:
            waiting.extend((given, None) for given in islice(to_do, num_processes + 1 - len(waiting)))
            if not waiting:
                return
            try:
                for i, (given, future) in enumerate(waiting):
                    waiting[i] = (given, future or executor.submit(function, *given))
                first = waiting[0][1]
                assert first is not None
                result = first.result()
            except BrokenProcessPool:
                num_deaths += 1
                if num_deaths == attempts:
                    raise died(attempts) from None
                executor.shutdown(wait=False)
                executor = started()
                waiting = deque((given, None) for given, _ in waiting)
                continue
            waiting.popleft()
            num_deaths = 0
            yield result
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in {*multiprocessing.active_children()} - others:
            with contextlib.suppress(ValueError):  # closed meanwhile
                child.terminate()
                child.join(5)


def num_at_once(workers: WorkersConfig) -> int:
    """How many workers this machine has the cores for, one at least."""
    fit = int((os.cpu_count() or 1) / workers.num_cpus) if workers.num_cpus else workers.max_workers
    return max(1, min(workers.max_workers, fit))


def _begin(environment: Mapping[str, str]) -> None:
    # Ctrl-C reaches every process of a terminal; the one that called says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    os.environ.clear()
    os.environ.update(environment)  # the server's, which forked this process, is that of when it was started
    keep_pandas_out()
