"""What another threshold would change: exact counts over all rows that a stage scored, and over the published ones.

Screen scored prompts, review answers. In memory are counts alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.pipeline.look.filters.settings import NO_THRESHOLD, drop_reason
from stillhouse.pipeline.look.filters.settings import thresholds as configured
from stillhouse.pipeline.look.place import Place
from stillhouse.pipeline.look.report.rows import Rows

STEPS = 1000
BARS = 50
"""Of a score's distribution."""
SCORED = {"screen": "prompt_scores", "review": "response_scores"}
"""By stage, the column of its scores."""


@dataclass
class _Counts:
    """Rows by the place of one label's score on its grid."""

    grid: NDArray[np.float32]
    passed: NDArray[np.int64] = field(init=False)
    alone: NDArray[np.int64] = field(init=False)
    """Dropped for this label and for no other: they would come back."""
    others: NDArray[np.int64] = field(init=False)
    """Dropped whatever this threshold is."""
    published: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.passed, self.alone, self.others, self.published = (np.zeros(len(self.grid), np.int64) for _ in range(4))

    def of(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        """How many scores are at or above each threshold of the grid, but below the next one."""
        places = np.searchsorted(self.grid, scores.astype(np.float32), side="right") - 1
        return np.bincount(np.maximum(places, 0), minlength=len(self.grid))


def thresholds(place: Place, rows: Rows) -> list[dict[str, Any]]:
    """For every label that a stage scores: `grid`, and at or above each threshold of it how many rows that passed the
    stage now (`passed`; null where only the dataset is there), of those how many are published (`published`), and how
    many were dropped for this label alone (`alone`); `threshold` is the one that was used, or null; `bars` the
    distribution as [from, to, rows kept, rows dropped]."""
    found = []
    for stage, column in SCORED.items():
        labels = [name.partition(".")[2] for name in rows.numbers if name.partition(".")[0] == column]
        labels = [label for label in labels if label not in NO_THRESHOLD]
        used = {label: value for label, (_, value) in configured(place.config or {}, stage).items()}
        counts = {label: _Counts(_grid(used.get(label))) for label in labels}
        for label, of in counts.items():
            of.published += of.of(rows.numbers[f"{column}.{label}"])
        has_all = place.is_run and stage in place.stages
        if has_all:
            _count_stage(place, stage, column, counts, used)
        for label, of in counts.items():
            found.append(_curve(stage, label, used.get(label), of, has_all=has_all))
    return found


def _grid(threshold: float | None) -> NDArray[np.float32]:
    """Thresholds that can be asked for: a thousandth apart, and the one that was used. As float32, which is what the
    stages compare."""
    every = [step / STEPS for step in range(STEPS + 1)] + ([] if threshold is None else [threshold])
    return np.unique(np.array(every, np.float32))


def _count_stage(place: Place, stage: str, column: str, counts: dict[str, _Counts], used: dict[str, float]) -> None:
    for scores in _scores_of_shards(place, stage, column):
        for label, of in counts.items():
            of.passed += of.of(scores[label])
    for why, scores in _scores_of_ledger(place, stage, tuple(counts)):
        is_unsafe = {label: scores[label] >= np.float32(used.get(label, np.inf)) for label in counts}
        for label, of in counts.items():
            by_other = np.any([unsafe for other, unsafe in is_unsafe.items() if other != label], axis=0)
            alone = (why == drop_reason(stage, label)) & is_unsafe[label] & ~by_other
            of.alone += of.of(scores[label][alone])
            of.others += of.of(scores[label][~alone & ~np.isnan(scores[label])])


def _scores_of_shards(place: Place, stage: str, column: str) -> Iterator[dict[str, NDArray[np.float32]]]:
    for key in place.stages[stage]:
        for batch in place.open(key).batches([column]):
            table = pa.Table.from_batches([batch])
            if column in table.column_names:
                flat = table[column].combine_chunks()
                yield {kind.name: pc.struct_field(flat, kind.name).to_numpy(zero_copy_only=False) for kind in flat.type}


def _scores_of_ledger(
    place: Place, stage: str, labels: tuple[str, ...]
) -> Iterator[tuple[NDArray[Any], dict[str, NDArray[np.float32]]]]:
    """Reasons and scores of the rows that a stage dropped; NaN where the ledger has no score."""
    for key in place.ledger.get(stage, []):
        table = place.open(key).read(["reason", "scores"])
        reasons = np.array(table["reason"].to_pylist(), object)
        scores = {label: np.full(len(reasons), np.nan, np.float32) for label in labels}
        for row, values in enumerate(table["scores"].to_pylist()):
            for value in values or []:
                if value["label"] in scores and value["score"] is not None:
                    scores[value["label"]][row] = value["score"]
        yield reasons, scores


def _curve(stage: str, label: str, threshold: float | None, of: _Counts, *, has_all: bool) -> dict[str, Any]:
    def at_or_above(counts: NDArray[np.int64]) -> list[int]:
        found: list[int] = counts[::-1].cumsum()[::-1].tolist()
        return found

    kept, dropped = (of.passed, of.alone + of.others) if has_all else (of.published, np.zeros_like(of.published))
    starts = of.grid.astype(np.float64)
    place_of_bar = np.minimum((starts * BARS + 1e-6).astype(int), BARS - 1)
    bars = [
        [bar / BARS, (bar + 1) / BARS, int(kept[place_of_bar == bar].sum()), int(dropped[place_of_bar == bar].sum())]
        for bar in range(BARS)
    ]
    return {
        "stage": stage,
        "column": f"{SCORED[stage]}.{label}",
        "label": label,
        "threshold": None if threshold is None else float(threshold),
        "grid": [round(float(value), 6) for value in of.grid],
        "passed": at_or_above(of.passed) if has_all else None,
        "alone": at_or_above(of.alone) if has_all else None,
        "published": at_or_above(of.published),
        "bars": bars,
    }
