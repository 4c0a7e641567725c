"""List columns: made from arrays, and taken apart into arrays. The one place that slices and shifts Arrow's offsets.

Shape legend: T tokens of a conversation, P places (values of the outer list of all rows together), K values in each.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.tables import IGNORE_INDEX


def lists(offsets: npt.NDArray[Any], values: pa.Array) -> pa.ListArray:
    """list<...> of which row i is `values[offsets[i]:offsets[i + 1]]`."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def flat_lists(column: pa.Array | pa.ChunkedArray) -> pa.ListArray:
    """A column of lists as one array, whose offsets begin at 0 and whose values are those of its rows only."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no chunk, in some versions
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return lists(offsets - offsets[0], values)


def matrix(offsets: npt.NDArray[Any], values_PK: npt.NDArray[Any]) -> pa.ListArray:
    """list<list<...>>: row i holds rows `offsets[i]` to `offsets[i + 1]` of `values_PK`."""
    P, K = values_PK.shape
    return lists(offsets, lists(np.arange(P + 1, dtype=np.int64) * K, pa.array(values_PK.ravel())))


def supervised_runs(labels_T: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the runs of labels start and end [answers]: one is what is learned of an answer."""
    ours = np.concatenate([[False], labels_T != IGNORE_INDEX, [False]])
    edges = np.flatnonzero(ours[1:] != ours[:-1])
    return edges[::2], edges[1::2]
