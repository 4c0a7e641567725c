"""Shards: whole or absent, one winner, and damage is seen."""

import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import shards
from pipeline.shards import ShardError, ShardInfo, Store

INFO = ShardInfo("screen", "00000.parquet", "hash", 3, 2, 0, [{"prompt_id": "a", "source_row": 1, "reason": "x"}])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def test_first_writer_wins(store: Store) -> None:
    assert store.put_if_absent("a/b.parquet", b"one")
    assert not store.put_if_absent("a/b.parquet", b"two")
    assert store.get("a/b.parquet") == b"one"
    assert store.list("a") == {"b.parquet": 3}


def test_one_of_many_racing_writers_wins(store: Store) -> None:
    results: list[bool] = []
    barrier = threading.Barrier(16)

    def write(n: int) -> None:
        barrier.wait()
        results.append(store.put_if_absent("x", bytes([n]) * 1000))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(True) == 1
    assert len(set(store.get("x"))) == 1
    assert store.list(".") == {"x": 1000}


def test_writer_killed_before_the_link_leaves_nothing_that_counts(store: Store) -> None:
    code = (
        "import os, sys\nfrom pipeline.shards import Store\n"
        "os.link = lambda *a: os.kill(os.getpid(), 9)\n"
        "Store(sys.argv[1]).put_if_absent('stage/00000.parquet', b'x' * 100)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, store.url], cwd=Path(__file__).parents[1], check=False)
    assert result.returncode == -9
    assert store.list("stage") == {}
    assert list((Path(store.url) / "stage").iterdir())  # the staged file is there, and no listing shows it
    assert store.put_if_absent("stage/00000.parquet", b"y")


def test_shard_gives_back_table_and_info(store: Store) -> None:
    table = pa.table({"prompt_id": ["a", "b"], "target_ids": pa.array([[1, 2], [3]], pa.list_(pa.int32()))})
    data = shards.encode(table, INFO)
    assert data == shards.encode(table, INFO)
    store.put_if_absent("k", data)
    assert shards.read(store, "k").equals(table)
    assert shards.read(store, "k", ("prompt_id",)).column_names == ["prompt_id"]
    info = shards.read_info(store, "k")
    assert info == INFO
    assert info.dropped == {"x": 1}
    assert shards.ledger_table([info]).to_pylist() == [
        {
            "prompt_id": "a",
            "sample_id": None,
            "source": None,
            "source_row": 1,
            "stage": "screen",
            "reason": "x",
            "scores": None,
        }
    ]


def test_damage_is_seen(store: Store) -> None:
    table = pa.table({"x": list(range(5000))})
    data = shards.encode(table, INFO)
    for name, damaged in {
        "cut": data[: len(data) // 2],
        "flipped": data[:200] + bytes([data[200] ^ 1]) + data[201:],
        "foreign": b"hello",
        "empty": b"",
    }.items():
        store.put_if_absent(name, damaged)
        with pytest.raises(ShardError, match=name):
            shards.read(store, name)
    store.put_if_absent("plain", shards.encode(table))
    with pytest.raises(ShardError, match="not written by a run"):
        shards.read_info(store, "plain")


def test_put_replaces(store: Store) -> None:
    store.put("m", b"1")
    store.put("m", b"2")
    assert store.get("m") == b"2"
    store.delete("m")
    store.delete("m")
    assert store.get_or_none("m") is None
