"""Ids of a source: which can be used, and what becomes of those that cannot or that repeat."""

import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.stages.sources import read_rows
from tests.support.ingesting import configured, ingested
from tests.support.source_rows import lmsys, user


def test_ids_that_restart_in_each_file_cost_no_row(tmp_path: Path) -> None:
    for name in "abc":
        rows = [{"id": i, "messages": [user(f"question {i} of {name if i else 'all'}")]} for i in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = configured(tmp_path)
    records = ingested(read_rows(config.source), config)
    assert [r["drop_reason"] for r in records] == [None] * 5 + ["duplicate_id", *[None] * 4] * 2
    kept = [r for r in records if r["drop_reason"] is None]
    assert [r["prompt_id"] for r in kept[:5]] == ["0", "1", "2", "3", "4"]
    assert len({r["prompt_id"] for r in kept}) == len(kept) == 13
    again = configured(tmp_path, rows_per_shard=2)
    assert ingested(read_rows(again.source), again) == records


def test_ids_that_restart_may_differ_in_the_system_prompt_or_look_like_made_ones() -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [lmsys("a", user("x")), lmsys("a", system, user("x")), lmsys("a", user("y")), lmsys("a", user("x"))]
    first = ingested(rows)
    assert [r["drop_reason"] for r in first] == [None, None, None, "duplicate_id"]
    # A source whose own ids are those that ingest would make.
    stolen = [lmsys(r["prompt_id"], user("z")) for r in first[:3]]
    records = ingested([*stolen, *rows])
    assert [r["drop_reason"] for r in records] == [*[None] * 6, "duplicate_id"]
    assert len({r["prompt_id"] for r in records[:6]}) == 6


BAD: list[Any] = [True, [], {}, "", " ", "a\nb", "\ud800", "x" * 513, float("nan"), float("inf"), 1e400]
ODD_IDS: list[tuple[Any, str | None]] = [
    (7.0, "7"),
    (1.5, "1.5"),
    (-3, "-3"),
    (Decimal("12"), "12"),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (b"abc", "abc"),
    (b"\xff\x00", "ff00"),
    ({"$oid": "65f0"}, "65f0"),
    *((bad, None) for bad in BAD),
]


@pytest.mark.parametrize(("found", "expected"), ODD_IDS)
def test_an_id_that_cannot_be_used_costs_no_row(found: Any, expected: str | None) -> None:
    (record,) = ingested([lmsys(found, user("hi"))])
    (made,) = ingested([lmsys(None, user("hi"))])
    assert record["drop_reason"] is None
    assert record["prompt_id"] == (expected or made["prompt_id"])


def test_ids_of_parquet_types(tmp_path: Path) -> None:
    messages = [[user(f"question {i}")] for i in range(2)]
    columns: dict[str, tuple[pa.Array, list[str]]] = {
        "floats": (pa.array([3.0, None]), ["3"]),  # pandas, where an id is missing
        "uuids": (pa.array([bytes(15) + b"\x07", None], pa.uuid()), ["00000000-0000-0000-0000-000000000007"]),
        "fixed": (pa.array([b"\x00\xfe", b"\xff\xff"], pa.binary(2)), ["00fe", "ffff"]),
        "decimals": (pa.array([Decimal("1"), Decimal("2")], pa.decimal128(9, 0)), ["1", "2"]),
        "objects": (pa.array([{"$oid": "a1"}, {"$oid": "a2"}]), ["a1", "a2"]),
    }
    for name, (ids, expected) in columns.items():
        pq.write_table(pa.table({"id": ids, "messages": messages}), tmp_path / f"{name}.parquet")
        config = configured(tmp_path / f"{name}.parquet")
        records = ingested(read_rows(config.source), config)
        assert [r["drop_reason"] for r in records] == [None, None], name
        assert [r["prompt_id"] for r in records][: len(expected)] == expected
