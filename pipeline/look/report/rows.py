"""The scalars of every published row, read by columns: what histograms, quantiles and the sample are made of.

In memory are 8 bytes per row and numeric column, 4 per other column, and the lists of a few shards at a time.
Shape legend: R rows of the data set, N of them in the sample.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder.shard import METADATA_KEY
from stillhouse.pipeline.look.place import Place
from stillhouse.schemas.lists import flat_lists
from stillhouse.schemas.targets import TAIL_FLOOR
from stillhouse.stages.teacher import fidelity

NUM_READERS = 8
"""Shards that are read at once: an object store takes its time, and each may hold some 10 MB of lists."""
IDS = ("sample_id", "prompt_id", "cluster_id")
STRUCTS = ("_scores", "_personal")
"""Ends of names of structs, a column for each field."""
SURPRISAL, OUTSIDE, ENDED, TURNS = "mean surprisal", "mean mass outside", "ended by", "answers"
ENTROPY = "mean entropy of the teacher"
"""Columns that are made here from lists, one value for each row."""


class RowAt(NamedTuple):
    """Where a published row is."""

    key: str
    number: int


@dataclass(frozen=True)
class Rows:
    """Every published row, in the order of the files."""

    numbers: dict[str, NDArray[np.float64]]
    """[R] by column; NaN where there is none."""
    words: dict[str, pa.DictionaryArray]
    """[R] by column; null where there is none."""
    order: NDArray[np.uint64]
    """[R] the beginning of the SHA-256 of `sample_id`: the rows with the smallest ones are the sample, so that neither
    shards nor workers matter."""
    files: list[tuple[str, int]]
    """Key and rows of each file."""
    fidelity: dict[str, Any]
    """`stages.teacher.fidelity.statistics` of all of them together."""

    @property
    def num_rows(self) -> int:
        return len(self.order)

    def sample(self, most: int) -> NDArray[np.int64]:
        """[N] numbers of at most so many rows, by `order`: a smaller sample is the beginning of a larger one."""
        return np.argsort(self.order, kind="stable")[:most]

    def place(self, row: int) -> RowAt:
        """Where row `row` of all is."""
        for key, count in self.files:
            if row < count:
                return RowAt(key, row)
            row -= count
        raise IndexError(row)


class _Part(NamedTuple):
    """`Rows` of one file."""

    numbers: dict[str, NDArray[np.float64]]
    words: dict[str, pa.Array]
    order: NDArray[np.uint64]
    fidelity: dict[str, Any]


def read(place: Place) -> Rows:
    """All published rows of a run or dataset. Raises `DamagedError` where a file is not what it should be."""
    files = place.stages.get(keys.PUBLISH, [])
    with ThreadPoolExecutor(NUM_READERS) as pool:
        parts = list(pool.map(lambda key: _read(place, key), files))
    numbers = {name: np.concatenate([part.numbers[name] for part in parts]) for name in (parts or [_EMPTY])[0].numbers}
    words = {}
    for name in (parts or [_EMPTY])[0].words:
        column = pa.chunked_array([part.words[name] for part in parts]).unify_dictionaries().combine_chunks()
        words[name] = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    return Rows(
        numbers,
        words,
        np.concatenate([part.order for part in parts]) if parts else np.zeros(0, np.uint64),
        [(key, len(part.order)) for key, part in zip(files, parts, strict=True)],
        fidelity.merged(part.fidelity for part in parts),
    )


_EMPTY = _Part({}, {}, np.zeros(0, np.uint64), {})


def _read(place: Place, key: str) -> _Part:
    shard = place.open(key)
    scalars = [field.name for field in shard.schema if _is_scalar(field.type) or field.name.endswith(STRUCTS)]
    lists = ["token_logprobs", "teacher_entropy", "target_tail", "finish_reasons"]
    table = shard.read([*scalars, *lists])
    numbers: dict[str, NDArray[np.float64]] = {}
    words: dict[str, pa.Array] = {}
    for name, column in _flattened(table, scalars):
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if name in IDS:
            continue
        if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
            numbers[name] = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        else:
            words[name] = array.cast(pa.string()).dictionary_encode()
    if "token_logprobs" in table.column_names:
        numbers[SURPRISAL] = _means(table["token_logprobs"], lambda values: -values)
    if "target_tail" in table.column_names:
        # The floor stands for everything below it. Of a token that has no targets all is outside, and it says nothing.
        outside = _means(table["target_tail"], lambda v: np.where((v <= TAIL_FLOOR) | (v == 0.0), 0.0, np.exp(v)))
        with np.errstate(invalid="ignore"):
            numbers[OUTSIDE] = outside / _means(table["target_tail"], lambda v: v < 0.0)
    if "teacher_entropy" in table.column_names:
        numbers[ENTROPY] = _means(table["teacher_entropy"], lambda values: values)
    if "finish_reasons" in table.column_names:
        reasons = flat_lists(table["finish_reasons"])
        starts, values = reasons.offsets.to_numpy(), reasons.values.to_pylist()
        ended = ["length" if "length" in values[a:b] else "stop" for a, b in itertools.pairwise(starts)]
        words[ENDED] = pa.array(ended, pa.string()).dictionary_encode()
        numbers[TURNS] = np.diff(starts).astype(np.float64)
    metadata = shard.metadata.metadata or {}
    info = json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else {}
    return _Part(numbers, words, _order(table["sample_id"].to_pylist()), info.get("fidelity", {}))


def _is_scalar(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _flattened(table: pa.Table, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Columns by name; those of a struct by dotted names."""
    found = []
    for name in names:
        column = table[name]
        if pa.types.is_struct(column.type):
            found += [(f"{name}.{field.name}", pc.struct_field(column, field.name)) for field in column.type]
        else:
            found.append((name, column))
    return found


def _means(column: pa.ChunkedArray, of: Any) -> NDArray[np.float64]:
    """[rows] the mean over each row's list of `of` its values; NaN of an empty list."""
    lists = flat_lists(column)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    sums = np.concatenate([[0.0], np.cumsum(of(lists.values.to_numpy(zero_copy_only=False).astype(np.float64)))])
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.diff(sums[offsets]) / np.diff(offsets)
    return means


def _order(ids: list[str]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in ids)
    return np.frombuffer(digests, ">u8").astype(np.uint64)
