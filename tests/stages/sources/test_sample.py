"""A sample of a source: the same rows each time, any row as likely as another, in little memory."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.schemas.config import Config
from stillhouse.stages.ingest import Ingest
from stillhouse.stages.sources import count_rows, read_rows
from stillhouse.stages.sources.row import Row
from stillhouse.stages.sources.sample import draw

NUM_ROWS = 200


def numbers(count: int, size: int, seed: int) -> list[int]:
    rows = ((n, Row({"n": n})) for n in range(count))
    drawn = list(draw(rows, size, seed))
    assert all(row.value == {"n": n} for n, row in drawn)
    return [n for n, _ in drawn]


def test_rows_are_drawn_alike() -> None:
    counts = Counter(n for seed in range(2000) for n in numbers(20, 5, seed))
    # 500 expected of each; the standard deviation of a binomial is 19.4.
    assert all(abs(counts[n] - 500) < 90 for n in range(20)), counts


def test_samples_are_in_order_repeat_and_nest() -> None:
    small, large = numbers(1000, 10, 7), numbers(1000, 50, 7)
    assert small == sorted(small) == numbers(1000, 10, 7)
    assert set(small) < set(large)
    assert small != numbers(1000, 10, 8)
    assert numbers(3, 10, 7) == [0, 1, 2]


def test_memory_holds_the_sample_alone() -> None:
    alive = 0

    class Value:
        def __init__(self) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Iterator[tuple[int, Row]]:
        for n in range(5000):
            assert alive <= 12
            yield n, Row(Value())

    assert len(list(draw(rows(), 10, 1))) == 10


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_every_kind_of_source(tmp_path: Path, raw_config: dict[str, Any], suffix: str) -> None:
    records = [{"id": f"row-{n}", "messages": [{"role": "user", "content": f"question {n}"}]} for n in range(NUM_ROWS)]
    path = tmp_path / f"source{suffix}"
    lines = "\n".join(map(json.dumps, records)).encode()
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_bytes({".jsonl": lines, ".jsonl.gz": gzip.compress(lines)}.get(suffix, json.dumps(records).encode()))
    raw_config["source"] = {"path": str(path), "sample": 30}
    config = Config.model_validate(raw_config)

    def count(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    tables = list(Ingest(config, count)(read_rows(config.source)))
    assert [table.num_rows for table in tables] == [10, 10, 10]  # ingest.rows_per_shard
    table = pa.concat_tables(tables)
    rows = table["source_row"].to_pylist()
    assert table["prompt_id"].to_pylist() == [f"row-{n}" for n in rows]
    assert table["user_turns"].to_pylist() == [[f"question {n}"] for n in rows]
    assert max(rows) > NUM_ROWS / 2
    assert count_rows(config.source) == 30
