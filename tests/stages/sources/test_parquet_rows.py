"""Parquet row by row: which columns are read, and what damage costs."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.stages.sources.row import UNDECODABLE
from tests.support.source_files import conversation, errors, parquet, read, values


def test_parquet_reads_only_what_an_importer_needs(tmp_path: Path) -> None:
    row = conversation(1) | {
        "model": "m",
        "openai_moderation": [{"categories": {"hate": True}, "flagged": True, "category_scores": {"hate": 0.5}}],
    }
    row["conversation"][0] |= {"header": "h", "toxic": False}
    (tmp_path / "a.parquet").write_bytes(parquet([row]))
    (value,) = values(read(tmp_path / "a.parquet"))
    assert value == {
        "conversation_id": "c1",
        "language": "English",
        "openai_moderation": [{"flagged": True}],
        "conversation": [{"content": row["conversation"][0]["content"], "role": "user", "toxic": False}],
    }


def test_parquet_files_need_not_agree(tmp_path: Path) -> None:
    tables: list[list[dict[str, Any]]] = [
        [conversation(0)],
        [{"conversation_id": 7, "conversation": ["text"], "openai_moderation": [True]}],
        [{"unrelated": 1}, {"unrelated": 2}],
        [{"id": None, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}],
        [{"conversation": "a string"}],
    ]
    for i, rows in enumerate(tables):
        (tmp_path / f"{i}.parquet").write_bytes(parquet(rows))
    assert values(read(tmp_path)) == [*tables[0], *tables[1], {}, {}, *tables[3], *tables[4]]


def test_invalid_utf8_in_parquet_costs_one_row(tmp_path: Path) -> None:
    texts = [b"caf\xc3\xa9", b"\xff\xfe", b"x", None]
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": column, "messages": [["a"]] * 4}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert errors(rows) == [None, UNDECODABLE, None, None]
    assert [row.value["id"] for row in rows if isinstance(row.value, dict)] == ["café", "x", None]


def test_a_damaged_page_costs_its_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"id": f"row {i}", "language": str(i) * 50} for i in range(300)]
    data = bytearray(parquet(rows, row_group_size=100, compression="zstd", use_dictionary=False))
    meta = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1).column(0)
    data[meta.data_page_offset : meta.data_page_offset + meta.total_compressed_size] = (
        b"\xff" * meta.total_compressed_size
    )
    path.write_bytes(data)
    read_back = read(path)
    assert errors(read_back) == [None] * 100 + [UNDECODABLE] * 100 + [None] * 100
    assert [row.value for row in read_back if row.error is None] == rows[:100] + rows[200:]
