"""The checks of a file before its rows: its bytes, whose it says it is, its columns."""

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.dataset.checks.findings import Findings
from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder import Folder, shard
from stillhouse.pipeline.folder.shard import ShardId
from stillhouse.schemas import tables
from stillhouse.schemas.config import STORED, TargetsConfig

MAY_BE_NULL = frozenset(
    {
        "cluster_id",
        "cluster_size",
        "language",
        "messages.reasoning_content",
        "probe",
        "prompt_language",
        "prompt_scores",
        "prompt_personal",
        "prompt_topic",
        "response_personal",
        "redacted",
        "rendering_differs",
        "response_scores",
        "source",
        "source_row",
    }
)


def read(folder: Folder, key: str, file: dict[str, Any], findings: Findings) -> bytes | None:
    """The bytes that a manifest's entry `file` is about; None where they are not there."""
    try:
        data = folder.get(key)
    except FileNotFoundError:
        findings.leave_out("is missing; run or export again to make it again")
        return None
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        findings.leave_out(
            "is not the file that manifest.json names (another sha256); delete it, then run or export again"
        )
        return None
    if len(data) != file["bytes"]:
        findings.file_problem(f"has {len(data):,} bytes, manifest.json says {file['bytes']:,}")
    return data


def table_of(data: bytes, file: dict[str, Any], expected: ShardId, findings: Findings) -> pa.Table | None:
    """The table of a Parquet file, which must be the shard `expected`; None where there is nothing to go on with."""
    try:
        found = shard.decode(data, findings.name)
    except DamagedError as error:
        findings.is_left_out = True
        findings.problem(str(error))
        return None
    info, table = found.info, found.table
    if info is None:
        findings.leave_out("does not say whose it is (no `stillhouse` in its footer); make it again")
        return None
    if info.id != expected:
        findings.leave_out(
            f"its footer says that it is {_named(info.id)}, and not {_named(expected)}; put the right file back"
        )
        return None
    counts = [("rows", table.num_rows, info.rows_out, file["rows"])]
    if "labels" in table.column_names or info.num_target_tokens != file["target_tokens"]:
        counts.append(("supervised tokens", None, info.num_target_tokens, file["target_tokens"]))
    for what, held, footer, listed in counts:
        held = footer if held is None else held
        if not held == footer == listed:
            findings.leave_out(f"holds {held:,} {what}, its footer says {footer:,} and manifest.json {listed:,}")
            return None
    too_long = file.get("rows_too_long", info.rows_in - info.rows_out)
    if info.rows_in - too_long != info.rows_out:
        findings.leave_out(
            f"was made of {info.rows_in:,} rows, of which {too_long:,} were too long, and holds {info.rows_out:,}"
        )
        return None
    findings.rows = table.num_rows
    findings.schema = str(table.schema)
    return table


def _named(identity: ShardId) -> str:
    return f"{identity.stage} {identity.shard} of configuration {identity.config_hash[:12]}"


def published_schema(table: pa.Table, targets: dict[str, Any]) -> pa.Schema:
    """What a published file's columns must be. The labels of scores and the kinds of personal information are the
    table's own."""
    columns = ("prompt_scores", "response_scores", "prompt_personal")
    labels, response_labels, kinds = (_names_in(table.schema, column) for column in columns)
    precision, has_entropy = targets.get("precision") or 0.0, "teacher_entropy" in targets
    raw = {"method": targets["method"], "precision": precision, "entropy": has_entropy or None}
    settings = TargetsConfig.model_validate(raw, context=STORED)
    names = table.column_names
    more = {"asked": "asked_ids", "student": "student_logprobs", "several": tables.TEACHER.name}
    there = {key: name in names for key, name in more.items()}
    return tables.reviewed(labels, settings, kinds, response_labels, names, **there)


def _names_in(schema: pa.Schema, column: str) -> list[str]:
    """The fields of a struct column; none where it is absent or no struct."""
    found = schema.field(column).type if column in schema.names else None
    return [field.name for field in found] if found is not None and pa.types.is_struct(found) else []


def check_columns(table: pa.Table, expected: pa.Schema, findings: Findings) -> bool:
    """Whether a table has the columns of `expected`, in order and without holes: else no loader reads all files."""
    names, wanted = table.column_names, expected.names
    if missing := [name for name in wanted if name not in names]:
        findings.leave_out(f"has no column {', '.join(missing)}")
    elif extra := [name for name in names if name not in wanted] or [n for n in set(names) if names.count(n) > 1]:
        findings.leave_out(f"has a column too many: {', '.join(extra)}")
    elif names != wanted:
        findings.leave_out(f"has its columns in another order: {', '.join(names)}")
    else:
        for field in expected:
            found = table.schema.field(field.name).type
            if found != field.type:
                findings.leave_out(f"column {field.name} has type {found} where {field.type} belongs")
                return False
        nulls = [text for name in names for text in _nulls(table.column(name), name)]
        if nulls:
            findings.leave_out(f"has nulls where none belong: {', '.join(nulls)}")
    return not findings.is_left_out


def _nulls(column: pa.Array | pa.ChunkedArray, name: str) -> list[str]:
    """How many nulls a column holds at any depth where it must not, in words."""
    if name in MAY_BE_NULL:
        return []
    if column.null_count:
        return [f"{column.null_count:,} in {name}"]
    if pa.types.is_list(column.type):
        return _nulls(pc.list_flatten(column), name)
    if pa.types.is_struct(column.type):
        return [
            text
            for field in column.type
            for text in _nulls(pc.struct_field(column, field.name), f"{name}.{field.name}")
        ]
    return []
