"""What layouts share when they read back: rows of a file as arrays, and what a trainer takes from one.

Shape legend: T tokens of a conversation, K targets per token.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.lists import flat_lists
from stillhouse.stages.layouts.rows import EMPTY_LOGPROB


class Conversation(NamedTuple):
    """A row of any layout, as next-token rows."""

    input_ids: npt.NDArray[Any]  # [T]
    is_row: npt.NDArray[np.bool_]  # [T] whether the trainer reads row j
    ids: npt.NDArray[Any]  # [rows read, K], 0 where there is nothing
    probs: npt.NDArray[np.float64]  # [rows read, K], 0 where there is nothing


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


def probabilities(logprobs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities in a rectangle: 0 in its empty places."""
    return np.where(logprobs <= EMPTY_LOGPROB, 0.0, np.exp(logprobs))
