"""The largest clusters of near-duplicates, with some of their members."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder.columns import Columns
from stillhouse.pipeline.look.place import Place

CLUSTERS, MEMBERS, TEXT_CHARACTERS = 8, 6, 300
"""How much is shown."""
COLUMNS = ["cluster_id", "cluster_size", "drop_reason"]


def clusters(place: Place, *, with_text: bool) -> dict[str, Any] | None:
    """{"clusters": how many with more than one prompt, "prompts": in them, "sizes": [[size, how many], ...],
    "largest": [{"id", "size", "members": [{"id", "reason": why dropped or null, "text"}]}]}; text is null without
    `with_text`. None where a run's view of its duplicates is not there: only the dataset was copied.

    In memory are a few dozen bytes per prompt that has duplicates.
    """
    shards = sorted(place.folder.list(keys.assignments("dedupe"))) if place.is_run else []
    if not shards:
        return None
    found = pa.concat_tables([_repeated(place, number, shard) for number, shard in enumerate(shards)])
    ids = found["cluster_id"].combine_chunks().dictionary_encode()
    codes = ids.indices.to_numpy(zero_copy_only=False)
    counts = np.bincount(codes, minlength=len(ids.dictionary))
    names = ids.dictionary.to_pylist()
    ranked = sorted(range(len(names)), key=lambda code: (-int(counts[code]), names[code]))
    sizes, how_many = np.unique(counts, return_counts=True)
    return {
        "clusters": len(names),
        "prompts": found.num_rows,
        "sizes": [[int(size), int(many)] for size, many in zip(sizes, how_many, strict=True)],
        "largest": [
            {
                "id": names[code],
                "size": int(counts[code]),
                "members": _members(place, shards, found.take(np.flatnonzero(codes == code)), with_text=with_text),
            }
            for code in ranked[:CLUSTERS]
        ],
    }


def _repeated(place: Place, number: int, shard: str) -> pa.Table:
    """The rows of a shard that are like others: cluster, reason, and where they are."""
    table = Columns(place.folder, keys.assignment("dedupe", shard)).read(COLUMNS)
    is_repeated = pc.greater(table["cluster_size"], 1)
    rows = np.flatnonzero(np.asarray(is_repeated.to_numpy(zero_copy_only=False), bool)).astype(np.int64)
    kept = table.select(["cluster_id", "drop_reason"]).filter(is_repeated)
    return kept.append_column("shard", pa.array(np.full(len(rows), number))).append_column("row", pa.array(rows))


def _members(place: Place, shards: list[str], rows: pa.Table, *, with_text: bool) -> list[dict[str, Any]]:
    """Some of a cluster, those that were kept first."""
    chosen = rows.sort_by([("drop_reason", "descending"), ("shard", "ascending"), ("row", "ascending")])
    is_kept = pc.is_null(chosen["drop_reason"]).to_numpy(zero_copy_only=False).astype(bool)
    order = np.argsort(~is_kept, kind="stable")[:MEMBERS]
    members = []
    for row in chosen.take(order).to_pylist():
        source = place.open(keys.stage_shard("ingest", shards[row["shard"]], len(shards)))
        prompt = source.rows([row["row"]], ["prompt_id", *(["user_turns"] if with_text else [])]).to_pylist()[0]
        text = "\n\n".join(prompt["user_turns"]) if with_text else None
        if text is not None and len(text) > TEXT_CHARACTERS:
            text = f"{text[:TEXT_CHARACTERS]} …"
        members.append({"id": prompt["prompt_id"], "reason": row["drop_reason"], "text": text})
    return members
