"""Where the time went, from what runs wrote down in `state/timeline/` (`pipeline.run.timeline`)."""

import itertools
from collections import Counter
from typing import Any

import numpy as np

from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.look.place import Place
from stillhouse.pipeline.look.timeline import timelines

SLICES = 60
"""Of the time in which the teacher wrote, in each of which the speed is told."""


def times(place: Place) -> dict[str, Any] | None:
    """{"runs": how many wrote down times, "seconds": of all of them, "steps": [{"step", "shards", "seconds": from its
    begin to its last shard, "rows", "tokens", "repeated": shards that took more than one attempt, "set_aside",
    "workers": or null}], "speed": [[from, to, tokens per second], ...] of generate, over the seconds in which it ran}.
    None where nothing is written down."""
    steps: dict[str, dict[str, Any]] = {}
    spans, before, runs = [], 0.0, 0
    for told in timelines(place):
        rows = [row for row in told if row["outcome"] in ("written", "set_aside")]
        pieces = [row for row in told if row["outcome"] == "part"]
        in_pieces = Counter[str]()
        for row in pieces:
            in_pieces[row["shard"]] += row["num_target_tokens"]
        began = min(row["queued"] for row in told)
        _add(steps, rows, pieces)
        spans += [
            (
                before + (row["started"] - began).total_seconds(),
                before + (row["ended"] - began).total_seconds(),
                row["num_target_tokens"] - (in_pieces[row["shard"]] if row["outcome"] == "written" else 0),
            )
            for row in [*rows, *pieces]
            if row["stage"] in keys.TEACHERS
        ]
        before += max(((row["ended"] - began).total_seconds() for row in rows), default=0.0)
        runs += 1
    if not runs:
        return None
    return {"runs": runs, "seconds": round(before, 3), "steps": list(steps.values()), "speed": _speed(spans)}


def _add(steps: dict[str, dict[str, Any]], rows: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> None:
    """Adds what one run did to what others did before it. A step of several teachers begins with the pieces of the
    first."""
    of_step: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = row["stage"] if row["step"] == "transform" else f"{row['stage']}: {row['step']}"
        of_step.setdefault(name, []).append(row)
    for name, made in of_step.items():
        known = steps.setdefault(
            name,
            {"step": name, "shards": 0, "seconds": 0.0, "rows": 0, "tokens": 0, "repeated": 0, "set_aside": 0,
             "workers": None},
        )  # fmt: skip
        of_stage = [row["queued"] for row in pieces if row["stage"] == name]
        seconds = max(row["ended"] for row in made) - min([*of_stage, *(row["queued"] for row in made)])
        known["shards"] += len(made)
        known["seconds"] = round(known["seconds"] + seconds.total_seconds(), 3)
        known["rows"] += sum(row["rows_in"] for row in made)
        known["tokens"] += sum(row["num_target_tokens"] for row in made)
        known["repeated"] += sum(row["attempts"] > 1 for row in made)
        known["set_aside"] += sum(row["outcome"] == "set_aside" for row in made)
        if workers := {row["worker"] for row in made} - {None}:
            known["workers"] = max(known["workers"] or 0, len(workers))


def _speed(spans: list[tuple[float, float, int]]) -> list[list[float]]:
    """Tokens per second in equal slices of time, as if each shard's tokens came evenly while it was under way."""
    if not spans:
        return []
    starts, ends, tokens = (np.array(values, np.float64) for values in zip(*spans, strict=True))
    edges = np.linspace(starts.min(), max(ends.max(), starts.min() + 1e-3), SLICES + 1)
    rates = tokens / np.maximum(ends - starts, 1e-3)
    width = edges[1] - edges[0]
    found = []
    for start, end in itertools.pairwise(edges):
        inside = np.clip(np.minimum(ends, end) - np.maximum(starts, start), 0, None)
        slice_of = (start - edges[0], end - edges[0], (rates * inside).sum() / width)
        found.append([round(float(value), 2) for value in slice_of])
    return found
