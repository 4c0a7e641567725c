"""Arrow, as `datasets`, Feather's writer and PyArrow write it, whole and cut off."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pytest

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import Row, SourceError, read_rows
from stillhouse.stages.sources.row import TRUNCATED_SOURCE, UNDECODABLE
from tests.support.ingesting import ingested
from tests.support.source_files import ROWS, errors, read, values


def stream(rows: list[dict[str, object]], batch_rows: int = 5) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return bytes(sink.getvalue())


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=3)
    (tmp_path / "saved/cache-0123456789abcdef.arrow").write_bytes(stream(ROWS))  # what a `map` leaves there
    for place in (tmp_path / "saved", f"file://{tmp_path}/saved"):
        assert values(read(place)) == ROWS
    assert [row["user_turns"] for row in ingested(read(tmp_path / "saved"))] == [
        [row["conversation"][0]["content"]] for row in ROWS
    ]


@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
def test_feather_is_read(tmp_path: Path, compression: str) -> None:
    pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(tmp_path / "a.feather"), compression, chunksize=4)
    assert values(read(tmp_path / "a.feather")) == ROWS


def test_only_what_is_looked_at_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(stream([{"prompt": "Hello", "embedding": [0.5] * 10, "id": 7}]))
    source = SourceConfig(path=str(tmp_path / "a.arrow"))
    assert [row.value for row in read_rows(source)] == [{"prompt": "Hello", "id": 7}]


def test_cut_off_anywhere_it_says_so(tmp_path: Path) -> None:
    data = stream(ROWS[:9], batch_rows=3)
    whole = values(read_bytes(tmp_path, data))
    assert whole == ROWS[:9]
    num_refused = 0
    for end in range(0, len(data), 7):
        try:
            rows = read_bytes(tmp_path, data[:end])
        except SourceError:
            num_refused += 1  # before the end of the schema
            continue
        assert errors(rows) == [None] * (len(rows) - 1) + [TRUNCATED_SOURCE], end
        assert values(rows[:-1]) == whole[: len(rows) - 1]
    assert 0 < num_refused < len(data) / 7 / 2


def test_damage_ends_no_process(tmp_path: Path) -> None:
    data = stream(ROWS[:9], batch_rows=3)
    for place in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        try:
            rows = read_bytes(tmp_path, bytes(damaged))
        except SourceError:
            continue
        assert len(rows) <= 10


@pytest.mark.parametrize("large", [False, True])
def test_a_text_that_is_not_utf8_costs_one_row(large: bool, tmp_path: Path) -> None:
    text, raw, a_list = (
        (pa.large_string(), pa.large_binary(), pa.LargeListArray) if large else (pa.string(), pa.binary(), pa.ListArray)
    )
    texts = pa.array([b"one", b"\xff", b"three", b"four", b"five", b"six"], raw).view(text)
    messages = pa.StructArray.from_arrays([pa.array(["user"] * 6), texts], ["role", "content"])
    table = pa.table({"id": range(6), "messages": a_list.from_arrays(range(7), messages)})
    for make in (pa.ipc.new_stream, pa.ipc.new_file):
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
        assert errors(read(tmp_path / "a.arrow")) == [None, UNDECODABLE, None, None, None, None]
        kept = [record["user_turns"] for record in ingested(read(tmp_path / "a.arrow"))]
        assert kept == [["one"], None, ["three"], ["four"], ["five"], ["six"]]


def read_bytes(folder: Path, data: bytes) -> list[Row]:
    (folder / "a.arrow").write_bytes(data)
    return list(read(folder / "a.arrow"))
