"""What it costs to go on with a run that has ten thousand finished shards and nothing left to do."""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import flow, runner, shards, worker
from pipeline.shards import ShardInfo, Store
from schemas.config import Config, absolute, config_hash
from tests.conftest import make_raw_config
from tests.test_object_store import bucket  # noqa: F401 - a fixture
from tests.test_runner import Command

NUM_SHARDS = 10_000


def finish(config: Config, put: Callable[[str, bytes], object]) -> None:
    """All that a run of `NUM_SHARDS` shards of one row leaves, but its manifest and the indices."""
    runner.open_run(config)
    digest = config_hash(config)
    table = pa.table({"source_row": [1]})

    def finish_shard(number: int) -> None:
        name, source = shards.shard_name(number), ""
        for stage in flow.NAMES:
            data = shards.encode(table, ShardInfo(stage, name, digest, 1, 1, source_sha256=source))
            if stage == "export":
                put(worker.published_key(name, NUM_SHARDS), data)
                continue
            put(worker.stage_key(stage, name), data)
            put(f"ledger/{stage}/{name}", data)
            if stage in ("dedupe", "review"):
                put(worker.sketch_key(stage, name), data)
                put(worker.assignment_key(stage, name), data)
            source = shards.verify(data, name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(finish_shard, range(NUM_SHARDS)))
    put(worker.PARTITION_KEY, json.dumps({"num_shards": NUM_SHARDS, "num_rows": NUM_SHARDS}).encode())


def measure(command: Command, config: Config, where: str) -> tuple[float, float]:
    """Seconds of a finished run, and of one whose manifest is missing."""
    seconds = {}
    for state in ("first look: no index", "no manifest", "finished"):
        if state != "finished":
            Store(config.run_dir).delete("dataset/manifest.json")
        started = time.monotonic()
        manifest, err = command("run")
        seconds[state] = time.monotonic() - started
        assert "nothing was missing" in err
        assert len(manifest["files"]) == manifest["rows"] == NUM_SHARDS
    print(f"\n{NUM_SHARDS} shards, {where}:", ", ".join(f"{state} {s:.1f} s" for state, s in seconds.items()))
    return seconds["finished"], seconds["no manifest"]


@pytest.mark.slow
def test_local(tmp_path: Path) -> None:
    raw = make_raw_config(tmp_path)
    config = absolute(Config.model_validate(raw))

    def put(key: str, data: bytes) -> None:
        path = Path(config.run_dir, key)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    finish(config, put)
    assert max(measure(Command(tmp_path, raw), config, "local disk")) < 5


@pytest.mark.slow
def test_object_store(bucket: str, tmp_path: Path) -> None:  # noqa: F811
    raw = {**make_raw_config(tmp_path), "run_dir": f"{bucket}/ten-thousand"}
    config = absolute(Config.model_validate(raw))
    finish(config, Store(config.run_dir).put)
    assert max(measure(Command(tmp_path, raw), config, f"S3 at {os.environ['AWS_ENDPOINT_URL']}")) < 20
