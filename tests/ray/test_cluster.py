"""The cluster file is one that Ray accepts, and a run is a Ray job like any other, real engine included."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.data import ROOT
from tests.support.ports import free_port

BIN = Path(sys.executable).parent


def test_cluster_file_is_valid_against_rays_schema() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 1}, schema)


def test_cluster_file_runs_the_recipe_it_names() -> None:
    recipe = yaml.safe_load((ROOT / "configs/gemma2-lmsys.yaml").read_text())
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    per_replica = recipe["resources"]["generate"]["num_gpus"]
    assert per_replica == recipe["teacher"]["engine"]["tensor_parallel_size"]
    teacher = cluster["available_node_types"]["teacher"]
    assert teacher["resources"]["GPU"] % per_replica == 0
    assert (
        teacher["max_workers"] * teacher["resources"]["GPU"] // per_replica
        == recipe["resources"]["generate"]["max_workers"]
    )


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head on loopback: its job address and the environment for its clients. Ended by its own process id."""
    # Ray keeps sockets below this folder, and a socket's path may have 107 characters: pytest's folders are too deep.
    folder = tempfile.mkdtemp(prefix="ray-")
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": f"{BIN}:{os.environ['PATH']}"}
    dashboard = free_port()
    log = (tmp_path / "head.log").open("w")
    process = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", f"--port={free_port()}", "--node-ip-address=127.0.0.1",
         "--num-cpus=2",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={free_port()}",
         f"--ray-client-server-port={free_port()}", "--disable-usage-stats", f"--temp-dir={folder}"],
        env=environment, stdout=log, stderr=log,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(90):
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "head.log").read_text()
                time.sleep(1)
        yield address, environment
    finally:
        process.terminate()
        process.wait(60)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.engine
def test_run_as_a_ray_job(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    run_dir = tmp_path / "run"
    settings = {
        "source.limit": 24,
        "ingest.rows_per_shard": 12,
        "sampling.max_tokens": 16,
        "ingest.max_dropped_fraction": 1.0,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    result = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ROOT / "configs", "--",
         "env", f"--chdir={ROOT}", sys.executable, "-m", "stillhouse", "run", "configs/quickstart.yaml",
         "--set", f"run_dir={run_dir}", *overrides],
        env=environment, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "succeeded" in result.stdout + result.stderr
    manifest = json.loads((run_dir / "dataset/manifest.json").read_text())
    assert manifest["rows"] > 5
    files = [run_dir / "dataset" / file["file"] for file in manifest["files"]]
    assert sum(pq.read_metadata(file).num_rows for file in files) == manifest["rows"]
