"""An object store is a folder like any other: a real S3 server (moto's) on loopback, and the same behind a proxy that
fails on demand, or that speaks Google's dialect of its protocol."""

import asyncio
import http.client
import itertools
import json
import os
import urllib.parse
from datetime import timedelta
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.exceptions import GenericError

from stillhouse.pipeline.dataset.export import default_output, export
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.errors import DamagedError, StorageError
from stillhouse.pipeline.folder import Folder, keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.identity import open_run
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.pipeline.in_order import in_processes
from stillhouse.pipeline.look.status import status
from stillhouse.pipeline.run.progress import Progress, Reports
from stillhouse.pipeline.run.result import ShardResult
from stillhouse.pipeline.run.timeline import Timeline
from stillhouse.pipeline.run.worker import Worker
from stillhouse.schemas.config import Config, SourceConfig, WorkersConfig
from stillhouse.stages.sources import Row, SourceError, count_rows, object_store, pieces, read_rows
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.pieces import Piece
from tests.support.data import CONVERSATIONS, make_raw_config
from tests.support.datasets import write_dataset
from tests.support.prompts import numbered, put_screened
from tests.support.s3 import LATE_S, Fault, Proxy

BUCKET = "stillhouse-test"


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits between retries are the library's; as many retries as ever."""
    backoff = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20), "base": 2}
    monkeypatch.setattr(object_store, "RETRIES", object_store.RETRIES | {"backoff": backoff})


def test_store_keeps_its_promises(bucket: str) -> None:
    store = open_folder(f"{bucket}/run")
    assert store.get_or_none("a/b") is None
    assert store.put_if_absent("a/b", b"one")
    assert not store.put_if_absent("a/b", b"two")
    assert store.get("a/b") == b"one"
    store.put("a/c", b"1")
    store.put("a/c", b"22")
    assert store.list("a") == {"b": 3, "c": 2}
    assert store.list("nothing") == {}
    store.put("a/d/e", b"3")
    assert store.walk("a") == ("a/b", "a/c", "a/d/e")
    assert store.walk("nothing") == ()
    store.delete("a/c")
    store.delete("a/c")
    assert store.list("a") == {"b": 3}


@pytest.mark.parametrize("name", ["exp#1", "exp?x", "a%2Fb", "50%25", "50%", "my run", "été"])
def test_a_run_is_where_its_url_says(name: str, bucket: str) -> None:
    """A fragment, a query or an escape of a URL would be another folder, that of another run."""
    store = open_folder(f"{bucket}/odd/{name}")
    store.put("a/b.jsonl", b'{"prompt": "x"}\n')
    assert store.list("a") == {"b.jsonl": 16}
    assert store.walk("") == ("a/b.jsonl",)
    found = obstore.list(object_store.open_store(bucket, 30), f"odd/{name}/").collect()
    assert [entry["path"] for entry in found] == [f"odd/{name}/a/b.jsonl"]
    assert store.part("a/b.jsonl", 0, 8) + store.tail("a/b.jsonl", 8) == store.get("a/b.jsonl")
    source = SourceConfig(path=f"{bucket}/odd/{name}/a/b.jsonl")
    if "?" not in name:  # a glob, in a source
        assert len(list(read_rows(source))) == 1


def test_timeline_and_status(bucket: str, tmp_path: Path) -> None:
    config = Config.model_validate(make_raw_config(tmp_path) | {"run_dir": f"{bucket}/timeline"})
    progress = Progress()
    timeline = Timeline(open_run(config).url, progress)
    report = Reports(progress, timeline)
    report.begin("review", 2)
    report.result("review", ShardResult("review", "00000.parquet", 1.0, rows_in=4))
    assert [now["step"] for now in status(config)["now"]] == ["review"]
    timeline.close()
    progress.close()
    assert status(config)["now"] == []
    store = open_folder(config.run_dir)
    (name,) = store.names(keys.TIMELINE)
    assert shards.read(store, f"{keys.TIMELINE}/{name}").column("rows_in").to_pylist() == [4]


def test_shards(bucket: str) -> None:
    store = open_folder(f"{bucket}/shards")
    table = pa.table({"x": list(range(5000))})
    info = ShardInfo("screen", "00000.parquet", "hash", 5000, 5000)
    store.put_if_absent("screen/00000.parquet", shards.encode(table, info))
    assert shards.read(store, "screen/00000.parquet").equals(table)
    assert shards.read_info(store, "screen/00000.parquet") == info
    store.put("damaged", b"hello")
    with pytest.raises(DamagedError, match="s3://"):
        shards.read(store, "damaged")
    with pytest.raises(FileNotFoundError):
        shards.read(store, "missing")


def use_all(store: Folder, *, may_lose: bool = False) -> None:
    assert store.put_if_absent("screen/a", b"one") or may_lose
    assert store.get("screen/a") == b"one"
    assert store.tail("screen/a", 2) == b"ne"
    assert store.exists("screen/a")
    assert store.list("screen") == {"a": 3}
    store.put("screen/a", b"two")
    store.delete("screen/a")
    assert store.get_or_none("screen/a") is None


