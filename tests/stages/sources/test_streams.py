"""Compressed streams that end early or are damaged."""

import os
import random
from pathlib import Path

import pytest

from stillhouse.stages.sources import Row
from stillhouse.stages.sources.row import TRUNCATED_SOURCE
from tests.support.source_files import COMPRESS, array, jsonl, read, values


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_cut_off_stream_gives_what_came_before_and_one_last_row(compression: str, kind: str, tmp_path: Path) -> None:
    generator = random.Random(1)
    rows = [{"id": i, "noise": generator.randbytes(2000).hex()} for i in range(200)]
    plain = (jsonl if kind == "jsonl" else array)(rows)
    whole = COMPRESS[compression](plain)
    path = tmp_path / f"a.{kind}.{compression}"
    lengths = set()
    for size in [len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        path.write_bytes(whole[:size])
        *before, last = read(path)
        assert last == Row(None, TRUNCATED_SOURCE)
        assert values(before) == rows[: len(before)]
        lengths.add(len(before))
    assert len(lengths) >= 3
    assert max(lengths) >= 160  # a zstd block is 128 KiB, 32 rows
    damaged = bytearray(whole)
    damaged[len(whole) // 2 :] = os.urandom(len(whole) - len(whole) // 2)
    path.write_bytes(damaged)
    *before, last = read(path)
    assert last == Row(None, TRUNCATED_SOURCE)
