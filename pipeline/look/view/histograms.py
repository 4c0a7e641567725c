"""How the values of a column are distributed over the rows of a query: bars, each with the filter that selects it."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.pipeline.look.view.columns import Column
from stillhouse.pipeline.look.view.engine import Asking, located
from stillhouse.pipeline.look.view.queries import MAX_LENGTH
from stillhouse.pipeline.look.view.rows import Places, Stage

NUM_BARS = 20
NUM_VALUES = 6
"""Values of a text that get a bar of their own."""
MAX_LABEL = 100
FEW = 60
"""A text with more different values than that, or hardly a value twice, is shown by its lengths."""


def histogram(stage: Stage, column: Column, places: Places | None, asking: Asking) -> dict[str, Any]:
    """{"rows", "nulls", "of": "values" or "lengths", "others", "bars": [{"label", "count", "filter"}]} over the rows at
    `places`, or all. "others" are rows with a value that has no bar. Raises `SQLError`."""
    source, tables = located(stage.name), {}
    if places is not None:
        tables["chosen"] = pa.table(
            {"file_index": (places >> 40).astype(np.uint64), "file_row_number": places & ((1 << 40) - 1)}
        )
        source += " SEMI JOIN chosen USING (file_index, file_row_number)"

    def ask(sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        return asking.rows(sql, parameters, tables)

    value, of = column.value, "values"
    if column.kind == "text":
        ((num_different, num_there),) = ask(f"SELECT approx_count_distinct({value}), count({value}) FROM {source}")
        if num_different > min(FEW, max(NUM_VALUES, num_there / 2)):
            value, of = f"length({column.value})", "lengths"
    if column.kind == "length" or of == "lengths":
        found = _lengths(value, ask, source)
    elif column.kind == "number":
        found = _numbers(value, column, ask, source)
    else:
        found = _values(value, ask, source)
    for bar in found["bars"]:
        if of == "lengths" and bar["filter"]:
            bar["filter"] = "length:" + bar["filter"]
    return found | {"of": "lengths" if column.kind == "length" else of}


def _values(value: str, ask: Any, source: str) -> dict[str, Any]:
    counted = ask(f"SELECT {value} AS v, count(*) FROM {source} GROUP BY v ORDER BY 2 DESC, 1")
    nulls = sum(count for found, count in counted if found is None)
    there = [(_text(found), count) for found, count in counted if found is not None]
    return {
        "rows": sum(count for _, count in counted),
        "nulls": nulls,
        "others": sum(count for _, count in there[NUM_VALUES:]),
        "bars": [
            # A value that no address can hold has a bar that filters nothing.
            {"label": text[:MAX_LABEL], "count": count, "filter": f"is:{text}" if len(text) < MAX_LENGTH - 3 else None}
            for text, count in there[:NUM_VALUES]
        ],
    }


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _numbers(value: str, column: Column, ask: Any, source: str) -> dict[str, Any]:
    finite = f"isfinite(CAST({value} AS DOUBLE))"
    ((rows, there, num_finite, low, high),) = ask(
        f"SELECT count(*), count({value}), count(*) FILTER ({finite}), min({value}) FILTER ({finite}), "
        f"max({value}) FILTER ({finite}) FROM {source}"
    )
    found = {"rows": rows, "nulls": rows - there, "others": there - num_finite, "bars": []}
    if not num_finite:
        return found
    is_whole = column.type.startswith(("int", "uint"))
    edges = bar_edges(float(low), float(high), is_whole=is_whole)
    ((*at_least,),) = ask(
        "SELECT " + ", ".join(f"count(*) FILTER ({value} >= ? AND {finite})" for _ in edges) + f" FROM {source}", edges
    )
    return found | {"bars": _bars(edges, np.array(at_least[:-1]) - np.array(at_least[1:]), is_whole=is_whole)}


def _lengths(value: str, ask: Any, source: str) -> dict[str, Any]:
    """By one query, because each reads texts or lists: there are few different lengths."""
    counted = ask(f"SELECT {value} AS v, count(*) FROM {source} GROUP BY v")
    lengths = [(int(length), count) for length, count in counted if length is not None]
    rows, there = sum(count for _, count in counted), sum(count for _, count in lengths)
    found = {"rows": rows, "nulls": rows - there, "others": 0, "bars": []}
    if not lengths:
        return found
    edges = bar_edges(float(min(lengths)[0]), float(max(lengths)[0]), is_whole=True)
    values, weights = np.array(lengths).T
    return found | {"bars": _bars(edges, np.histogram(values, edges, weights=weights)[0].astype(int), is_whole=True)}


def _bars(edges: list[float], counts: npt.NDArray[Any], *, is_whole: bool) -> list[dict[str, Any]]:
    bars = []
    for start, end, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
        label = _number(start) if is_whole and end - start == 1 else f"{_number(start)} to {_number(end)}"
        bars.append({"label": label, "count": count, "filter": f"{start:.12g}..{end:.12g}"})
    return bars


def bar_edges(low: float, high: float, *, is_whole: bool) -> list[float]:
    """Where bars begin, and the last one ends: round numbers, `NUM_BARS` bars or a few less, of which the last is above
    `high`."""
    step = max((high - low) / NUM_BARS, 1.0 if is_whole else 0.0)
    if step == 0.0:
        step = abs(low) or 1.0
    power = 10.0 ** math.floor(math.log10(step))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= step * (1 - 1e-9))
    first = math.floor(low / step)
    count = 1
    while (first + count) * step <= high:
        count += 1
    # Rounded, so that an edge is the number that its label and its filter spell.
    return [float(f"{(first + i) * step:.12g}") for i in range(count + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.6g}"
