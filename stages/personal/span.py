"""A place in a text that holds personal information."""

from typing import NamedTuple


class Span(NamedTuple):
    start: int
    end: int
