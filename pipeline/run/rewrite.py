"""One shard of every stage without the rows of some prompts, as if ingest had dropped them.

Each file is written at once, and each step can be repeated: a file that has been written already comes out the same.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.pipeline import flow
from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.purged import PURGED, Register
from stillhouse.pipeline.folder.shard import Shard, ShardId, ShardInfo
from stillhouse.pipeline.folder.store import Folder
from stillhouse.pipeline.run.commit import write_ledger
from stillhouse.schemas.config import Config, config_hash
from stillhouse.stages.teacher import fidelity

MADE_ANEW = ("ingest", *keys.TEACHERS)
"""Stages that make a table by its schema; the others add columns to the one they read."""


class _Change(NamedTuple):
    """What became of a stage's shard."""

    is_kept: npt.NDArray[np.bool_]  # [rows before]
    old_sha256: str
    sha256: str


def rewrite(config: Config, folder: Folder, name: str, num_shards: int, register: Register) -> None:
    """Takes the purged prompts' rows out of the shard `name` of each stage, and out of what stages keep beside it. Rows
    of others whose cluster a purged prompt leads stay, and name it by its digest.

    A damaged file is deleted: a run makes it again, without these rows.
    """
    digest, stages = config_hash(config), flow.of(config)
    before: _Change | None = None
    for stage, following in itertools.zip_longest(stages, stages[1:]):
        key = keys.stage_shard(stage.name, name, num_shards)
        found = _load(folder, key, ShardId(stage.name, name, digest))
        change = None
        if found is not None and found.info is not None:
            is_kept = np.array([not register.has(value) for value in found.table["prompt_id"].to_pylist()], np.bool_)
            table = _without(found.table, is_kept, register)
            info = _info(found.info, found.table, is_kept, register)
            if table is not found.table:
                tokens, teachers = shards.num_target_tokens(table), shards.of_teachers(table)
                info = dataclasses.replace(info, num_target_tokens=tokens, teachers=teachers)
                if stage.name == keys.PUBLISH:
                    info = dataclasses.replace(info, fidelity=fidelity.statistics(table))
            if before is not None:
                info = dataclasses.replace(info, source_sha256=before.sha256)
            is_new = table is not found.table or info != found.info
            data = shards.encode(_as_made(table, stage.name), info) if is_new else b""
            change = _Change(is_kept, found.sha256, shards.verify(data, key) if is_new else found.sha256)
        # What is beside a shard has no ids of its own, so it goes before the shard that tells which rows they were.
        if following is not None and following.assign is not None:
            for beside in (keys.assignment(following.name, name), keys.sketch(following.name, name)):
                _rewrite_beside(folder, beside, ShardId(following.name, name, digest), change, register)
        before = change
        if change is None:
            continue
        if is_new:
            folder.put(key, data)
        if stage.name != keys.PUBLISH:
            write_ledger(folder, info)


def _load(folder: Folder, key: str, expected: ShardId) -> Shard | None:
    """A file; None where there is none, or where it was damaged and is deleted."""
    try:
        return shards.load(folder, key, expected=expected)
    except FileNotFoundError:
        return None
    except DamagedError:
        folder.delete(key)
        return None


def _rewrite_beside(folder: Folder, key: str, expected: ShardId, change: _Change | None, register: Register) -> None:
    """A sketch or an assignment, whose rows are those of the shard that `change` is about."""
    found = _load(folder, key, expected)
    if found is None or found.info is None:
        return
    if change is None or found.info.source_sha256 not in (change.old_sha256, change.sha256):
        folder.delete(key)  # of other rows
        return
    is_done = found.table.num_rows == int(change.is_kept.sum())
    table = _without(found.table, np.ones(found.table.num_rows, np.bool_) if is_done else change.is_kept, register)
    rows = table.num_rows
    info = dataclasses.replace(found.info, rows_in=rows, rows_out=rows, source_sha256=change.sha256)
    if table is not found.table or info != found.info:
        folder.put(key, shards.encode(table, info))


def _without(table: pa.Table, is_kept: npt.NDArray[np.bool_], register: Register) -> pa.Table:
    """The rows kept, with digests in the place of purged leaders; `table` itself where nothing changes."""
    if not is_kept.all():
        table = table.filter(pa.array(is_kept))
    if "cluster_id" in table.column_names:
        leaders = table.column("cluster_id").to_pylist()
        named = [register.name(leader) if register.has(leader) else leader for leader in leaders]
        if named != leaders:
            place = table.column_names.index("cluster_id")
            table = table.set_column(place, table.schema.field(place), pa.array(named, pa.string()))
    return table


def _as_made(table: pa.Table, stage: str) -> pa.Table:
    """A table that was read, as `stage` gives it to be written: Parquet renames the values of lists, and bytes must be
    those that a run would write, because what is beside a shard goes by its digest."""
    if stage not in MADE_ANEW:
        return table

    def made(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_list(kind):
            return pa.list_(made(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(made(kind.value_type), kind.list_size)
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(field.name, made(field.type)) for field in kind])
        return kind

    return table.cast(pa.schema([pa.field(field.name, made(field.type)) for field in table.schema]))


def _info(info: ShardInfo, table: pa.Table, is_kept: npt.NDArray[np.bool_], register: Register) -> ShardInfo:
    """What the shard says of itself. Purged rows are in the ledger of ingest alone, by their digests, as if it had
    dropped them (`Register.mark`); later stages have never seen them."""
    others = [row for row in info.ledger if not register.has(row["prompt_id"])]
    if info.stage != "ingest":
        gone = len(info.ledger) - len(others) + int((~is_kept).sum())
        return dataclasses.replace(info, rows_in=info.rows_in - gone, rows_out=int(is_kept.sum()), ledger=others)
    names = ["prompt_id", "source", "source_row"]
    gone_rows: list[dict[str, Any]] = table.filter(pa.array(~is_kept)).select(names).to_pylist()
    gone_rows += [{name: row[name] for name in names} for row in info.ledger if register.has(row["prompt_id"])]
    ledger = others + [row | {"prompt_id": register.name(row["prompt_id"]), "reason": PURGED} for row in gone_rows]
    ledger.sort(key=lambda row: row["source_row"])
    return dataclasses.replace(info, rows_out=int(is_kept.sum()), ledger=ledger)
