"""Calls in other processes: their order, how far ahead, deaths, errors, and that none outlives who called."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.in_order import in_processes, num_at_once
from stillhouse.schemas.config import ConfigError, WorkersConfig
from stillhouse.stages.sources import SourceError
from tests.support.processes import descendants

TWO = WorkersConfig(max_workers=2, num_cpus=0.1)


def slow_at_first(number: int) -> tuple[int, int]:
    time.sleep(0.2 if number == 0 else 0.0)
    return number, os.getpid()


def last(number: int) -> int:
    time.sleep(60 if number else 0)
    return number


def die_once(folder: str, number: int) -> int:
    if number == 3:
        try:
            (Path(folder) / "died").mkdir()
        except FileExistsError:
            return number
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    if number == 2:
        raise SourceError("b.jsonl: is HTML or XML")
    return number


def refuse(name: str) -> None:
    raise ConfigError(f"source.path: {name} is no file")


class OddError(Exception):
    """Cannot be made again by its arguments, and holds what nobody may see."""

    def __init__(self, text: str, more: object) -> None:
        super().__init__(text)
        self.more = more


def fail_oddly(text: str) -> None:
    raise OddError(text, lambda: None)


class Torn:
    """Ends the process that sends it when half of it has gone; or keeps it there."""

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        send = multiprocessing.connection.Connection._send  # type: ignore[attr-defined]

        def torn(connection: object, data: bytes, *others: object) -> None:
            send(connection, bytes(data)[: len(data) // 2], *others)
            if self.ends:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

        multiprocessing.connection.Connection._send = torn  # type: ignore[attr-defined]
        return bytes, (bytes(1_000_000),)


def send_torn(folder: str, number: int, ends: bool) -> object:
    if number == 3 and not (Path(folder) / "torn").exists():
        (Path(folder) / "torn").mkdir()
        return Torn(ends)
    return number


def environment(name: str) -> str | None:
    return os.environ.get(name)


def test_results_come_in_order_and_calls_are_made_a_little_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[tuple[int]]:
        for number in range(9):
            taken.append(number)
            yield (number,)

    results = in_processes(slow_at_first, numbers(), TWO, 3)
    first, pid = next(results)
    assert first == 0
    assert len(taken) == 4
    rest = list(results)
    assert [number for number, _ in rest] == [*range(1, 9)]
    assert os.getpid() not in {pid, *(of for _, of in rest)}
    monkeypatch.setenv("SEEN_BY_WORKERS", "yes")  # after the server that forks them has started
    assert list(in_processes(environment, [("SEEN_BY_WORKERS",)], TWO, 3)) == ["yes"]


def test_a_call_whose_process_dies_is_made_again(tmp_path: Path) -> None:
    assert list(in_processes(die_once, ((str(tmp_path), n) for n in range(7)), TWO, 2)) == [*range(7)]
    assert (tmp_path / "died").exists()


def test_a_call_that_ends_its_process_each_time_ends_the_run_with_a_sentence() -> None:
    results = in_processes(die, ((n,) for n in range(5)), TWO, 2)
    with pytest.raises(RunError, match="a process died 2 times over the same work; where it has taken all memory"):
        assert list(results) == []
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_amid_a_result(tmp_path: Path) -> None:
    arguments = ((str(tmp_path), n, True) for n in range(7))
    assert list(in_processes(send_torn, arguments, TWO, 2)) == [*range(7)]


def test_whoever_stops_listening_amid_a_result_leaves_no_process(tmp_path: Path) -> None:
    results = in_processes(send_torn, ((str(tmp_path), n, False) for n in range(7)), TWO, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    until = time.monotonic() + 20
    while not (tmp_path / "torn").exists() and time.monotonic() < until:
        time.sleep(0.05)
    results.close()
    assert multiprocessing.active_children() == []
    assert [thread.name for thread in threading.enumerate() if "_listen" in thread.name] == []


def test_an_error_comes_in_its_turn() -> None:
    results, seen = in_processes(fail, ((n,) for n in range(5)), TWO, 3), list[int]()
    with pytest.raises(RunError, match=r"b\.jsonl: is HTML or XML"):
        seen.extend(results)
    assert seen == [0, 1]
    with pytest.raises(RunError, match=r"^OddError at test_in_order\.py:\d+$"):
        list(in_processes(fail_oddly, [("secret",)], TWO, 3))
    with pytest.raises(ConfigError, match=r"^source\.path: x is no file$"):  # for which a command has a code of its own
        list(in_processes(refuse, [("x",)], TWO, 3))


def test_whoever_stops_listening_leaves_no_process() -> None:
    results = in_processes(last, ((n,) for n in range(100)), TWO, 3)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []


@pytest.mark.long
def test_processes_end_with_one_that_is_killed() -> None:
    script = (
        "import tests.pipeline.test_in_order as t; from stillhouse.pipeline.in_order import in_processes\n"
        "for _ in in_processes(t.last, ((n,) for n in range(10**9)), t.TWO, 3): print(flush=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    processes = descendants(parent.pid)
    assert len(processes) >= 3  # two, and the server that forked them
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in processes) and time.monotonic() < until:
        time.sleep(0.1)
    assert [name for pid, name in processes.items() if Path(f"/proc/{pid}").exists()] == []


def test_a_machine_has_so_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert num_at_once(WorkersConfig(max_workers=8)) == 4
    assert num_at_once(WorkersConfig(max_workers=2)) == 2
    assert num_at_once(WorkersConfig(max_workers=8, num_cpus=8)) == 1
    # One core is enough for none beside this process.
    results = in_processes(slow_at_first, ((n,) for n in range(1, 3)), WorkersConfig(max_workers=1), 3)
    assert {pid for _, pid in results} == {os.getpid()}
