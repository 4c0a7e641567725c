"""A row of a source as it was read, or the reason why it could not be read."""

from typing import NamedTuple

# Why a row could not be read. `stages.ingest.REASONS` explains them beside its own.
INVALID_JSON = "invalid_json"
UNDECODABLE = "undecodable"
TRUNCATED_SOURCE = "truncated_source"
ROW_TOO_LARGE = "row_too_large"


class SourceError(ValueError):
    """A source that cannot be read as configured."""


class Row(NamedTuple):
    """One row of a source: its parsed value, or the reason why there is none."""

    value: object | None
    error: str | None = None


class BrokenStreamError(Exception):
    """Compressed bytes that end early or are damaged."""
