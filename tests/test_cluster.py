"""The cluster file is one that Ray accepts, and a run is a Ray job like any other, real engine included."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import ROOT

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
    assert teacher["max_workers"] * teacher["resources"]["GPU"] // per_replica == recipe["resources"]["generate"]["max_workers"]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray head on loopback with its dashboard, ended by its own process ids."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": f"{BIN}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--port=16379", "--node-ip-address=127.0.0.1", "--num-cpus=2",
         "--dashboard-host=127.0.0.1", "--dashboard-port=18265", "--disable-usage-stats",
         "--temp-dir=/tmp/stillhouse-test-ray"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield environment
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.cluster
@pytest.mark.engine
def test_run_as_a_ray_job(head: dict[str, str], tmp_path: Path) -> None:
    import time
    import urllib.error
    import urllib.request

    for _ in range(120):
        try:
            urllib.request.urlopen("http://127.0.0.1:18265/api/version", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    run_dir = tmp_path / "run"
    result = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", "http://127.0.0.1:18265", "--no-wait" if False else "--verbose", "--",
         f"cd {ROOT} && {sys.executable} -m pipeline run configs/quickstart.yaml --set run_dir={run_dir}"
         " --set source.limit=24 --set ingest.rows_per_shard=12 --set sampling.max_tokens=16"
         " --set ingest.max_dropped_fraction=1.0"],
        env=head, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "succeeded" in result.stdout.lower() + result.stderr.lower()
    manifest = json.loads((run_dir / "dataset/manifest.json").read_text())
    assert manifest["rows"] > 5
    assert sum(pq.read_metadata(run_dir / "dataset" / file["file"]).num_rows for file in manifest["files"]) == manifest["rows"]
