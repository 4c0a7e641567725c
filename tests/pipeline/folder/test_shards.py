"""Shards: whole or absent, one winner, and damage is seen."""

import dataclasses
import errno
import hashlib
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.errors import DamagedError, StorageError
from stillhouse.pipeline.folder import Folder, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.shard import ShardId, ShardInfo
from tests.support.data import ROOT

INFO = ShardInfo("screen", "00000.parquet", "hash", 3, 2, 0, [{"prompt_id": "a", "source_row": 1, "reason": "x"}])


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return open_folder(str(tmp_path / "run"))


def test_first_writer_wins(store: Folder) -> None:
    assert store.put_if_absent("a/b.parquet", b"one")
    assert not store.put_if_absent("a/b.parquet", b"two")
    assert store.get("a/b.parquet") == b"one"
    assert store.list("a") == {"b.parquet": 3}


def test_one_of_many_racing_writers_wins(store: Folder) -> None:
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
    assert store.list("state/staged") == {}


def test_writer_killed_before_the_link_leaves_nothing_that_counts(store: Folder) -> None:
    code = (
        "import os, sys\nfrom stillhouse.pipeline.folder import open_folder\n"
        "os.link = lambda *a: os.kill(os.getpid(), 9)\n"
        "open_folder(sys.argv[1]).put_if_absent('stage/00000.parquet', b'x' * 100)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, store.url], cwd=ROOT, check=False)
    assert result.returncode == -9
    assert store.list("stage") == {}
    assert len(store.list("state/staged")) == 1
    assert store.put_if_absent("stage/00000.parquet", b"y")


@pytest.mark.parametrize("part_bytes", [1, 50, 1 << 20])
def test_a_file_is_checked_as_a_whole_a_part_at_a_time(
    part_bytes: int, store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shards.encode(pa.table({"prompt_id": ["a", "b"], "x": [1.5, 2.5]}), INFO)
    store.put("k", data)
    monkeypatch.setattr(shards, "_PART_BYTES", part_bytes)
    monkeypatch.setattr(type(store), "get", None)
    footer, of_file = shards.read_whole(store, "k", len(data))
    assert footer == shards.read_footer(store, "k")
    assert footer.sha256 == shards.verify(data, "k")
    assert of_file == hashlib.sha256(data).hexdigest()
    for place in range(0, len(data), 7):
        store.put("k", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DamagedError, match="k: is damaged"):
            shards.read_whole(store, "k", len(data))
    store.put("k", data[:-20])
    for size in (len(data), len(data) - 20):
        with pytest.raises(DamagedError):
            shards.read_whole(store, "k", size)


def test_shard_gives_back_table_and_info(store: Folder) -> None:
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


def test_damage_is_seen(store: Folder) -> None:
    table = pa.table({"x": list(range(5000))})
    data = shards.encode(table, INFO)
    for name, damaged in {
        "cut": data[: len(data) // 2],
        "cut by one": data[:-1],
        "longer": data + b"\0",
        "foreign": b"hello",
        "Parquet of another writer": foreign_parquet(table),
        "empty": b"",
    }.items():
        store.put_if_absent(name, damaged)
        with pytest.raises(DamagedError, match=name):
            shards.read(store, name)
    store.put_if_absent("plain", shards.encode(table))
    with pytest.raises(DamagedError, match="not written by a run"):
        shards.read_info(store, "plain")


def foreign_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_every_flipped_bit_is_seen() -> None:
    table = pa.table({"x": [1, 2, 3], "text": ["a", "b", None]})
    data = bytearray(shards.encode(table, INFO))
    assert shards.decode(bytes(data), "here").table.equals(table)
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            shards.decode(bytes(data), "here")
        data[bit // 8] ^= 1 << bit % 8


def test_flipped_bits_in_what_a_footer_says_are_seen_without_the_rest(store: Folder) -> None:
    """The counts of a run are read from footers alone."""
    data = shards.encode(pa.table({"x": [1, 2, 3]}), INFO)
    start = data.rindex(b'{"config_hash"')
    stop = data.index(b"}", data.index(b'"stage"', start)) + 1
    assert shards.ShardInfo.from_json(data[start:stop]) == INFO
    for place in range(start, stop):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        store.put("k", flipped)
        with pytest.raises(DamagedError):
            shards.read_info(store, "k")


def test_digest_is_sha256_over_the_file_with_zeros_in_its_place() -> None:
    """What docs/format.md says, done by its words."""
    data = shards.encode(pa.table({"x": [1, 2, 3]}), INFO)
    digest = pq.read_metadata(pa.BufferReader(data)).metadata[b"stillhouse.sha256"]
    assert data.count(digest) == 1
    assert hashlib.sha256(data.replace(digest, b"0" * 64)).hexdigest().encode() == digest
    assert shards.verify(data, "here").encode() == digest


def test_prompt_that_looks_like_a_digest_changes_nothing(store: Folder) -> None:
    mark = "\x18\x11stillhouse.sha256\x18@" + "0" * 64
    table = pa.table({"x": [mark] * 3})
    info = dataclasses.replace(INFO, ledger=[{"prompt_id": mark, "source_row": 1, "reason": "x"}])
    store.put("k", shards.encode(table, info))
    shard = shards.load(store, "k")
    assert (shard.table, shard.info) == (table, info)
    # Statistics hold the text as well, before the real one.
    assert pq.read_metadata(store.path("k")).metadata[b"stillhouse.sha256"] == shard.sha256.encode()


def test_other_readers_read_a_shard_and_see_no_extra_schema(store: Folder) -> None:
    import datasets

    table = pa.table({"x": [1, 2, 3]})
    store.put("k.parquet", shards.encode(table, INFO))
    plain = pq.read_table(store.path("k.parquet"))
    assert plain.equals(table)
    assert plain.schema.metadata is None
    loaded = datasets.load_dataset("parquet", data_files=store.path("k.parquet"), split="train", streaming=True)
    assert [row["x"] for row in loaded] == [1, 2, 3]


def test_shard_of_another_name_is_not_taken_for_this_one() -> None:
    data = shards.encode(pa.table({"x": [1]}), INFO)
    right = ShardId("screen", "00000.parquet", "hash")
    assert shards.decode(data, "here", expected=right).info == INFO
    for wrong in (
        right._replace(stage="dedupe"),
        right._replace(shard="00001.parquet"),
        right._replace(config_hash="x"),
    ):
        with pytest.raises(DamagedError, match="holds screen 00000"):
            shards.decode(data, "here", expected=wrong)
    with pytest.raises(DamagedError, match="unnamed"):
        shards.decode(shards.encode(pa.table({"x": [1]})), "here", expected=right)


@pytest.mark.parametrize("call", ["write", "fsync", "link", "mkdir"])
def test_failed_write_is_told_and_leaves_nothing(store: Folder, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    assert store.put_if_absent("a", b"there")
    if call == "write":
        opened = Path.open

        def full(path: Path, mode: str = "r") -> io.BufferedWriter:
            file = opened(path, mode)
            file.close()
            monkeypatch.setattr(Path, "open", opened)
            return opened(Path("/dev/full"), "r+b", buffering=0)  # type: ignore[return-value]

        monkeypatch.setattr(Path, "open", full)
    else:
        monkeypatch.setattr(Path if call == "mkdir" else os, call, fail)
    reason = "No space left on device" if call == "write" else "Read-only file system"
    with pytest.raises(StorageError, match=rf"run/new/key: cannot be written \({reason}\); check disk"):
        store.put_if_absent("new/key", b"x" * 100)
    monkeypatch.undo()
    assert [path.name for path in Path(store.url).rglob("*") if path.is_file()] == ["a"]
    assert store.put_if_absent("new/key", b"x")


def test_lost_mount_is_not_an_empty_folder(store: Folder) -> None:
    assert store.list("screen") == {}
    store.put("screen/00000.parquet", b"x")
    Path(store.url).rename(Path(store.url).parent / "elsewhere")
    for use in (
        lambda: store.list("screen"),
        lambda: store.get("screen/00000.parquet"),
        lambda: store.put_if_absent("screen/00001.parquet", b"x"),
    ):
        with pytest.raises(StorageError, match="the run folder is gone"):
            use()
    assert not Path(store.url).exists()


def test_sweep_deletes_what_killed_writers_left_and_nothing_under_way(store: Folder) -> None:
    store.put("a/b", b"x")
    old, new = (Path(store.url, "state/staged", name) for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert store.sweep() == 1
    assert list(store.list("state/staged")) == ["new"]
    assert list(store.list("a")) == ["b"]


def test_a_writer_that_ends_takes_no_folder_from_another(store: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two exports into one folder: one removes the folder of staged files when the other is about to write there."""
    opened = Path.open

    def open_late(path: Path, mode: str = "r") -> Any:
        monkeypatch.setattr(Path, "open", opened)
        store.remove_staged()
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", open_late)
    assert store.put_if_absent("data/a", b"x")
    assert store.get("data/a") == b"x"


def test_new_folders_are_synced_up_to_one_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = list[Path](), os.fsync

    def seen(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    store = open_folder(str(tmp_path / "runs/a"))
    store.put("data/b/c", b"x")
    above = {tmp_path / name for name in ("", "runs", "runs/a", "runs/a/state", "runs/a/data", "runs/a/data/b")}
    assert {path for path in synced if path.is_dir()} == above
    synced.clear()
    open_folder(str(tmp_path / "runs/a")).put("data/b/d", b"x")
    assert {path for path in synced if path.is_dir()} == {tmp_path / "runs/a/data/b"}


def test_put_replaces(store: Folder) -> None:
    store.put("m", b"1")
    store.put("m", b"2")
    assert store.get("m") == b"2"
    store.delete("m")
    store.delete("m")
    assert store.get_or_none("m") is None
