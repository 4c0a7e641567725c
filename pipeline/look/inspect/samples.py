"""Rows to look at: some at random, some of those that were dropped for a reason, or all there is of one prompt."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.folder import index, shard
from stillhouse.pipeline.look.conversation import HEAVY, conversation
from stillhouse.pipeline.look.inspect.visible import visible
from stillhouse.pipeline.look.place import LOOSE, STAGES, Place, shard_of
from stillhouse.pipeline.look.reasons import REASONS
from stillhouse.pipeline.look.trail import trail
from stillhouse.schemas.config import ConfigError

MAX_CONVERSATIONS = 4
"""Samples of one prompt whose tokens are shown."""


def at_random(place: Place, stage: str, number: int, seed: int) -> list[dict[str, Any]]:
    """`number` rows of a stage, each as likely, the same for the same seed, in the order of the files; as
    `conversation` without tokens. Reads the row groups that they are in, without the columns of tokens."""
    files = [key for key in place.stages[stage] if key.endswith(".parquet")]
    counts = {key: columns.num_rows for key, columns in place.open_all(files)}
    found = []
    for i, rows in _drawn([*counts.values()], number, seed):
        columns = place.open([*counts][i])
        table = columns.rows(rows, [name for name in columns.schema.names if name not in HEAVY])
        found += [conversation(table, row, None) for row in range(table.num_rows)]
    return found


def of_dropped(place: Place, reason: str, number: int, seed: int) -> list[dict[str, Any]]:
    """`number` of the rows that were dropped for a reason, drawn as by `at_random`:

    {"stage", "reason", "prompt_id", "sample_id", "source", "source_row", "scores": {label: score},
     "conversation": the row as the stage before had it, without tokens; null where it is not there,
     "note": why it is null, else null}

    A ledger has no text. Raises `ConfigError` where there is no such reason, naming those that rows were dropped for.
    """
    whole = place.run or place
    ledgers = _ledgers(whole)
    matching = [(stage, name, counts[reason]) for stage, name, counts in ledgers if counts.get(reason)]
    if not matching and reason in REASONS:
        return []
    if not matching:
        known = sorted({known for _, _, counts in ledgers for known in counts})
        raise ConfigError(
            f"--dropped {reason}: is no reason (docs/format.md has all); rows of {place.path} were dropped for "
            f"{visible(', '.join(known) or 'none', one_line=True)}"
        )
    found = []
    for i, chosen in _drawn([count for _, _, count in matching], number, seed):
        stage, name, _ = matching[i]
        rows = [row for row in _ledger_rows(whole, stage, name) if row["reason"] == reason]
        found += _with_text(whole, [rows[row] for row in chosen], stage, name)
    return found


def _drawn(counts: list[int], number: int, seed: int) -> list[tuple[int, list[int]]]:
    """Of `number` rows drawn without replacement from files of so many: pairs of file and its rows, ascending."""
    ends = np.cumsum([0, *counts])
    rows = np.sort(np.random.default_rng(seed).choice(ends[-1], min(number, int(ends[-1])), replace=False))
    files = np.searchsorted(ends, rows, side="right") - 1
    return [(int(i), (rows[files == i] - ends[i]).tolist()) for i in np.unique(files)]


def _ledgers(place: Place) -> list[tuple[str, str, dict[str, int]]]:
    """Stage, shard and number of rows dropped by reason, in order: from the shards' own footers, and from the ledger's
    files where there are no shards."""
    found = []
    for stage in [*STAGES, LOOSE]:
        for key, summary in index.glance(place.folder, stage, place.stages.get(stage, []))[0].items():
            found.append((stage, shard_of(key, stage), summary.dropped))
        if stage not in place.stages:
            for key in place.ledger.get(stage, []):
                counts = pc.value_counts(place.open(key).read(["reason"]).column("reason")).to_pylist()
                found.append((stage, shard_of(key, ""), {pair["values"]: pair["counts"] for pair in counts}))
    return found


def _ledger_rows(place: Place, stage: str, name: str) -> list[dict[str, Any]]:
    for key in place.stages.get(stage, []):
        if shard_of(key, stage) == name:
            return shard.read_info(place.folder, key).ledger
    columns = place.open(next(key for key in place.ledger[stage] if shard_of(key, "") == name))
    rows: list[dict[str, Any]] = columns.read(columns.schema.names).to_pylist()
    return rows


def _with_text(place: Place, dropped: list[dict[str, Any]], stage: str, name: str) -> list[dict[str, Any]]:
    stage = dropped[0].get("stage", stage)  # of ledger files that lie alone
    order = place.order
    before = order[order.index(stage) - 1] if stage in order[1:] else None
    key = next((key for key in place.stages.get(before or "", []) if shard_of(key, before or "") == name), None)
    note = None
    if before is None:
        note = "its text is in the source alone, at source_row"
    elif key is None:
        note = f"its text is in {before}/{name}, which is not here"
    texts = _conversations(place, key, dropped) if key is not None else [None] * len(dropped)
    return [
        {
            "stage": stage,
            "reason": row["reason"],
            **{column: row.get(column) for column in ("prompt_id", "sample_id", "source", "source_row")},
            "scores": {score["label"]: round(score["score"], 6) for score in row.get("scores") or []},
            "conversation": text,
            "note": note,
        }
        for row, text in zip(dropped, texts, strict=True)
    ]


def _conversations(place: Place, key: str, dropped: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The rows of a shard that were dropped from it, found by their source row and sample."""
    columns = place.open(key)
    ids: pa.Table = columns.read(["source_row", "sample_id"])
    of_row = {(row["source_row"], row.get("sample_id")): number for number, row in enumerate(ids.to_pylist())}
    is_sampled = "sample_id" in ids.column_names
    numbers = [of_row.get((row["source_row"], row.get("sample_id") if is_sampled else None)) for row in dropped]
    light = [name for name in columns.schema.names if name not in HEAVY]
    table = columns.rows([number for number in numbers if number is not None], light)
    rows = iter(range(table.num_rows))
    return [None if number is None else conversation(table, next(rows), None) for number in numbers]


def walk(place: Place, row_id: str, tokenizer: Any) -> dict[str, Any]:
    """One prompt or sample through every stage: {"id", "steps": its `trail`, "conversations": what the last stage that
    has it holds, with tokens, of the first samples, "more": how many further samples there are}.

    Raises `ConfigError` where nothing has the id.
    """
    steps = trail(place, row_id)
    if not steps:
        raise ConfigError(
            f"--row {row_id!r}: no prompt_id or sample_id of {place.path} is this; --samples shows some that there are"
        )
    whole = place.run or place
    kept = [step for step in steps if step["status"] == "kept"]
    last = [step for step in kept if step["stage"] == kept[-1]["stage"]]
    shown = [
        conversation(whole.open(step["file"]).rows([step["row"]]), 0, tokenizer) for step in last[:MAX_CONVERSATIONS]
    ]
    return {"id": row_id, "steps": steps, "conversations": shown, "more": max(0, len(last) - MAX_CONVERSATIONS)}
