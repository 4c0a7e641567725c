"""A Python of its own: for settings that are read at import, and for peaks of memory."""

import os
import subprocess
import sys

from tests.support.data import ROOT


def run_python(code: str, *args: str, **env: str) -> str:
    """What `code` prints, run in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
