"""Calls of a function in processes of this machine, whose results come in the order of the calls.

For what one process decides and many prepare: it sees the results as if it had made each itself. Each process has a
pipe of its own, so that its death is seen at any moment, amid a result too (in `ProcessPoolExecutor`, whose processes
share one, it is then waited for without end).
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from stillhouse.pipeline.errors import RunError, safe_error
from stillhouse.schemas.arrow import keep_pandas_out
from stillhouse.schemas.config import ConfigError, WorkersConfig
from stillhouse.stages.teacher.plugin import end_with_parent

Result = TypeVar("Result")


class InOrder(Protocol):
    """How a pool calls a function many times."""

    def __call__(
        self,
        function: Callable[..., Result],
        arguments: Iterable[tuple[Any, ...]],
        workers: WorkersConfig,
        attempts: int,
    ) -> Generator[Result]:
        """The results of `function` for each of `arguments`, in order. Arguments are taken, and results held, for twice
        as many calls as there are `workers`. A call whose process dies is made again, up to `attempts` times; an error
        of its own is raised in its turn, as `safe_error`."""
        ...


def called(function: Callable[..., Result], *given: Any) -> Result:
    """`function(*given)`. An error of any kind becomes one that another process can raise again, and that says what is
    safe to show."""
    try:
        return function(*given)
    except Exception as error:
        raise safe_error(error) from None


def died(attempts: int) -> RunError:
    """What is said where no process survives a call."""
    return RunError(
        f"a process died {attempts} times over the same work; where it has taken all memory, lower max_workers of the "
        "stage's resources, or --workers"
    )


def num_at_once(workers: WorkersConfig) -> int:
    """How many workers this machine has the cores for, one at least."""
    fit = int((os.cpu_count() or 1) / workers.num_cpus) if workers.num_cpus else workers.max_workers
    return max(1, min(workers.max_workers, fit))


def begin(environment: dict[str, str]) -> None:
    """What each process does first that the server has forked for another."""
    # Ctrl-C reaches every process of a terminal; the one that started this says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)  # the server's is that of when it was started
    keep_pandas_out()


def in_processes(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], workers: WorkersConfig, attempts: int
) -> Generator[Result]:
    """`InOrder` of this machine. Ends its processes with itself and with this one, however that ends. Of a single core
    this process makes use by itself."""
    num_processes = num_at_once(workers)
    if num_processes == 1:
        yield from (called(function, *given) for given in arguments)
        return
    to_come, to_give = enumerate(arguments), deque[_Call]()
    told: queue.SimpleQueue[tuple[_Process, _Told | None]] = queue.SimpleQueue()
    found, deaths, number = dict[int, _Told](), Counter[int](), 0
    processes = [_Process(function, told) for _ in range(num_processes)]
    num_under_way = 0  # taken, and not yet given out
    try:
        while True:
            while num_under_way < 2 * num_processes and (call := next(to_come, None)) is not None:
                to_give.append(_Call(*call))
                num_under_way += 1
            if not num_under_way:
                return
            # Two each: one that it makes, and one for the time until this process looks again.
            while to_give and len((freest := min(processes, key=lambda one: len(one.calls))).calls) < 2:
                freest.give(to_give.popleft())
            if number in found:
                result = found.pop(number)
                number, num_under_way = number + 1, num_under_way - 1
                if result.error is not None:
                    raise result.error
                yield result.value
                continue
            process, answer = told.get()
            if answer is not None:
                process.calls.popleft()
                found[answer.number] = answer
                continue
            processes.remove(process)
            process.end()
            over = process.calls[0].number if process.calls else -1  # one that makes nothing could die for ever, too
            deaths[over] += 1
            if deaths[over] == attempts:
                raise died(attempts)
            to_give.extendleft(reversed(process.calls))
            processes.append(_Process(function, told))
    finally:
        for process in processes:
            process.end()


class _Call(NamedTuple):
    number: int
    given: tuple[Any, ...]


class _Told(NamedTuple):
    number: int
    value: Any
    error: RunError | ConfigError | None


class _Process:
    """One that makes calls, as it is seen from here."""

    def __init__(self, function: Callable[..., Any], told: "queue.SimpleQueue[tuple[_Process, _Told | None]]") -> None:
        self.calls: deque[_Call] = deque()
        """Given to it and not yet answered; it makes the first of them."""
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, function, dict(os.environ)))
        self._process.start()
        theirs.close()
        self._listener = threading.Thread(target=self._listen, args=(told,), daemon=True)
        self._listener.start()

    def give(self, call: _Call) -> None:
        self.calls.append(call)
        with contextlib.suppress(OSError):  # it died, which `_listen` tells
            self._pipe.send(call)

    def end(self) -> None:
        self._process.terminate()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._listener.join()  # nobody else holds the pipe's other end
        self._pipe.close()

    def _listen(self, told: "queue.SimpleQueue[tuple[_Process, _Told | None]]") -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                told.put((self, self._pipe.recv()))
        told.put((self, None))


def _serve(pipe: Any, function: Callable[..., Any], environment: dict[str, str]) -> None:
    end_with_parent()
    begin(environment)
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, given = pipe.recv()
            try:
                told = _Told(number, called(function, *given), None)
            except (RunError, ConfigError) as error:
                told = _Told(number, None, error)
            pipe.send(told)
