"""Tables of conversations with answers, as screen leaves them, and runs that score: those, or what a student writes."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.support.data import TEACHER, make_raw_config
from tests.support.prompts import prompts


def answered(turns: list[list[str]], answers: list[list[str]]) -> pa.Table:
    """`prompts`, each with the answers to its turns."""
    table = prompts(turns)
    table = table.append_column("answers", pa.array(answers, pa.list_(pa.string())))
    for name in ("given_ids", "given_labels", "asked_ids"):
        table = table.append_column(name, pa.nulls(len(turns), pa.list_(pa.int32())))
    return table.append_column("student_logprobs", pa.nulls(len(turns), pa.list_(pa.float32())))


def with_ids(table: pa.Table, ids: list[list[int]], labels: list[list[int]]) -> pa.Table:
    for name, values in (("given_ids", ids), ("given_labels", labels)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, pa.list_(pa.int32())))
    return table


def make_raw_score_config(folder: Path, **score: Any) -> dict[str, Any]:
    """The tests' own configuration, of a run that scores."""
    raw = make_raw_config(folder)
    del raw["sampling"]
    return raw | {"task": "score", "score": {"max_dropped_fraction": 1.0, **score}}


def make_raw_rollout_config(folder: Path, **rollout: Any) -> dict[str, Any]:
    """The same of a run in which the tests' own student answers 30 conversations, twice each, before the teacher
    scores."""
    raw = make_raw_score_config(folder)
    raw["source"]["limit"] = 30
    raw["ingest"]["turns"] = "all"
    raw["rollout"] = {
        "model": str(TEACHER),
        "backend": raw["teacher"]["backend"],
        "sampling": {"n": 2, "max_tokens": 24, "seed": 7},
        "max_dropped_fraction": 1.0,
        **rollout,
    }
    return raw
