"""How a shard comes to exist: the stage's contract is checked, dropped rows split off, the rest put if absent."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.errors import DamagedError, StageError
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.quarantine import quarantine
from stillhouse.pipeline.folder.shard import ShardId, ShardInfo
from stillhouse.pipeline.folder.store import Folder
from stillhouse.pipeline.run.result import ShardResult, of_info
from stillhouse.schemas.tables import EVIDENCE_LABELS
from stillhouse.stages.personal import PERSONAL
from stillhouse.stages.teacher import fidelity

logger = logging.getLogger("stillhouse")


def commit(
    folder: Folder,
    shard: ShardId,
    key: str,
    marked: pa.Table,
    rows_in: int,
    seconds: float,
    *,
    source_sha256: str = "",
    reproducible: bool = False,
) -> ShardResult:
    """Splits the dropped rows off and puts the rest at `key`, unless the shard is there already, and whole.

    With `reproducible`, a shard that is there must hold what would be written now; raises `StageError` else.
    """
    is_published = shard.stage == keys.PUBLISH  # which drops nothing
    dropped = pc.is_valid(marked.column("drop_reason"))
    kept = (marked if is_published else marked.filter(pc.invert(dropped))).drop_columns(
        [name for name in ("drop_reason", "evidence") if name in marked.column_names]
    )
    info = ShardInfo(
        *shard,
        rows_in=rows_in,
        rows_out=kept.num_rows,
        num_target_tokens=shards.num_target_tokens(kept),
        ledger=_ledger_rows(marked.filter(dropped)),
        source_sha256=source_sha256,
        fidelity=fidelity.statistics(kept) if is_published else {},
        teachers=shards.of_teachers(kept),
    )
    data = shards.encode(kept, info)
    is_ours = folder.put_if_absent(key, data)
    if not is_ours:
        try:
            there = shards.load(folder, key, None if reproducible else [], shard)
        except DamagedError as error:
            logger.warning("%s; %s", error, quarantine(folder, key, shard))
            is_ours = folder.put_if_absent(key, data)
        else:
            assert there.info is not None
            # Not by their bytes: another version of the Parquet library writes the same rows differently.
            if reproducible and (there.info != info or not there.table.equals(kept)):
                raise StageError(
                    f"{folder.path(key)}: differs from what the source gives now; the source changed since this run "
                    "began, so start a new run_dir (or restore the source)"
                )
            info = there.info  # another worker was first: what it wrote is what counts
    if not is_published:
        write_ledger(folder, info)
    # An ingest that goes on meets its own shards, so there it says nothing.
    return of_info(info, seconds, "written" if is_ours or reproducible else "others")


def write_ledger(folder: Folder, info: ShardInfo) -> None:
    """The people's view of a shard's dropped rows."""
    key, data = keys.ledger_shard(info.stage, info.shard), shards.encode(shards.ledger_table([info]))
    if not folder.put_if_absent(key, data) and folder.get_or_none(key) != data:
        folder.put(key, data)


def check_contract(stage: str, before: pa.Table, after: pa.Table, samples: int) -> None:
    """Raises `StageError` unless `after` has the rows of `before`, in order and `samples` times each, with every column
    unchanged that it still has, and says which of them to drop."""
    if "drop_reason" not in after.column_names:
        raise StageError(f"{stage}: returned no drop_reason column; a stage marks every row")
    if after.num_rows != before.num_rows * samples:
        raise StageError(
            f"{stage}: returned {after.num_rows} rows for {before.num_rows} x {samples}; a stage keeps the row set"
        )
    rows = None if samples == 1 else pa.array(np.repeat(np.arange(before.num_rows), samples))
    names = ["prompt_id", "source_row"] if stage in keys.TEACHERS else before.column_names
    for name in names:
        if name in after.column_names:
            expected = before.column(name) if rows is None else before.column(name).take(rows)
            if after.column(name).equals(expected):
                continue
        raise StageError(f"{stage}: lost, changed or reordered column {name!r}; a stage only adds columns")


def _ledger_rows(dropped: pa.Table) -> list[dict[str, Any]]:
    names = [n for n in ("prompt_id", "sample_id", "source", "source_row") if n in dropped.column_names]
    scores = next((n for n in ("response_scores", "prompt_scores") if n in dropped.column_names), None)
    personal = next((n for n in ("response_personal", "prompt_personal") if n in dropped.column_names), None)
    rows: list[dict[str, Any]] = dropped.select(names).to_pylist()
    reasons = dropped.column("drop_reason").to_pylist()
    scored = dropped.column(scores).to_pylist() if scores else [None] * len(rows)
    items = dropped.column("evidence").to_pylist() if "evidence" in dropped.column_names else [None] * len(rows)
    found = dropped.column(personal).to_pylist() if personal else [None] * len(rows)
    loops = dropped.column("loop_tokens").to_pylist() if "loop_tokens" in dropped.column_names else [None] * len(rows)
    for row, reason, values, counts, evidence, length in zip(rows, reasons, scored, found, items, loops, strict=True):
        row["reason"] = reason
        if reason == PERSONAL:
            values = {kind: float(count) for kind, count in counts.items() if count}
        if reason == "degenerate_answer" and length is not None:
            values = {**(values or {}), "loop_tokens": float(length)}
        if values is not None:
            row["scores"] = [{"label": label, "score": score} for label, score in values.items()]
            if evidence is not None:
                row["scores"].append({"label": evidence, "score": values[EVIDENCE_LABELS[reason]]})
    return rows
