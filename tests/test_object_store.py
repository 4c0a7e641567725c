"""An object store is a folder like any other: a real S3 server (moto's) on loopback."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import shards
from pipeline.shards import ShardError, ShardInfo, Store
from schemas.config import SourceConfig
from stages.sources import SourceError, count_rows, read_rows
from tests.conftest import CONVERSATIONS, make_raw_config
from tests.test_cluster import free_port
from tests.test_runner import Command, contents

BUCKET = "stillhouse-test"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        for _ in range(60):
            try:
                request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.5)
        yield f"s3://{BUCKET}"
    finally:
        process.terminate()
        process.wait(30)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def test_store_keeps_its_promises(bucket: str) -> None:
    store = Store(f"{bucket}/run")
    assert store.get_or_none("a/b") is None
    assert store.put_if_absent("a/b", b"one")
    assert not store.put_if_absent("a/b", b"two")
    assert store.get("a/b") == b"one"
    store.put("a/c", b"1")
    store.put("a/c", b"22")
    assert store.list("a") == {"b": 3, "c": 2}
    assert store.list("nothing") == {}
    store.delete("a/c")
    store.delete("a/c")
    assert store.list("a") == {"b": 3}


def test_shards(bucket: str) -> None:
    store = Store(f"{bucket}/shards")
    table = pa.table({"x": list(range(5000))})
    info = ShardInfo("screen", "00000.parquet", "hash", 5000, 5000)
    store.put_if_absent("screen/00000.parquet", shards.encode(table, info))
    assert shards.read(store, "screen/00000.parquet").equals(table)
    assert shards.read_info(store, "screen/00000.parquet") == info
    store.put("damaged", b"hello")
    with pytest.raises(ShardError, match="s3://"):
        shards.read(store, "damaged")
    with pytest.raises(FileNotFoundError):
        shards.read(store, "missing")


@pytest.mark.slow
@pytest.mark.cluster
def test_run(bucket: str, tmp_path: Path) -> None:
    """A whole run whose folder is in the bucket gives the files that a local one gives."""
    raw = make_raw_config(tmp_path)
    raw["source"]["limit"] = 20
    local = Command(tmp_path, raw)
    local("run")
    remote = Command(tmp_path, {**raw, "run_dir": f"{bucket}/run"})
    remote("run")
    store = Store(f"{bucket}/run")
    for key, data in contents(local.run_dir).items():
        assert store.get(key) == data, key
    _, err = remote("run")
    assert "nothing was missing" in err


def test_source(bucket: str, tmp_path: Path) -> None:
    part = pq.read_table(CONVERSATIONS).slice(0, 300)
    pq.write_table(part, tmp_path / "part.parquet")
    store = Store(f"{bucket}/source")
    store.put("part.parquet", (tmp_path / "part.parquet").read_bytes())
    remote = SourceConfig(path=f"{bucket}/source/")
    assert list(read_rows(remote)) == list(read_rows(SourceConfig(path=str(tmp_path / "part.parquet"))))
    assert count_rows(remote) == 300
    with pytest.raises(SourceError):
        list(read_rows(SourceConfig(path=f"{bucket}/missing/")))
