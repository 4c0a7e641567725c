"""Processes below a process, by their ids: nothing is ended by its name."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any


def descendants(pid: int) -> dict[int, str]:
    """What runs below a process, by process id: raylet, gcs_server, or what Ray calls a worker."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(") ")[2].split()[1])
            below.setdefault(parent, []).append(int(path.parent.name))
    found, todo = {}, list(below.get(pid, []))
    while todo:
        child = todo.pop()
        todo += below.get(child, [])
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
            if words:
                found[child] = words[0].rpartition("/")[2]
    return found


def end_all(driver: "subprocess.Popen[Any]", family: dict[int, str]) -> None:
    """What is left of a killed driver's cluster ends by itself within seconds; here it is not waited for."""
    driver.kill()
    driver.wait(30)
    for pid, name in family.items():
        with contextlib.suppress(OSError):
            # A process id may be another's by now.
            if Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode().endswith(name):
                os.kill(pid, signal.SIGKILL)
