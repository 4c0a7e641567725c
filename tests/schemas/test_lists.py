"""List columns, against the same columns as lists of Python lists."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas.lists import flat_lists, lists, matrix

ROWS = [[1, 2], [], [3], [4, 5, 6], []]
NESTED = [[[1, 2], []], [], [[3]], [[], [4, 5, 6]]]


def parts(rows: list[Any], cuts: list[int]) -> pa.ChunkedArray:
    """A column of `rows` cut into chunks, each a slice of one longer array."""
    around = [[9, 9], *rows, [9]] if rows is ROWS else [[[9]], *rows, [[9]]]
    array = pa.array(around)
    bounds = [0, *cuts, len(rows)]
    chunks = [array.slice(1 + start, end - start) for start, end in pairwise(bounds)]
    return pa.chunked_array(chunks)


def test_made_of_offsets_and_values() -> None:
    made = lists(np.array([0, 2, 2, 3, 6, 6]), pa.array(range(1, 7)))
    assert made.to_pylist() == ROWS
    assert lists(np.zeros(1, np.int64), pa.array([], pa.int8())).to_pylist() == []


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_any_integer_counts_as_an_offset(dtype: Any) -> None:
    assert lists(np.array([0, 1, 3], dtype), pa.array(["a", "b", "c"])).to_pylist() == [["a"], ["b", "c"]]


@pytest.mark.parametrize("cuts", [[], [2], [0, 1, 1, 4]])
@pytest.mark.parametrize("rows", [ROWS, NESTED], ids=["flat", "nested"])
def test_taken_apart_whatever_its_chunks(rows: list[Any], cuts: list[int]) -> None:
    flat = flat_lists(parts(rows, cuts))
    assert flat.to_pylist() == rows
    assert flat.offsets.to_pylist() == np.cumsum([0, *map(len, rows)]).tolist()
    assert flat.values.to_pylist() == [value for row in rows for value in row], "nothing of the rows around"


def test_a_slice_of_one_array_is_taken_apart() -> None:
    flat = flat_lists(pa.array(ROWS).slice(2, 2))
    assert (flat.offsets.to_pylist(), flat.values.to_pylist()) == ([0, 1, 4], [3, 4, 5, 6])


@pytest.mark.parametrize("chunks", [[], [[]], [[], []]])
def test_no_rows(chunks: list[Any]) -> None:
    flat = flat_lists(pa.chunked_array(chunks, pa.list_(pa.float32())))
    assert (len(flat), flat.offsets.to_pylist(), len(flat.values)) == (0, [0], 0)
    assert flat.type == pa.list_(pa.float32())


def test_rows_of_a_matrix() -> None:
    values_PK = np.arange(12, dtype=np.float32).reshape(4, 3)
    made = matrix(np.array([0, 1, 1, 4]), values_PK)
    assert made.to_pylist() == [[values_PK[0].tolist()], [], values_PK[1:].tolist()]
    assert made.type == pa.list_(pa.list_(pa.float32()))
    assert matrix(np.zeros(1, np.int64), np.zeros((0, 3), np.uint8)).to_pylist() == []
    assert matrix(np.array([0, 2]), np.zeros((2, 0), np.int32)).to_pylist() == [[[], []]]
