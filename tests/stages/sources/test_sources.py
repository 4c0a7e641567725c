"""A source as its users see it: rows of every format, one at a time, in little memory."""

import gzip
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import SourceError, count_rows, read_rows, source_name
from tests.support.python import run_python
from tests.support.source_files import COMPRESS, ROWS, array, jsonl, parquet, read, values

ENCODINGS: dict[str, Callable[[list[Any]], bytes]] = {
    "a.parquet": parquet,
    "a.jsonl": jsonl,
    "a.NDJSON": jsonl,
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.jsonl.zst": lambda rows: zstandard.compress(jsonl(rows)),
    "a.ndjson.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.json": array,
    "a.json.gz": lambda rows: gzip.compress(array(rows)),
    "a.json.zst": lambda rows: zstandard.compress(array(rows)),
    "lines.json": jsonl,
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + jsonl(rows),
    "bom.json": lambda rows: b"\xef\xbb\xbf \n" + array(rows),
    "crlf.jsonl": lambda rows: jsonl(rows).replace(b"\n", b"\r\n"),
    "blank.jsonl": lambda rows: b"\n \n" + jsonl(rows).replace(b"\n", b"\n\n\t\n"),
    "no-end.jsonl": lambda rows: jsonl(rows).rstrip(),
    "skippable.jsonl.zst": lambda rows: b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(jsonl(rows)),
    "members.jsonl.gz": lambda rows: gzip.compress(jsonl(rows[:5])) + gzip.compress(jsonl(rows[5:])) + bytes(9000),
    "frames.jsonl.zst": lambda rows: zstandard.compress(jsonl(rows[:5])) + zstandard.compress(jsonl(rows[5:])),
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("place", ["path", "url"])
def test_every_format_locally_and_through_a_store(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ENCODINGS[name](ROWS))
    assert values(read(tmp_path / name if place == "path" else f"file://{tmp_path}/{name}")) == ROWS


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz", "e.json", "e.json.zst", "e.csv", "e.tsv.gz"])
def test_an_empty_file_has_no_rows(name: str, tmp_path: Path) -> None:
    empty = b" [ ] \n" if ".json" in name and "jsonl" not in name else b""
    (tmp_path / name).write_bytes(COMPRESS.get(name[-3:].strip("."), bytes)(empty))
    assert read(tmp_path / name) == []


def test_rows_are_read_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    rows = read_rows(SourceConfig(path=str(tmp_path)))
    assert [next(rows).value for _ in ROWS] == ROWS
    with pytest.raises(SourceError, match="footer"):
        next(rows)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"path": "/data/lmsys/train.parquet"}, "train.parquet"),
        ({"path": "s3://bucket/lmsys/"}, "lmsys"),
        ({"path": ["a/x.jsonl", "b/y.jsonl"]}, "x.jsonl"),
        ({"path": "a.jsonl", "name": "mine"}, "mine"),
        ({"dataset": "lmsys/lmsys-chat-1m", "revision": "main"}, "lmsys/lmsys-chat-1m"),
    ],
)
def test_source_name(config: dict[str, Any], name: str) -> None:
    assert source_name(SourceConfig(**config)) == name


def test_rows_are_counted_without_reading_them(tmp_path: Path) -> None:
    """Where the format allows that; otherwise the limit is all that is known."""
    (tmp_path / "a.parquet").write_bytes(parquet(ROWS, row_group_size=5))
    (tmp_path / "b.PARQUET").write_bytes(parquet(ROWS[:4]))
    both, either = str(tmp_path / "*.[pP][aA]*"), str(tmp_path)
    assert count_rows(SourceConfig(path=both)) == len(ROWS) + 4 == len(read(both))
    assert count_rows(SourceConfig(path=both, limit=25)) == 25
    (tmp_path / "c.jsonl").write_bytes(jsonl(ROWS))
    assert count_rows(SourceConfig(path=either)) is None
    assert count_rows(SourceConfig(path=either, limit=25)) == 25
    assert count_rows(SourceConfig(dataset="org/chats", revision="v1", limit=3)) == 3
    for damaged in (b"", b"PAR1", parquet(ROWS)[:-6]):
        (tmp_path / "b.PARQUET").write_bytes(damaged)
        assert count_rows(SourceConfig(path=both)) is None


# Each file in a child of its own, whose peak begins where its parent is: everything is imported once.
PEAK_GROWTHS = """
import os, sys, traceback
import obstore.store, pyarrow.parquet, zstandard
from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import read_rows
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
def measure(small, large):
    list(read_rows(SourceConfig(path=small)))
    before = peak()
    count = sum(1 for row in read_rows(SourceConfig(path=large)) if row.error is None)
    print(count, peak() - before, flush=True)
for small, large in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    try:
        measure(small, large)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
"""


def write_large(path: Path, num_rows: int) -> None:
    """Rows of 12 KB of text each."""
    generator = random.Random(1)
    noise = [generator.randbytes(6000).hex() for _ in range(50)]
    rows = ({"id": str(i), "messages": [{"role": "user", "content": noise[i % 50]}]} for i in range(num_rows))
    if path.suffix == ".gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
    elif path.suffix == ".zst":
        with zstandard.open(path, "wb") as file:
            file.write(b"[" + json.dumps(next(rows)).encode())
            for row in rows:
                file.write(b"," + json.dumps(row).encode())
            file.write(b"]")
    else:  # one row group, no dictionary to shrink it
        pq.write_table(
            pa.Table.from_pylist(list(rows)), path, use_dictionary=False, compression="none", write_batch_size=64
        )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst", "a.parquet"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    is_parquet, mib = name.endswith("parquet"), 1 << 20
    num_rows = 15_000 if is_parquet else 5000  # 180 or 60 MB of text
    write_large(tmp_path / name, num_rows)
    write_large(tmp_path / f"small-{name}", 10)
    places = [f"{place}{tmp_path}/{prefix}{name}" for place in ("", "file://") for prefix in ("small-", "")]
    for line in run_python(PEAK_GROWTHS, *places).splitlines():
        count, growth = map(int, line.split())
        assert count == num_rows
        assert growth < (100 if is_parquet else 30) * mib, f"{growth / mib:.0f} MiB"
        print(f"{name}: {growth / mib:.0f} MiB")
