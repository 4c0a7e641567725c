"""What layouts share when they read back: rows of a file as arrays, and what a trainer takes from one.

Shape legend: T tokens of a conversation, K targets per token.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.lists import flat_lists
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.layouts.rows import EMPTY_LOGPROB


class Conversation(NamedTuple):
    """A row of any layout, as next-token rows."""

    input_ids: npt.NDArray[Any]  # [T]
    is_row: npt.NDArray[np.bool_]  # [T] whether the trainer reads row j
    ids: npt.NDArray[Any]  # [rows read, K], 0 where there is nothing
    probs: npt.NDArray[np.float64]  # [rows read, K], 0 where there is nothing
    num_tokens: int | None = None  # of the conversation, where `input_ids` is longer


class Ragged(NamedTuple):
    """A list of lists of one conversation."""

    lengths: npt.NDArray[np.int64]  # [T]
    values: npt.NDArray[Any]  # [sum of lengths]

    def matrix(self, width: int | None = None) -> npt.NDArray[Any]:
        """[T, width]; raises ValueError where a row has another length."""
        width = int(self.lengths.max(initial=0)) if width is None else width
        if (self.lengths != width).any():
            raise ValueError(f"rows of {self.lengths.min(initial=0)} to {self.lengths.max(initial=0)}, not all {width}")
        return self.values.reshape(len(self.lengths), width)

    def padded(self) -> npt.NDArray[Any]:
        """[T, longest], zeros at the ends."""
        filled = np.zeros((len(self.lengths), int(self.lengths.max(initial=0))), dtype=self.values.dtype)
        filled[np.arange(filled.shape[1]) < self.lengths[:, None]] = self.values
        return filled


def records(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Each row's columns: arrays, and `Ragged` where they are lists of lists."""
    columns = {}
    for name in table.column_names:
        column = flat_lists(table.column(name))
        outer = column.offsets.to_numpy()
        if not pa.types.is_list(column.type.value_type):
            columns[name] = (outer, None, column.values.to_numpy(zero_copy_only=False))
        else:
            inner = column.values
            columns[name] = (outer, inner.offsets.to_numpy(), inner.values.to_numpy(zero_copy_only=False))
    for i in range(table.num_rows):
        record: dict[str, Any] = {}
        for name, (outer, inner, values) in columns.items():
            start, end = outer[i], outer[i + 1]
            if inner is None:
                record[name] = values[start:end]
            else:
                ends = inner[start : end + 1].astype(np.int64)
                record[name] = Ragged(np.diff(ends), values[ends[0] : ends[-1]])
        yield record


def rows_read(
    logprobs_TK: npt.NDArray[np.float64], is_row: npt.NDArray[np.bool_], what: str
) -> npt.NDArray[np.float64]:
    """Probabilities of the rows that are read, out of a rectangle: 0 in its empty places. Raises ValueError where other
    rows are not empty, and as `require_numbers` does."""
    require_numbers(logprobs_TK, what)
    if (filled := (logprobs_TK > EMPTY_LOGPROB).any(axis=1) & ~is_row).any():
        raise ValueError(f"{int(filled.sum())} rows of {what} hold targets where the mask reads none")
    return np.where(logprobs_TK[is_row] <= EMPTY_LOGPROB, 0.0, np.exp(logprobs_TK[is_row]))


def require_numbers(values: npt.NDArray[Any], what: str) -> None:
    """Raises ValueError where one is NaN or infinite: a trainer's arithmetic spreads it, masked places included."""
    if wrong := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{wrong} of {values.size} {what} are NaN or infinite")


def require_ids(ids: npt.NDArray[Any], vocab_size: int, what: str) -> None:
    """Raises ValueError where one is outside of the vocabulary, in masked places too: trainers look all of them up."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"{what} from {ids.min()} to {ids.max()}, outside of a vocabulary of {vocab_size:,}")


def require_labels(labels: npt.NDArray[Any], input_ids: npt.NDArray[Any]) -> None:
    """Raises ValueError where a label is another id than the token at its place."""
    wrong = (labels != IGNORE_INDEX) & (labels != input_ids)
    if wrong.any():
        raise ValueError(f"labels differ from input_ids at {int(wrong.sum())} tokens")
