"""One prompt's way through a run: where it is in every stage, until it is published or dropped.

Stage after stage maps a shard to a shard of the same number, so a prompt is looked for once, in one column.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.look.conversation import HEAVY, TEXT, scalars
from stillhouse.pipeline.look.place import Place, shard_of

NUM_READERS = 16
"""Files looked through at once: an object store answers in tens of milliseconds."""


def trail(place: Place, row_id: str) -> list[dict[str, Any]]:
    """Where a prompt (by its `prompt_id`) or a sample (by its `sample_id`) is in the run that `place` is a part of, or
    in `place` alone where there is none. An entry for each stage, in order; from generate on for each of the prompt's
    samples, or for the one asked for:

    {"stage", "file": key in `place.folder`, "row": its number in that file,
     "status": "kept", "dropped" (the file is then the ledger's), or "missing": the stage has not done it yet, or its
               file is not here or damaged (file and row are null),
     "reason": why it was dropped, else null,
     "columns": its scalar columns there (`conversation.scalars`); of a ledger its scores too, as scores.<label>}

    Ends where nothing of it is left. Empty where nothing has the id.
    """
    whole = place.run or place
    found = _find(whole, row_id)
    if found is None:
        return []
    shard, prompt_id, sample_id = found
    entries: list[dict[str, Any]] = []
    for stage in whole.order if place.run else [*whole.stages]:
        kept = [
            _entry(stage, key, row, columns, None)
            for key, row, columns in _rows(whole, stage, whole.stages, shard, prompt_id, sample_id)
        ]
        dropped = [
            _entry(stage, key, row, columns, columns.pop("reason"))
            for key, row, columns in _rows(whole, stage, whole.ledger, shard, prompt_id, sample_id)
        ]
        entries += kept + dropped or [
            {"stage": stage, "file": None, "row": None, "status": "missing", "reason": None, "columns": {}}
        ]
        if dropped and not kept:
            break
    has_sample = any(entry["columns"].get("sample_id") is not None for entry in entries)
    is_gone = any(entry["status"] == "dropped" for entry in entries)
    return entries if sample_id is None or has_sample or is_gone else []


def _entry(stage: str, key: str, row: int, columns: dict[str, Any], reason: str | None) -> dict[str, Any]:
    status = "kept" if reason is None else "dropped"
    return {"stage": stage, "file": key, "row": row, "status": status, "reason": reason, "columns": columns}


def _find(place: Place, row_id: str) -> tuple[str, str, str | None] | None:
    """The shard of a prompt or sample, its prompt_id and, where the id is a sample's, that."""
    prompt_of_sample = row_id.rpartition("/")[0]
    for stage in [*dict.fromkeys([*place.stages, *place.ledger])]:
        for files in (place.stages, place.ledger):
            keys = files.get(stage, [])
            with ThreadPoolExecutor(NUM_READERS) as pool:
                ids = [pair for pairs in pool.map(lambda key: _prompt_ids(place, key), keys) for pair in pairs]
            for wanted, sample_id in ((row_id, None), (prompt_of_sample, row_id)):
                for key, column in ids if wanted else []:
                    if pc.any(pc.equal(column, wanted)).as_py():
                        return shard_of(key, stage), wanted, sample_id
    return None


def _prompt_ids(place: Place, key: str) -> list[tuple[str, pa.ChunkedArray]]:
    """The file and its prompt ids; nothing where it has none, as exports do."""
    tables = [columns.read(["prompt_id"]) for _, columns in place.open_all([key])]
    return [(key, table.column("prompt_id")) for table in tables if "prompt_id" in table.column_names]


def _rows(
    place: Place, stage: str, files: dict[str, list[str]], shard: str, prompt_id: str, sample_id: str | None
) -> list[tuple[str, int, dict[str, Any]]]:
    """Key, row and columns of what a stage's shard, or its part of the ledger, holds of a prompt or sample."""
    found = []
    of_shard = [key for key in files.get(stage, []) if shard_of(key, stage if files is place.stages else "") == shard]
    for key, columns in place.open_all(of_shard):
        ids = columns.read(["prompt_id", "sample_id"])
        is_it = pc.equal(ids.column("prompt_id"), prompt_id)
        if sample_id is not None and "sample_id" in ids.column_names:
            # A ledger of before generate has no samples.
            is_it = pc.and_(is_it, pc.fill_null(pc.equal(ids.column("sample_id"), sample_id), True))
        numbers = pc.indices_nonzero(is_it).to_pylist()
        light = [name for name in columns.schema.names if name not in HEAVY | TEXT]
        table = columns.rows(numbers, light)
        for row, number in enumerate(numbers):
            values = scalars(table, row)
            if files is place.ledger:
                scores = table.column("scores")[row].as_py() or []
                values |= {f"scores.{score['label']}": round(score["score"], 6) for score in scores}
            found.append((key, number, values))
    return found
