"""A row of a source as it was read, or the reason why it could not be read."""

from typing import NamedTuple

MAX_ROW_BYTES = 32 << 20
"""More is not a conversation. Without a bound, one missing newline or quote could fill the memory."""

# Why a row could not be read. `stages.ingest.REASONS` explains them beside its own.
INVALID_JSON = "invalid_json"
INVALID_CSV = "invalid_csv"
UNDECODABLE = "undecodable"
TRUNCATED_SOURCE = "truncated_source"
ROW_TOO_LARGE = "row_too_large"
# Why it has no conversation that can be used.
MISSING_CONVERSATION = "missing_conversation"
MALFORMED_CONVERSATION = "malformed_conversation"
TRANSCRIPT = "transcript"
UNKNOWN_ROLE = "unknown_role"
NOT_TEXT = "not_text"


class SourceError(ValueError):
    """A source that cannot be read as configured."""


class RefusedError(Exception):
    """A row is dropped, for a reason. Holds no text of the row."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Row(NamedTuple):
    """One row of a source: its parsed value, or the reason why there is none."""

    value: object | None
    error: str | None = None


class Part(NamedTuple):
    """A part of a file that can be read apart from the others: row groups of Parquet, bytes of JSON lines."""

    begin: int
    end: int
    num_bytes: int
    """What of the file it takes, about."""


class BrokenStreamError(Exception):
    """Compressed bytes that end early or are damaged."""
