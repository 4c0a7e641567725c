"""Files of a source: rows in every format, and what is read back of them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import Row, read_rows


def conversation(i: int) -> dict[str, Any]:
    text = f'turn {i}: "quoted", [brackets] {{braces}} \\ back\\slash, é 漢 😀\nline'
    return {"conversation_id": f"c{i}", "conversation": [{"content": text, "role": "user"}], "language": "English"}


ROWS = [conversation(i) for i in range(23)]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def array(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def parquet(rows: list[Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.compress}


def read(*paths: Path | str) -> list[Row]:
    return list(read_rows(SourceConfig(path=[str(path) for path in paths])))


def values(rows: list[Row]) -> list[Any]:
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.value for row in rows]


def errors(rows: list[Row]) -> list[str | None]:
    return [row.error for row in rows]
