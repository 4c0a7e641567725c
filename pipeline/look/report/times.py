"""Where the time went, from what runs wrote down in `state/times/` (`pipeline.run.times`)."""

import contextlib
import itertools
from typing import Any

import numpy as np

from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder.certified import parse_object
from stillhouse.pipeline.look.place import Place

SLICES = 60
"""Of the time in which the teacher wrote, in each of which the speed is told."""


def times(place: Place) -> dict[str, Any] | None:
    """{"runs": how many wrote down times, "seconds": of all of them, "steps": [{"step", "shards", "seconds": from its
    begin to its last shard, "rows", "tokens", "repeated": shards that took more than one attempt, "set_aside",
    "workers": or null}], "speed": [[from, to, tokens per second], ...] of generate, over the seconds in which it ran}.
    None where nothing is written down."""
    if not place.is_run:
        return None
    steps: dict[str, dict[str, Any]] = {}
    spans, before, runs = [], 0.0, 0
    for name in place.folder.list(keys.TIMES):
        with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError):
            facts = parse_object(place.folder.get(f"{keys.TIMES}/{name}"))
            _add(steps, facts)
            spans += [
                (before + ended - seconds, before + ended, tokens)
                for step, _, ended, seconds, _, tokens, _, _ in facts["shards"]
                if step == "generate"
            ]
            before += facts["seconds"]
            runs += 1
    if not runs:
        return None
    return {"runs": runs, "seconds": before, "steps": list(steps.values()), "speed": _speed(spans)}


def _add(steps: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
    """Adds what one run did to what others did before it."""
    begun = dict(reversed(facts["steps"]))
    for step, _, ended, _, rows, tokens, attempts, is_written in facts["shards"]:
        known = steps.setdefault(
            step,
            {"step": step, "shards": 0, "seconds": 0.0, "rows": 0, "tokens": 0, "repeated": 0, "set_aside": 0,
             "workers": None},
        )  # fmt: skip
        known["shards"] += 1
        known["rows"] += rows
        known["tokens"] += tokens
        known["repeated"] += attempts > 1
        known["set_aside"] += not is_written
        known["seconds"] = max(known["seconds"], known.get("earlier", 0.0) + ended - begun.get(step, 0.0))
    for step, known in steps.items():
        known["earlier"] = known["seconds"]
        if (workers := facts["workers"].get(step)) is not None:
            known["workers"] = max(known["workers"] or 0, workers)


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
