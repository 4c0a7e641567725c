"""Answers as token ids."""

from collections.abc import Sequence


def tokens(*answers: Sequence[int]) -> list[int]:
    """A labels column's row: each answer after two tokens of prompt."""
    return [token for answer in answers for token in (-100, -100, *answer)]
