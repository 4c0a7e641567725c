"""Two runs side by side: what differs in settings, funnel and distributions, and how both answered the same prompts."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.look.conversation import HEAVY, conversation
from stillhouse.pipeline.look.place import Place
from stillhouse.schemas.config import differing_keys


def against(
    place: Place, facts: dict[str, Any], other: Place, other_facts: dict[str, Any], number: int, seed: int
) -> dict[str, Any]:
    """What `other` is beside `place`, each pair in the order [place, other]:

    {"facts": `facts` of the other,
     "settings": {key: [value, value]} where they differ, or null where one of them has none,
     "stages": {stage: {"rows_in": [n, n], "rows_out": [n, n], "dropped": {reason: [n, n]}}} where they differ,
     "prompts": {"both", "only_here", "only_there"} in the stages that are described, or null where those have no ids,
     "answers": of `number` of the prompts that both have, drawn by `seed`,
                [{"prompt_id", "conversations": [conversation, conversation] without tokens}]}
    """
    settings = None
    if place.config is not None and other.config is not None:
        settings = {
            key: [place.config.get(key), other.config.get(key)] for key in differing_keys(place.config, other.config)
        }
    prompts, answers = _answers(place, facts["stage"], other, other_facts["stage"], number, seed)
    return {
        "facts": other_facts,
        "settings": settings,
        "stages": _stages(facts["stages"], other_facts["stages"]),
        "prompts": prompts,
        "answers": answers,
    }


def _stages(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for stage in [*dict.fromkeys([*here, *there])]:
        pair = [here.get(stage, {}), there.get(stage, {})]
        reasons = sorted({reason for counts in pair for reason in counts.get("dropped", {})})
        compared: dict[str, Any] = {name: [counts.get(name) for counts in pair] for name in ("rows_in", "rows_out")}
        compared["dropped"] = {
            reason: [counts.get("dropped", {}).get(reason, 0) for counts in pair] for reason in reasons
        }
        if any(a != b for a, b in (compared["rows_in"], compared["rows_out"], *compared["dropped"].values())):
            found[stage] = compared
    return found


def _answers(
    place: Place, stage: str | None, other: Place, other_stage: str | None, number: int, seed: int
) -> tuple[dict[str, int] | None, list[dict[str, Any]]]:
    if stage is None or other_stage is None:
        return None, []
    here, there = _prompt_ids(place, stage), _prompt_ids(other, other_stage)
    if here is None or there is None:
        return None, []
    unique_here, unique_there = (pc.drop_null(pc.unique(_joined(ids))) for ids in (here, there))
    both = unique_here.filter(pc.is_in(unique_here, value_set=unique_there))
    counts = {"both": len(both), "only_here": len(unique_here) - len(both), "only_there": len(unique_there) - len(both)}
    chosen = np.sort(np.random.default_rng(seed).choice(len(both), min(number, len(both)), replace=False))
    return counts, [
        {"prompt_id": i, "conversations": [_first(place, here, i), _first(other, there, i)]}
        for i in both.take(pa.array(chosen)).to_pylist()
    ]


def _prompt_ids(place: Place, stage: str) -> dict[str, pa.ChunkedArray] | None:
    """Of each file of a stage, by key; None where they have none, as exports do."""
    tables = {key: columns.read(["prompt_id"]) for key, columns in place.open_all(place.stages[stage])}
    if any(not table.column_names for table in tables.values()):
        return None
    return {key: table.column(0) for key, table in tables.items()}


def _joined(ids: dict[str, pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for column in ids.values() for chunk in column.chunks], pa.string())


def _first(place: Place, ids: dict[str, pa.ChunkedArray], prompt_id: str) -> dict[str, Any]:
    """The first row of a prompt, in files that have these prompt ids."""
    for key, column in ids.items():
        row = pc.index(column, prompt_id).as_py()
        if row >= 0:
            columns = place.open(key)
            return conversation(columns.rows([row], [n for n in columns.schema.names if n not in HEAVY]), 0, None)
    raise AssertionError  # it was among them
