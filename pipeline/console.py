"""What people read while a command works: standard error, and nothing else."""

import sys


def message(text: str = "") -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)
