"""What each filter of a run took from it, what other values of its settings would take, and how long it was at it.

From the files of a run alone: scores beside the rows and in the ledger, sketches, `state/timeline/`. A run that is not
finished has what its stages have written.
"""

from stillhouse.pipeline.look.filters.again import duplicates, equal_answers, quotas
from stillhouse.pipeline.look.filters.entry import Filter, Setting
from stillhouse.pipeline.look.filters.personal import personal
from stillhouse.pipeline.look.filters.rows import RowsRead, read
from stillhouse.pipeline.look.filters.scored import flagged, language, of_form, of_labels
from stillhouse.pipeline.look.place import Place
from stillhouse.pipeline.look.timeline import timelines

__all__ = ["Filter", "Setting", "filters"]


def filters(place: Place) -> list[Filter]:
    """Every filter that is on, in the order of the run; none where only a copy of a dataset is here. Raises
    `DamagedError` where a file of the run is."""
    place = place.run or place
    config = place.config or {}
    if not place.is_run or not config:
        return []
    found: list[Filter] = []
    if (rows := read(place, "ingest", ["prompt_personal"])) is not None:
        found += personal(rows, "ingest", [*rows.scores], config)
    if place.stages.get("dedupe"):
        found += duplicates(place, config)
    if (rows := read(place, "screen", ["prompt_scores"], ["moderation_flagged", "prompt_language"])) is not None:
        found += [*flagged(rows, config), *of_labels(rows, "screen", config), *language(rows, config)]
    if place.stages.get("balance"):
        found += quotas(place, config)
    if (rows := read(place, "review", ["response_scores"], ["loop_tokens", "finish_reasons"])) is not None:
        found += [*of_form(rows, config), *of_labels(_without(rows, "loop_tokens"), "review", config)]
        if (counts := read(place, "review", ["response_personal"])) is not None:
            found += personal(counts, "review", [*counts.scores], config)
        found += equal_answers(place, config)
    return _timed(place, found)


def _without(rows: RowsRead, label: str) -> RowsRead:
    scores = {name: values for name, values in rows.scores.items() if name != label}
    return RowsRead(scores, rows.reasons, rows.ids, rows.num_kept, rows.columns, rows.others)


def _timed(place: Place, found: list[Filter]) -> list[Filter]:
    """Seconds and rows per second of those that a run timed; several labels of one classifier share its first one's."""
    took: dict[tuple[str, str], tuple[float, int]] = {}

    def add(stage: str, name: str, seconds: float, rows: int) -> None:
        before = took.get((stage, name), (0.0, 0))
        took[stage, name] = (before[0] + seconds, before[1] + rows)

    for run in timelines(place):
        for row in run:
            if row["outcome"] != "written":
                continue
            for item in row.get("filters") or []:
                add(row["stage"], item["filter"], item["seconds"], row["rows_in"])
            seconds = (row["ended"] - row["started"]).total_seconds()
            is_sketch = row["step"] == "sketch"
            add(row["stage"], f"step: {row['stage']}", seconds, row["rows_in"] if is_sketch else 0)
            if is_sketch:
                add(row["stage"], f"step: {row['stage']}: sketch", seconds, row["rows_in"])
    for one in found:
        seconds, rows = took.get((one.stage, one.clock or ""), (None, 0))
        if seconds is not None:
            one.seconds = round(seconds, 3)
            one.rows_per_second = round(rows / seconds, 1) if seconds > 0 else None
    return found
