"""What it costs to go on with a run that has ten thousand finished shards and nothing left to do."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from stillhouse.pipeline.folder import certified, index, keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.identity import open_run
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.schemas.config import Config, absolute, config_hash
from tests.support.command import Command
from tests.support.data import STAGES, make_raw_config
from tests.support.ports import free_port

NUM_SHARDS = 10_000


def finish(config: Config, put: Callable[[str, bytes], object]) -> None:
    """All that a run of `NUM_SHARDS` shards of one row leaves, but its manifest and the indices."""
    open_run(config)
    digest = config_hash(config)
    table = pa.table({"source_row": [1]})

    def finish_shard(number: int) -> None:
        name, source = keys.shard_name(number), ""
        for stage in STAGES:
            data = shards.encode(table, ShardInfo(stage, name, digest, 1, 1, source_sha256=source))
            if stage == "publish":
                put(keys.stage_shard("publish", name, NUM_SHARDS), data)
                continue
            put(keys.stage_shard(stage, name, NUM_SHARDS), data)
            put(f"ledger/{stage}/{name}", data)
            if stage in ("dedupe", "review"):
                put(keys.sketch(stage, name), data)
                put(keys.assignment(stage, name), data)
            source = shards.verify(data, name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(finish_shard, range(NUM_SHARDS)))
    put(keys.PARTITION, json.dumps(certified.certified({"num_shards": NUM_SHARDS, "num_rows": NUM_SHARDS})).encode())


def measure(command: Command, config: Config, where: str) -> float:
    """Prints the seconds of a finished run, of one whose manifest is missing, and of one without indices. Returns the
    most CPU time (s) of the first two: it does not depend on what else the machine has to do."""
    seconds, of_cpu = {}, {}
    is_indexed = open_folder(config.run_dir).exists(keys.index("publish"))
    for state in ("no manifest", "finished") if is_indexed else ("no index", "no manifest", "finished"):
        if state != "finished":
            open_folder(config.run_dir).delete("dataset/manifest.json")
        started, used = time.monotonic(), cpu_of_children()
        manifest, err = command("run")
        seconds[state], of_cpu[state] = time.monotonic() - started, cpu_of_children() - used
        assert "nothing was missing" in err
        assert len(manifest["files"]) == manifest["rows"] == NUM_SHARDS
    print(
        f"\n{NUM_SHARDS} shards, {where}:",
        ", ".join(f"{state} {s:.1f} s ({of_cpu[state]:.1f} s of CPU)" for state, s in seconds.items()),
    )
    return max(of_cpu["finished"], of_cpu["no manifest"])


def cpu_of_children() -> float:
    """CPU time (s) of processes that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


SERVER = """
import sys, time
from pathlib import Path
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

port, folder, bucket = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
store.create_bucket(bucket, "us-east-1")
for file in folder.rglob("*"):
    if file.is_file():
        store.put_object(bucket, f"run/{file.relative_to(folder)}", file.read_bytes())
ThreadedMotoServer("127.0.0.1", port).start()
print("ready", flush=True)
time.sleep(3600)
"""


def test_ten_thousand_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_raw_config(tmp_path)
    config = absolute(Config.model_validate(raw))

    def put(key: str, data: bytes) -> None:
        path = Path(config.run_dir, key)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    finish(config, put)
    assert measure(Command(tmp_path, raw), config, "local disk") < 3

    # The same folder in a bucket; filled inside the server, which would take minutes over HTTP.
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port), config.run_dir, "resume-test"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert "ready\n" in server.stdout, "the server ended before it was filled"
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        remote = config.model_copy(update={"run_dir": "s3://resume-test/run"})
        store, local = open_folder(remote.run_dir), open_folder(config.run_dir)
        for stage in STAGES:  # as a run there would have left it
            facts = index.parse(local.get(keys.index(stage)))
            entries = store.entries("dataset/data" if stage == "publish" else stage)
            files = {name: keys.stage_shard("publish", name, NUM_SHARDS).rpartition("/")[2] for name in facts}
            index.write(
                store,
                stage,
                {
                    name: replace(shard, version=entries[files[name] if stage == "publish" else name].version)
                    for name, shard in facts.items()
                },
            )
        command = Command(tmp_path, {**raw, "run_dir": remote.run_dir})
        assert measure(command, remote, "S3 on loopback (moto)") < 3
    finally:
        server.kill()
        server.communicate()
