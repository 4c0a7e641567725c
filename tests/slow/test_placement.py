"""Where workers are put: on a head with two cores and two nodes with two GPUs each, which are not there."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import Command, read
from tests.support.data import ROOT
from tests.support.nodes import Head, joined, listed, wait_for


@pytest.fixture(scope="module")
def cluster(head: Head) -> Iterator[Head]:
    two = ("--num-cpus=1", "--num-gpus=2")
    with joined(head, "first", *two), joined(head, "second", *two):
        yield head


def spread(finished: Command, folder: Path, *, stages: int = 2, **env: str) -> Command:
    """A run of which the engine takes `stages` times two GPUs."""
    raw = yaml.safe_load(finished.file.read_text())
    raw["run_dir"] = str(folder / "run")
    raw["teacher"] |= {
        "backend": "tests.support.spread_teacher:SpreadTeacher",
        "engine": {
            "distributed_executor_backend": "ray", "tensor_parallel_size": 2, "pipeline_parallel_size": stages,
        },
        "env": {"LOG": str(folder / "starts.jsonl"), **env},
    }  # fmt: skip
    raw["resources"] = {"generate": {"num_gpus": 2 * stages, "num_cpus": 1}}
    return Command(folder, raw)


def of_a_driver(cluster: Head) -> dict[str, Any]:
    return {**cluster.driver_environment}


def starts(command: Command) -> list[dict[str, Any]]:
    log = command.run_dir.parent / "starts.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def is_free(cluster: Head) -> bool:
    return listed(cluster, "placement_groups") == []


def test_an_engine_is_on_two_nodes_and_gives_them_back(cluster: Head, finished: Command, tmp_path: Path) -> None:
    """Tensor parallel within a node, the front end beside the first; also where its process dies once."""
    command = spread(finished, tmp_path, DIES="1")
    driver = command.start("run", **of_a_driver(cluster))
    assert driver.stderr is not None
    for line in driver.stderr:
        if line.startswith("review"):  # the engine's stage is over, and the run is not
            break
    wait_for(lambda: is_free(cluster), 5)
    assert driver.poll() is None
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    first, second = starts(command)
    gpu_nodes = {node["node_id"] for node in listed(cluster, "nodes") if node["resources_total"].get("GPU")}
    for start in (first, second):
        assert start["bundles"] == [{"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0}, {"GPU": 1.0}, {"GPU": 1.0}]
        assert Counter(start["nodes"]) == dict.fromkeys(gpu_nodes, 2)
        assert start["nodes"][0] == start["nodes"][1] == start["front_end"]
        assert sorted(start["gpus"][:2]) == sorted(start["gpus"][2:]) == [["0"], ["1"]]
    assert first["group"] != second["group"]
    assert first["pid"] != second["pid"]
    assert read(command.run_dir / "dataset/data").equals(read(finished.run_dir / "dataset/data"))


def test_a_driver_that_is_killed_holds_no_node(cluster: Head, finished: Command, tmp_path: Path) -> None:
    command = spread(finished, tmp_path)
    driver = command.start("run", **of_a_driver(cluster))
    wait_for(lambda: starts(command) != [] or driver.poll() is not None, 120)
    assert len(listed(cluster, "placement_groups")) == 1
    driver.kill()
    driver.communicate()
    wait_for(lambda: is_free(cluster), 60)
    command("run", **of_a_driver(cluster))
    wait_for(lambda: is_free(cluster), 10)


def test_what_can_never_be_placed_is_refused(cluster: Head, finished: Command, tmp_path: Path) -> None:
    command = spread(finished, tmp_path, stages=3)
    _, err = command("run", expect=1, **of_a_driver(cluster))
    assert "stillhouse: resources.generate: each worker needs 3 times 2 GPU, each on one node" in err
    assert not list(command.run_dir.glob("ingest/*"))
    assert is_free(cluster)


def placed(cluster: Head, folder: Path, raw: dict[str, Any], num_shards: int, **screen: float) -> list[dict[str, Any]]:
    """Where workers of screen were when they did a shard."""
    raw["resources"] = {"screen": screen}
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(raw))
    script = [sys.executable, "-m", "tests.support.placed", str(file), "screen", str(num_shards)]
    environment = {**os.environ, **cluster.driver_environment}
    out = subprocess.run(script, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]


def test_stages_without_gpus_leave_gpu_nodes_alone(cluster: Head, raw_config: dict[str, Any], tmp_path: Path) -> None:
    """Until no other node has a core."""
    gpu_nodes = {node["node_id"] for node in listed(cluster, "nodes") if node["resources_total"].get("GPU")}
    found = placed(cluster, tmp_path, raw_config, 8, min_workers=2, max_workers=2)
    assert len({facts["pid"] for facts in found}) == 2
    assert not {facts["node"] for facts in found} & gpu_nodes
    found = placed(cluster, tmp_path, raw_config, 12, min_workers=4, max_workers=4)
    assert {facts["node"] for facts in found} > gpu_nodes


def test_workers_share_a_gpu(cluster: Head, raw_config: dict[str, Any], tmp_path: Path) -> None:
    found = placed(cluster, tmp_path, raw_config, 16, min_workers=8, max_workers=8, num_gpus=0.25, num_cpus=0.25)
    places = {facts["pid"]: (facts["node"], facts["gpus"]) for facts in found}
    assert len(places) == 8
    assert all(re.fullmatch("[01]", gpus) for _, gpus in places.values())
    assert max(Counter(places.values()).values()) == 4
    assert len({node for node, _ in places.values()}) <= 2
