"""Work in a forked child, which may die of it: much cheaper than a new interpreter that imports everything again."""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_child(work: Callable[[], object], timeout_s: int = 120) -> int:
    """The exit status of a child that did `work`: 0, 70 for an exception, minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(timeout_s)
        code = 70
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(step: int) -> None:
    """Has this process killed right before its `step`-th call that changes the storage."""
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return count_and_call

    for name in ("fsync", "link"):
        setattr(os, name, counted(getattr(os, name)))
    for name in ("replace", "unlink", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
