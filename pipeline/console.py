"""What people read while a command works: standard error, and nothing else."""

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def message(text: str = "") -> None:
    """A line for people. It is dropped where nobody can read it: no work ends for want of a reader."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard(sys.stderr)
    except OSError:  # a full disk, which may have room again for the next one
        pass


def discard(stream: TextIO) -> None:
    """From here on, drops what is written to `stream`, whose reader is gone, and what waits in it: Python would fail
    over that at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def rich() -> "Console":
    """For tables and colours. Markup, emoji codes and highlighting are off: what is printed may be anybody's text."""
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def drop_lines(pattern: str) -> None:
    """From here on, lines that match `pattern` (of `grep -E`) reach neither standard output nor standard error, whoever
    writes them in this process: C++ threads, and Python's own objects that exist by now. `message` is not affected.

    grep is a process of its own, so that last words arrive also where this process is aborted. Without it, all lines
    come.
    """
    if shutil.which("grep") is None:
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    grep = subprocess.Popen(
        ["grep", "--line-buffered", "--text", "-Ev", pattern],
        stdin=subprocess.PIPE,
        stdout=terminal,
        start_new_session=True,
    )
    assert grep.stdin is not None
    for descriptor in (1, 2):
        os.dup2(grep.stdin.fileno(), descriptor)
    grep.stdin.close()
    grep.returncode = 0  # ends when the last writer has: it is not waited for
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
