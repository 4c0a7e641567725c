"""The average of several teachers' distributions, from what each has told of the same tokens.

As many draws of each are, together, draws of the average: unbiased, and less scattered than if a coin had chosen the
teacher of each. Log-probabilities of single tokens average exactly.

Shape legend: N draws of all tokens of a table, S supervised tokens of it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.schemas.lists import flat_lists, lists

AVERAGED = ("token_logprobs", "asked_logprobs")
SAME = ("sample_id", "input_ids", "labels", "asked_ids")


def average(of_each: list[pa.Table]) -> pa.Table:
    """Marked tables of completions with draws, row for row of the same conversations, as one. A row that any teacher
    has given up is marked as by the first of these, and holds nothing of a distribution. Raises ValueError where
    teachers have read different ids."""
    first = of_each[0]
    reasons = pc.coalesce(*(table.column("drop_reason") for table in of_each))
    kept = pc.is_null(reasons)
    is_kept = np.array(kept.to_pylist(), np.bool_)
    columns: dict[str, pa.Array] = {"drop_reason": reasons, "probe": pa.nulls(first.num_rows, first["probe"].type)}
    columns["num_draws"] = pa.array(np.full(first.num_rows, _num_draws(of_each)), pa.int32())
    tables = [table.filter(kept) for table in of_each]
    for name in SAME:
        if name in first.column_names and any(not table[name].equals(tables[0][name]) for table in tables):
            raise ValueError(f"mixture: teachers have different {name}, though they were given the same")
    for name in AVERAGED:
        if name in first.column_names:
            parts = [flat_lists(table.column(name)) for table in tables]
            values = np.stack([part.values.to_numpy() for part in parts]).astype(np.float64)
            mean = np.logaddexp.reduce(values, axis=0) - np.log(len(tables))
            columns[name] = _spread(parts[0].offsets.to_numpy(), mean.astype(np.float32), is_kept)
    columns |= _draws(tables, is_kept)
    made = [
        columns[field.name].cast(field.type) if field.name in columns else first.column(field.name)
        for field in first.schema
    ]
    return pa.table(made, schema=first.schema).combine_chunks()


def _num_draws(of_each: list[pa.Table]) -> int:
    return sum(table.column("num_draws")[0].as_py() for table in of_each if table.num_rows)


def _draws(tables: list[pa.Table], is_kept: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    """Draws of all tables together: of each token the distinct ids, ascending, and how often each was drawn."""
    lengths = [flat_lists(table.column("draw_lengths")) for table in tables]
    offsets = lengths[0].offsets.to_numpy().astype(np.int64)  # [rows + 1] tokens before each row
    S = int(offsets[-1])
    keys, counts = [], []
    for table, of_tokens in zip(tables, lengths, strict=True):
        token_N = np.repeat(np.arange(S, dtype=np.int64), of_tokens.values.to_numpy())
        ids_N = flat_lists(table.column("draw_ids")).values.to_numpy()
        keys.append((token_N << 32) + ids_N)
        counts.append(flat_lists(table.column("draw_counts")).values.to_numpy())
    distinct, place = np.unique(np.concatenate(keys), return_inverse=True)
    count_N = np.bincount(place, weights=np.concatenate(counts), minlength=len(distinct))
    length_S = np.bincount(distinct >> 32, minlength=S)
    before_S = np.concatenate([[0], np.cumsum(length_S)])
    return {
        "draw_ids": _spread(before_S[offsets], (distinct & 0xFFFFFFFF).astype(np.int32), is_kept),
        "draw_counts": _spread(before_S[offsets], count_N.astype(np.int16), is_kept),
        "draw_lengths": _spread(offsets, length_S.astype(np.int32), is_kept),
    }


def _spread(offsets: npt.NDArray[Any], values: npt.NDArray[Any], is_kept: npt.NDArray[np.bool_]) -> pa.ListArray:
    """Lists of the rows that are kept, and empty ones of the others."""
    lengths = np.zeros(len(is_kept), np.int64)
    lengths[is_kept] = np.diff(offsets)
    return lists(np.concatenate([[0], np.cumsum(lengths)]), pa.array(values))
