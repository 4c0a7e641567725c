"""How the values of narrow columns are distributed over all rows: quantiles of numbers, counts of names."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.look.conversation import HEAVY
from stillhouse.pipeline.look.place import Place
from stillhouse.pipeline.look.quantiles import quantiles

MAX_VALUES = 20
"""Names counted one by one; the rest together."""
MAX_NUMBERS = 50_000_000
"""Values in memory at once: with more rows columns are read in several passes."""
NUM_READERS = 4
_NOT_DESCRIBED = HEAVY | {"source_row", "probe"}
_NAMES = ("teacher", "language", "source", "redacted", "moderation_flagged", "finish_reasons", "rendering_differs")


def distributions(place: Place, files: list[str], num_rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the rows of some files of one schema: by numeric column count, nulls, mean, minimum, quantiles and maximum;
    by column of names how often each is there, most frequent first (`null` where it is none)."""
    if not files:
        return {}, {}
    numeric = _numeric(place.open(files[0]).schema)
    numbers: dict[str, Any] = {}
    counts: dict[str, Counter[str]] = {}
    step = max(1, MAX_NUMBERS // max(num_rows, 1))
    for start in range(0, max(len(numeric), 1), step):
        columns = numeric[start : start + step]
        names = _NAMES if start == 0 else ()

        def read(
            key: str, columns: list[str] = columns, names: tuple[str, ...] = names
        ) -> tuple[list[npt.NDArray[Any]], dict[str, Counter[str]]]:
            table = place.open(key).read([*columns, *names])
            counted = {name: _counted(table.column(name)) for name in names if name in table.column_names}
            table = table.flatten()
            return [table.column(name).to_numpy().astype(np.float32) for name in columns], counted  # null: NaN

        with ThreadPoolExecutor(NUM_READERS) as pool:
            parts = list(pool.map(read, files))
        for i, name in enumerate(columns):
            numbers[name] = _described(np.concatenate([part[i] for part, _ in parts]))
        for _, counted in parts:
            for name, found in counted.items():
                counts.setdefault(name, Counter()).update(found)
    return numbers, {name: _most(found) for name, found in counts.items()}


def _numeric(schema: pa.Schema) -> list[str]:
    """Paths of columns that hold one number, also in structs."""
    found = []
    for field in schema:
        if field.name in _NOT_DESCRIBED:
            continue
        leaves = [(f"{field.name}.{f.name}", f.type) for f in field.type] if pa.types.is_struct(field.type) else []
        found += [
            name
            for name, kind in leaves or [(field.name, field.type)]
            if pa.types.is_integer(kind) or pa.types.is_floating(kind)
        ]
    return found


def _described(values: npt.NDArray[Any]) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    found: dict[str, Any] = {"count": len(known), "nulls": len(values) - len(known)}
    if not len(known):
        return found
    told = {name: _plain(value) for name, value in quantiles(known).items()}
    return found | {"mean": _plain(known.mean(dtype=np.float64))} | told


def _plain(value: Any) -> float | int:
    value = float(f"{float(value):.6g}")
    return int(value) if value.is_integer() else value


def _counted(column: pa.ChunkedArray) -> Counter[str]:
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    pairs = pc.value_counts(values).to_pylist()
    return Counter({"null" if pair["values"] is None else str(pair["values"]): pair["counts"] for pair in pairs})


def _most(counts: Counter[str]) -> dict[str, int]:
    most = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_VALUES])
    rest = counts.total() - sum(most.values())
    return most | ({"(others)": rest} if rest else {})
