"""Parts of a shard: the right rows, few bytes, and nothing that is kept by another thread."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder import Folder, open_folder, shard
from stillhouse.pipeline.folder.columns import Columns

NUM_ROWS = 2000


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "local":
        yield open_folder(str(tmp_path))
    else:
        yield open_folder(f"{request.getfixturevalue('bucket')}/columns-{request.node.name}")


def put(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """A shard of 4 MB with 20 row groups, whose ids are a fiftieth of it."""
    random = np.random.default_rng(3)
    heavy = pa.FixedSizeListArray.from_arrays(pa.array(random.random(NUM_ROWS * 500, np.float32)), 500)
    table = pa.table(
        {
            "id": [f"id-{i}" for i in range(NUM_ROWS)],
            "heavy": heavy.cast(pa.list_(pa.float32())),
            "scores": pa.array([{"a": i, "b": -i} for i in range(NUM_ROWS)]),
            "number": range(NUM_ROWS),
        }
    )
    monkeypatch.setattr(shard, "ROW_GROUP_BYTES", table.nbytes // 20)
    folder.put("data/x.parquet", shard.encode(table))
    return table


class Counted:
    """How many bytes of a folder are read, and by how many requests."""

    def __init__(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = self.requests = 0
        part = folder.part

        def counted(key: str, start: int, end: int) -> bytes:
            data = part(key, start, end)
            self.bytes += len(data)
            self.requests += 1
            return data

        monkeypatch.setattr(folder, "part", counted)


def test_rows_and_columns_are_those_of_the_table(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    table = put(folder, monkeypatch)
    columns = Columns(folder, "data/x.parquet")
    assert (columns.num_rows, columns.schema) == (NUM_ROWS, table.schema)
    assert columns.read(["number", "id", "no such column"]).equals(table.select(["number", "id"]))
    assert columns.read(["scores.b"]).column("scores").to_pylist() == [{"b": -i} for i in range(NUM_ROWS)]
    numbers = [1999, 3, 700, 3, 0]
    assert columns.rows(numbers).equals(table.take(numbers))
    assert columns.rows(numbers, ["id"]).column("id").to_pylist() == [f"id-{i}" for i in numbers]
    assert columns.rows([]).equals(table.slice(0, 0))
    assert pa.Table.from_batches(columns.batches(["id"], 300)).equals(table.select(["id"]))
    for wrong in (NUM_ROWS, -1):
        with pytest.raises(IndexError):
            columns.rows([wrong])


def test_little_is_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, monkeypatch)
    size = folder.list("data")["x.parquet"]
    assert size > 3_000_000
    counted = Counted(folder, monkeypatch)
    columns = Columns(folder, "data/x.parquet")
    columns.rows([77])
    assert size / 20 < counted.bytes < size / 20 + 3 * (64 << 10)
    counted.bytes = 0
    columns.rows([1200], ["id"])
    assert counted.bytes <= 64 << 10
    counted.requests = 0
    columns.rows([800], ["scores", "number"])  # side by side: one request
    assert counted.requests == 1


def test_what_is_no_parquet_is_told(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        Columns(folder, "missing.parquet")
    folder.put("x.parquet", b"hello")
    with pytest.raises(DamagedError, match=r"x.parquet: is damaged or no Parquet file"):
        Columns(folder, "x.parquet")


def test_damaged_pages_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_folder(str(tmp_path))
    put(folder, monkeypatch)
    data = bytearray(folder.get("data/x.parquet"))
    data[len(data) // 2] ^= 1
    folder.put("data/x.parquet", bytes(data))
    columns = Columns(folder, "data/x.parquet")
    with pytest.raises(DamagedError, match="is damaged"):
        columns.read(["heavy"])
    with pytest.raises(DamagedError, match="is damaged"):
        list(columns.batches(["heavy"]))
    assert columns.rows([0]).column("number").to_pylist() == [0]
