"""What a stage knew of every row that it read: of those that it kept from its shards, of the others from its ledger.

In memory are 4 bytes per row and score. Shape legend: R rows that the stage read, those it kept first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.pipeline.look.place import Place


@dataclass(frozen=True)
class RowsRead:
    """`scores`: by label or kind [R] float32; NaN where nothing tells. `reasons` [R]: why a row was dropped, None
    of one that was kept. `ids` [R] of prompts, or of samples where they have some."""

    scores: dict[str, NDArray[np.float32]]
    reasons: NDArray[np.object_]
    ids: pa.ChunkedArray
    num_kept: int
    columns: dict[str, pa.ChunkedArray]
    """Further columns, of the rows that were kept alone."""
    others: list[dict[str, float]]
    """Of each row that was dropped the scores that are none of `scores`, such as its language."""

    def dropped(self, reason: str) -> int:
        return int((self.reasons == reason).sum())

    def known(self, label: str) -> NDArray[np.float32]:
        """The scores that are known."""
        found = self.scores[label]
        known: NDArray[np.float32] = found[~np.isnan(found)]
        return known


def read(place: Place, stage: str, structs: Sequence[str], columns: Sequence[str] = ()) -> RowsRead | None:
    """The rows of `stage`. Scores are the fields of the columns `structs` (`prompt_scores`) and whatever of `columns`
    is a number. None where the run has no files of it, or none of the columns."""
    files = place.stages.get(stage, [])
    if not place.is_run or not files:
        return None
    schema = place.open(files[0]).schema
    name = "sample_id" if "sample_id" in schema.names else "prompt_id"
    there = [column for column in (*structs, *columns) if column in schema.names]
    if not there:
        return None
    table = pa.concat_tables([place.open(key).read([name, *there]) for key in files]).unify_dictionaries()
    scores: dict[str, NDArray[np.float32]] = {}
    for column in there:
        kind = schema.field(column).type
        if pa.types.is_struct(kind):
            scores |= {field.name: _floats(pc.struct_field(table[column], field.name)) for field in kind}
        elif pa.types.is_integer(kind):
            scores[column] = _floats(table[column])
    reasons, ids, in_ledger, others = _of_ledger(place, stage, name, tuple(scores))
    return RowsRead(
        {label: np.concatenate([found, in_ledger[label]]) for label, found in scores.items()},
        np.concatenate([np.full(table.num_rows, None, object), reasons]),
        pa.chunked_array([*table[name].cast(pa.string()).chunks, *ids], pa.string()),
        table.num_rows,
        {column: table[column] for column in there if column not in scores},
        others,
    )


def _of_ledger(
    place: Place, stage: str, name: str, labels: tuple[str, ...]
) -> tuple[NDArray[np.object_], list[pa.Array], dict[str, NDArray[np.float32]], list[dict[str, float]]]:
    reasons, ids, others = [np.zeros(0, object)], list[pa.Array](), list[dict[str, float]]()
    scores = {label: [np.zeros(0, np.float32)] for label in labels}
    for key in place.ledger.get(stage, []):
        table = place.open(key).read(["reason", name, "scores"])
        reasons.append(np.array(table["reason"].to_pylist(), object))
        ids += table[name].cast(pa.string()).chunks
        found = {label: np.full(table.num_rows, np.nan, np.float32) for label in labels}
        for row, values in enumerate(table["scores"].to_pylist()):
            others.append({})
            for value in values or []:
                of = found.get(value["label"])
                if of is None:
                    others[-1][value["label"]] = value["score"]
                elif value["score"] is not None:
                    of[row] = value["score"]
        for label in labels:
            scores[label].append(found[label])
    return np.concatenate(reasons), ids, {label: np.concatenate(parts) for label, parts in scores.items()}, others


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    found: NDArray[np.float32] = column.cast(pa.float32()).to_numpy()
    return found
