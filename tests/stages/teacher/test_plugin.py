"""A process of an engine ends with the one that started it, however that started it, and not before; and waits without
a busy loop on a CPU."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from stillhouse.stages.teacher.plugin import ENGINE_MARK, begin, end_with_parent
from tests.support.data import ROOT


def live(seconds: float) -> None:
    end_with_parent()
    time.sleep(seconds)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.long
def test_it_lives_as_long_as_its_parent(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run --local` forks its workers from a server process."""
    monkeypatch.setenv(ENGINE_MARK, "1")
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=live, args=(2.5,))
    process.start()
    process.join(30)
    assert process.exitcode == 0


PARENT = """
import multiprocessing, sys
from tests.stages.teacher.test_plugin import live
if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=live, args=(600,))
    process.start()
    print(process.pid, flush=True)
    process.join()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.long
def test_it_ends_with_a_killed_parent(method: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, ENGINE_MARK: "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), method]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(2.0)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.long
def test_processes_of_an_engine_rest(is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has just read waits for the next message, as long as it was told to, instead of looking again."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    monkeypatch.setattr(SpinCondition.__init__, "__defaults__", SpinCondition.__init__.__defaults__)
    monkeypatch.delenv(ENGINE_MARK, raising=False)
    if is_ours:
        monkeypatch.setenv(ENGINE_MARK, "1")
    begin()
    context = zmq.Context()
    try:
        # With a writer, because ZeroMQ aborts where a connection is left without its other end.
        _, reader = (SpinCondition(is_reader, context, "inproc://written") for is_reader in (False, True))
        reader.record_read()
        before = time.monotonic()
        reader.wait(timeout_ms=100)
        waited = time.monotonic() - before
    finally:
        context.destroy(linger=0)
    assert (waited > 0.09) == is_ours
