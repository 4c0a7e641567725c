"""How long a prompt is, in a few steps that are four times as long as the one before."""

from bisect import bisect_left
from collections.abc import Sequence

STEPS = (64, 256, 1024, 4096)
"""Characters of all user turns: the most that are in a step."""


def length(turns: Sequence[str]) -> str:
    """The step of all user turns together: `0-64`, `65-256`, `257-1024`, `1025-4096` or `4097-`."""
    place = bisect_left(STEPS, sum(map(len, turns)))
    start = STEPS[place - 1] + 1 if place else 0
    return f"{start}-{STEPS[place]}" if place < len(STEPS) else f"{start}-"
