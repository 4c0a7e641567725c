"""Work on many files: which errors come through, deaths, and that no process goes on after the command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillhouse.pipeline.dataset.processes import in_processes
from stillhouse.pipeline.errors import DamagedError, RunError
from stillhouse.schemas.config import ConfigError
from tests.support.processes import descendants, end_all

SCRIPT = """
import signal
from stillhouse.pipeline.dataset.processes import in_processes
from tests.pipeline.dataset.test_processes import slow
for by in (signal.SIGTERM, signal.SIGINT):  # as the command has it; SIGINT is ignored in the background of a shell
    signal.signal(by, signal.default_int_handler)
for _ in in_processes(slow, range(9), 2):
    print(flush=True)
"""


def slow(number: int) -> int:
    time.sleep(600 if number else 0)
    return number


def die(place: str) -> str:
    """Dies as often as there are files in `place`, one less each time."""
    for file in Path(place).glob("*"):
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return place


def fail(error: Exception) -> None:
    raise error


def test_a_file_whose_process_dies_is_made_again_and_then_given_up_with_a_sentence(tmp_path: Path) -> None:
    places = [str(tmp_path / name) for name in ("a", "b", "c")]
    for place in places:
        Path(place).mkdir()
    (tmp_path / "b/once").touch()
    assert list(in_processes(die, places, 2)) == places
    for number in range(3):
        (tmp_path / f"b/{number}").touch()
    with pytest.raises(RunError, match=r"a process died 3 times.*lower.*--workers"):
        list(in_processes(die, places, 2))


@pytest.mark.parametrize("kind", [ConfigError, DamagedError])
def test_errors_of_ours_keep_their_kind(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="a: is b; do c"):
        list(in_processes(fail, [kind("a: is b; do c"), kind("d")], 2))


def test_other_errors_say_what_is_safe() -> None:
    with pytest.raises(RunError, match=r"^ValueError at test_processes\.py:\d+$"):
        list(in_processes(fail, [ValueError("a prompt"), ValueError()], 2))


@pytest.mark.long
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_command(by: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    parent.stdout.readline()
    processes = descendants(parent.pid)
    assert len(processes) >= 2
    try:
        parent.send_signal(by)
        parent.wait(20)
        until = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in processes) and time.monotonic() < until:
            time.sleep(0.1)
        assert [name for pid, name in processes.items() if Path(f"/proc/{pid}").exists()] == []
    finally:
        end_all(parent, processes)
        parent.stdout.close()