@pytest.mark.parametrize("fault", [429, 500, 503, "cut", "lost", "late", "half"])
@pytest.mark.long
def test_passing_failures_are_tried_again(
    bucket: str, proxy: Proxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "SHARD_TIMEOUT_S", LATE_S / 2)
    turns = itertools.cycle([fault, fault, None] if fault != "late" else [fault, None])
    proxy.fault = lambda method, path: next(turns)
    use_all(open_folder(f"{bucket}/passing-{fault}"), may_lose=fault in ("lost", "late"))
    assert len(proxy.requests) >= (12 if fault in ("late", "half") else 24)
    open_folder(f"{bucket}/listed-{fault}").put("a.jsonl", b'{"messages": []}\n')
    assert len(list(read_rows(SourceConfig(path=f"{bucket}/listed-{fault}/")))) == 1


@pytest.mark.parametrize("fault", ["lost", "late"])
def test_answer_lost_after_a_put_does_not_lose_or_double_it(
    bucket: str, proxy: Proxy, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has the shard and we do not know: the retry finds it there, as if another run had been first."""
    monkeypatch.setattr(object_store, "SHARD_TIMEOUT_S", LATE_S / 2)
    once = iter([fault])
    proxy.fault = lambda method, path: next(once, None) if method == "PUT" else None
    store = open_folder(f"{bucket}/{fault}")
    assert not store.put_if_absent("a", b"one")
    assert proxy.requests.count("PUT") == 2
    assert store.get("a") == b"one"


def test_google_cloud_storage(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.is_google = True
    account = {"gcs_base_url": os.environ["AWS_ENDPOINT_URL"], "disable_oauth": True}
    account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    url = f"gs://{BUCKET}/google"
    store = open_folder(url)
    assert store.put_if_absent("a/b", b"one")
    assert not store.put_if_absent("a/b", b"two")
    assert store.get("a/b") == b"one"
    use_all(store)
    store.put("source/a.jsonl", b'{"messages": []}\n' * 3)
    for path in ("source", "source/a.jsonl", "source/*.jsonl"):
        assert len(list(read_rows(SourceConfig(path=f"{url}/{path}")))) == 3


@pytest.mark.parametrize("fault", [503, 403, "cut"])
def test_lasting_failure_is_one_clear_sentence(
    bucket: str, proxy: Proxy, fault: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "RETRIES", object_store.RETRIES | {"max_retries": 1})
    store = open_folder(f"{bucket}/lasting")
    proxy.fault = lambda method, path: fault
    for use in (
        lambda: store.put_if_absent("a", b"x"),
        lambda: store.put("a", b"x"),
        lambda: store.get("a"),
        lambda: store.tail("a", 1),
        lambda: store.exists("a"),
        lambda: store.list("a"),
        lambda: store.delete("a"),
    ):
        with pytest.raises(StorageError) as caught:
            use()
        message = str(caught.value)
        assert message.startswith(f"{bucket}/lasting/a: cannot be ")
        assert message.endswith("; check bucket, endpoint, region and credentials, then run again")
        assert ("(no answer)" if fault == "cut" else f"(HTTP {fault}") in message
        assert (", SomeReason)" in message) == (fault != "cut" and proxy.requests[-1] != "HEAD")
        assert "canary" not in message
        assert len(message) < 200


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("PUT http://169.254.169.254/latest - Server returned non-2xx status code: 403 Forbidden", "no credentials in"),
        (
            "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
            "in another re",
        ),
        ("GET http://h/a - HTTP error: error sending request\n\nDebug source:\n status code: 403", "no answer"),
        ("something new with a secret", "GenericError"),
    ],
)
def test_reasons(message: str, expected: str) -> None:
    assert expected in object_store.reason(GenericError(message))


def test_store_that_overlooks_conditions_is_refused(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    raw = {**make_raw_config(tmp_path), "run_dir": f"{bucket}/unconditional"}
    open_run(Config.model_validate(raw))
    open_run(Config.model_validate(raw))
    proxy.fault = lambda method, path: "unconditional"
    with pytest.raises(StorageError, match=r"unconditional: this object store overlooks .*; use a store that"):
        open_run(Config.model_validate(raw))


def test_vanished_bucket_is_not_an_empty_one(bucket: str) -> None:
    store = open_folder("s3://no-such-bucket-here/run")
    for use, reason in (
        (lambda: store.put_if_absent("a", b"x"), "written (no such bucket)"),
        (lambda: store.put("a", b"x"), "written (no such bucket)"),
        (lambda: store.list("a"), "listed (HTTP 404, NoSuchBucket)"),
    ):
        with pytest.raises(StorageError) as caught:
            use()
        assert str(caught.value) == (
            f"s3://no-such-bucket-here/run/a: cannot be {reason}; "
            "check bucket, endpoint, region and credentials, then run again"
        )


def test_failing_store_blames_no_shard(
    bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(object_store, "RETRIES", object_store.RETRIES | {"max_retries": 1})
    config = Config.model_validate({**make_raw_config(tmp_path), "run_dir": f"{bucket}/blame"})
    put_screened(config, "00000.parquet", numbered([1, 2]))
    generate = Worker(config, "generate", "transform", "run", 1)
    proxy.fault = lambda method, path: 503 if method == "PUT" and "/generate/" in path else None
    done = asyncio.run(generate.process("00000.parquet"))
    assert done.outcome == "fatal"
    assert done.message.startswith(f"{bucket}/blame/generate/00000.parquet: cannot be written")
    store = open_folder(config.run_dir)
    assert store.list("state/attempts/run") == store.list("state/set_aside/generate") == store.list("generate") == {}
    proxy.fault = lambda method, path: None
    assert asyncio.run(generate.process("00000.parquet")).rows_out == 2


def test_source_that_fails_on_the_way_is_told(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b'{"messages": [{"role": "user", "content": "hello"}]}\n' * 200_000
    open_folder(f"{bucket}/failing").put("a.jsonl", lines)
    gets = itertools.count()
    proxy.fault = lambda method, path: 403 if method == "GET" and "a.jsonl" in path and next(gets) else None
    rows = read_rows(SourceConfig(path=f"{bucket}/failing/a.jsonl"))
    assert next(rows).error is None
    with pytest.raises(SourceError, match=r"failing/a.jsonl: cannot be read \(HTTP 403, SomeReason\); check endpoint"):
        list(rows)


@pytest.mark.parametrize("key", ["c//d.jsonl", "/d.jsonl", "c/./d.jsonl", "c/s//"])
def test_a_key_that_cannot_be_read_is_named(bucket: str, key: str) -> None:
    prefix = f"odd-{key.count('/')}{key.count('.')}{key[0] == '/'}"
    store = open_folder(f"{bucket}/{prefix}")
    store.put("a.jsonl", b'{"messages": []}\n')
    endpoint = f"{os.environ['AWS_ENDPOINT_URL']}/{bucket.removeprefix('s3://')}/{prefix}/{key}"
    parts = urllib.parse.urlsplit(endpoint)
    connection = http.client.HTTPConnection(parts.netloc)
    connection.request("PUT", parts.path, b"{}")
    assert connection.getresponse().status == 200
    connection.close()
    with pytest.raises(SourceError) as error:
        list(read_rows(SourceConfig(path=f"{bucket}/{prefix}/")))
    assert str(error.value) == (
        f"{bucket}/{prefix}/: holds the key {prefix}/{key}, which cannot be read (//, . or .. in it); rename or delete "
        "that object, or name the other files in source.path one by one"
    )
    # As it says.
    assert len(list(read_rows(SourceConfig(path=[f"{bucket}/{prefix}/a.jsonl"])))) == 1


def test_source(bucket: str, tmp_path: Path) -> None:
    part = pq.read_table(CONVERSATIONS).slice(0, 300)
    pq.write_table(part, tmp_path / "part.parquet")
    store = open_folder(f"{bucket}/source")
    store.put("part.parquet", (tmp_path / "part.parquet").read_bytes())
    remote = SourceConfig(path=f"{bucket}/source/")
    assert list(read_rows(remote)) == list(read_rows(SourceConfig(path=str(tmp_path / "part.parquet"))))
    assert count_rows(remote) == 300
    with pytest.raises(SourceError):
        list(read_rows(SourceConfig(path=f"{bucket}/missing/")))


def test_pieces_of_a_source(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process gets opens the same objects there, with the credentials of this environment."""
    lines = [json.dumps({"id": n, "messages": [{"role": "user", "content": f"hello {n}"}]}) for n in range(900)]
    open_folder(f"{bucket}/pieces").put("a.jsonl", "\n".join(lines).encode())
    config = SourceConfig(path=f"{bucket}/pieces/a.jsonl")
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2_500)
    found = list(pieces.pieces_of(config))
    assert len(found) == 6
    workers = WorkersConfig(max_workers=2, num_cpus=0.1)
    read = list(in_processes(_rows_of, ((piece, config) for piece in found), workers, 1))
    assert [row for rows, _ in read for row in rows] == list(read_rows(config))
    assert os.getpid() not in {pid for _, pid in read}


def _rows_of(piece: Piece, config: SourceConfig) -> tuple[list[Row], int]:
    return list(piece.rows(Spelling(config))), os.getpid()


@pytest.mark.long
def test_export_and_verify(bucket: str, tmp_path: Path) -> None:
    """From a bucket to another place in it, in processes of their own, the same bytes as on a disk."""
    run = write_dataset(tmp_path / "run")
    store = open_folder(f"{bucket}/exported")
    for file in (run / "dataset").rglob("*.*"):
        store.put(f"dataset/{file.relative_to(run / 'dataset')}", file.read_bytes())
    local = export(str(run), "axolotl", str(tmp_path / "axolotl"), num_workers=1)
    output = default_output(f"{bucket}/exported", "axolotl")
    assert export(f"{bucket}/exported", "axolotl", output, num_workers=2) == local
    for url in (output, f"{bucket}/exported"):
        assert verify(url, 2)["ok"]
    assert set(store.list("exports/axolotl")) == {"README.md", "manifest.json"}
