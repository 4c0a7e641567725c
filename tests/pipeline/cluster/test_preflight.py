"""What can be wrong with a cluster before a run, each in its sentence: the facts are those of a cluster that is right,
with one thing changed."""

import copy
import os
import stat
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.cluster import node
from stillhouse.pipeline.cluster.several import judge_all
from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.schemas.config import Config
from tests.support.cluster_facts import CONFIG, FACTS, LARGE_ONE, everywhere, head, judged, of_model, on, worker


def test_a_cluster_that_is_right_has_no_problem_and_a_plan() -> None:
    found = judged()
    assert found.problems == []
    assert found.notes == ["a note of check's"]
    assert found.plan == {"nodes": 3, "replicas": 4, "max_replicas": 4, "max_hours": 1.0, "max_bytes": 5 * 10**9}


TWO_GPUS = {"generate": {"num_gpus": 2, "num_cpus": 4}}
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, Any], str]] = {
    "a node does not answer": (
        lambda facts: facts["nodes"].__setitem__(2, {"address": "10.0.0.3", "resources": {}, "labels": {},
                                                     "problem": "does not answer within 120 s"}),
        {}, "node 10.0.0.3: does not answer within 120 s; look into that node's Ray logs",
    ),
    "a Python that is too new": (everywhere(python="3.14.1"), {}, "every node: has Python 3.14, and Stillhouse needs"),
    "two Pythons": (on(3, python="3.12.1"), {}, "the nodes have Python 3.11 and 3.12; Ray needs the same on all"),
    "a package is missing": (
        on(2, unmet={"pyarrow": "pyarrow>=24.0, has none"}), {},
        "node 10.0.0.2: lacks packages (pyarrow>=24.0, has none); install the lock",
    ),
    "Ray is another": (
        everywhere(unmet={"ray": "ray<3,>=2.60, has 2.9.0"}), {},
        "every node: lacks packages (ray<3,>=2.60, has 2.9.0)",
    ),
    "vLLM is missing": (
        on(3, vllm=None), {}, "node 10.0.0.3: generate may run there, and of vLLM <0.33,>=0.32.0 it has none; install",
    ),
    "vLLM is another": (
        on(2, vllm="0.11.0"), {}, "node 10.0.0.2: generate may run there, and of vLLM <0.33,>=0.32.0 it has 0.11.0",
    ),
    "the run folder cannot be written": (
        on(2, run_dir_problem="/mnt/shared/run: cannot be written (Permission denied); check disk", sees_run_dir=False),
        {}, "run_dir, from node 10.0.0.2: /mnt/shared/run: cannot be written (Permission denied); check disk",
    ),
    "a node has no credentials for the store": (
        on(3, run_dir_problem="s3://b/run: cannot be written (no credentials in the environment, and this machine has "
           "no role); check bucket", sees_run_dir=False),
        {"run_dir": "s3://b/run"}, "run_dir, from node 10.0.0.3: s3://b/run: cannot be written (no credentials in the",
    ),
    "the run folder is another one on a node": (
        on(3, sees_run_dir=False), {},
        "run_dir: /mnt/shared/run is another folder on node 10.0.0.3 than on the head; mount one shared file system",
    ),
    "a gated name and no token": (
        on(2, has_token=False), {},
        "teacher.model: google/gemma-2-27b-it is gated, and node 10.0.0.2 has no token for the hub; accept its terms",
    ),
    "the teacher's folder is missing on a node": (
        of_model("teacher", 3, has_model=False), {"teacher": {**CONFIG["teacher"], "model": "/models/x"}},
        "teacher.model: /models/x is no folder with a model on node 10.0.0.3; put the weights where every node finds",
    ),
    "the source is not on a node": (
        on(3, missing_inputs=[("source.path", "/data/b.parquet")]),
        {"source": {"path": ["/data/a.parquet", "/data/b.parquet"]}},
        "source.path: /data/b.parquet is not there on node 10.0.0.3, where ingest may run; put it where every node",
    ),
    "a checkpoint is not on a node": (
        everywhere(missing_inputs=[("screen.classifiers (detoxify).checkpoint", "/models/detoxify.ckpt")]),
        {"screen": {"classifiers": [{"name": "detoxify", "checkpoint": "/models/detoxify.ckpt",
                                     "trust_checkpoint": True}]},
         "resources": {"generate": {"num_gpus": 2}, "screen": {"num_gpus": 1}, "review": {"num_gpus": 1}}},
        "screen.classifiers (detoxify).checkpoint: /models/detoxify.ckpt is not there on nodes 10.0.0.2, 10.0.0.3, "
        "where screen and review may run",
    ),
    "the source cannot be read": (
        lambda facts: facts.update(check_problem="s3://b/rows: matches no data file; check source.path"), {},
        "s3://b/rows: matches no data file; check source.path",
    ),
    "a relative source": (
        lambda facts: facts.update(check_problem="/tmp/ray/s/runtime_resources/working_dir_files/_p/data/x: no"), {},
        "where relative paths begin; data, runs and what ignore files name are not in it: write an absolute path",
    ),
    "the source would fail": (
        lambda facts: facts["check"].update(problems=["source: none of 10 rows is accepted: x"]), {},
        "source: none of 10 rows is accepted: x",
    ),
    "GPUs that are too small": (
        everywhere(gpus=[24 * 10**9]), {},
        "teacher: weights of 54.0 GB are 27.0 GB for each of 2 GPUs, and those of nodes 10.0.0.2, 10.0.0.3 have 24.0 "
        "GB, of which 92% are used; raise teacher.engine.tensor_parallel_size",
    ),
    "too little memory without GPUs": (
        everywhere(memory_bytes=48 * 10**9, vllm="0.32.0", disk_free_bytes=10**12), {"resources": {}},
        "teacher: weights of 54.0 GB and a cache of 0.0 GB (VLLM_CPU_KVCACHE_SPACE) exceed the 48.0 GB of memory of",
    ),
    "a full disk": (
        on(2, disk_free_bytes=50 * 10**9), {},
        "teacher.model: 54.0 GB of weights are to be fetched, and node 10.0.0.2 has 50.0 GB free where they are kept",
    ),
    "an engine on fewer GPUs than it uses": (
        lambda facts: None, {"resources": {"generate": {"num_gpus": 1}}},
        "resources.generate.num_gpus: 1, and an engine of teacher.engine uses 2 (tensor_parallel_size x",
    ),
    "a resource that no node has": (
        lambda facts: None, {"resources": {"generate": {"num_gpus": 2}, "screen": {"num_gpus": 8}}},
        "resources.screen: each worker needs 1 CPU, 8 GPU, and no node has that (8 CPU; 32 CPU, 4 GPU); lower it, or",
    ),
    "a resource that no type of node has": (
        lambda facts: facts.update(node_types=[{"name": "gpu", "resources": {"CPU": 32, "GPU": 4}, "max": 9},
                                               {"name": "large", "resources": {"CPU": 64, "GPU": 8}, "max": 0}]),
        {"resources": {"generate": {"num_gpus": 2}, "screen": {"num_gpus": 8}}},
        "nor any that the autoscaler may add (gpu: 32 CPU, 4 GPU); lower it, or add such a type",
    ),
    "the cluster cannot load the configuration": (
        lambda facts: facts.update(problem="run.yaml: teacher.model: …"), {}, "run.yaml: teacher.model: …",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_each_has_its_sentence(name: str) -> None:
    change, config, sentence = WRONG[name]
    found = judged(change, **config)
    assert [problem for problem in found.problems if sentence in problem], found.problems
    assert len(found.problems) == 1, found.problems


LARGE: dict[str, Any] = {
    "teacher": {**CONFIG["teacher"], "engine": {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}},
    "resources": {"generate": {"max_workers": 6, "num_gpus": 8, "num_cpus": 4}},
}


def spread(**engine: Any) -> dict[str, Any]:
    engine = {**LARGE["teacher"]["engine"], "distributed_executor_backend": "ray", **engine}
    return {**LARGE, "teacher": {**LARGE["teacher"], "engine": engine}}


def test_an_engine_that_is_larger_than_a_node_may_be_on_several() -> None:
    assert (
        "distributed_executor_backend to ray, by which an engine may be on several nodes" in judged(**LARGE).problems[0]
    )
    found = judged(**spread())
    assert (found.problems, found.plan["replicas"]) == ([], 1)
    assert found.notes == ["a note of check's"]
    odd = spread(tensor_parallel_size=3) | {"resources": {"generate": {"num_gpus": 6, "num_cpus": 4}}}
    assert "GPUs of nodes 10.0.0.2, 10.0.0.3 are no multiple of tensor_parallel_size 3, so" in judged(**odd).notes[0]
    narrow = spread(tensor_parallel_size=8, pipeline_parallel_size=1)
    (problem,) = judged(**narrow).problems
    assert problem.startswith("resources.generate: each worker needs 4 CPU, 8 GPU, and no node has that")
    deep = spread(pipeline_parallel_size=3) | {"resources": {"generate": {"num_gpus": 12, "num_cpus": 4}}}
    (problem,) = judged(**deep).problems
    assert problem.startswith("resources.generate: each worker needs 3 times 4 GPU, each on one node")
    assert problem.endswith("lower it, or add such a node")


def test_several_nodes_of_a_type_are_waited_for() -> None:
    def types(most: int) -> Callable[[dict[str, Any]], Any]:
        def change(facts: dict[str, Any]) -> None:
            facts["nodes"] = facts["nodes"][:1]
            facts["node_types"] = [{"name": "h100", "resources": {"CPU": 32.0, "GPU": 4.0}, "max": most}]

        return change

    found = judged(types(5), **spread())
    assert found.problems == []
    assert "it waits for the autoscaler to add one of type h100" in found.notes[0]
    assert found.plan["max_replicas"] == 2
    assert judged(types(-1), **spread()).plan["max_replicas"] == 6
    (problem,) = judged(types(1), **spread()).problems
    assert "nor any that the autoscaler may add (h100: 32 CPU, 4 GPU); lower it, or add such a type" in problem


def test_what_the_autoscaler_may_add_is_waited_for() -> None:
    def from_zero(facts: dict[str, Any]) -> None:
        facts["nodes"] = [head()]
        facts["node_types"] = [
            {"name": "gpu", "resources": {"CPU": 32, "GPU": 4}, "max": 2},
            {"name": "cpu", "resources": {"CPU": 64}, "max": -1},
        ]

    found = judged(from_zero)
    assert found.problems == []
    waits, unseen, mounts, _ = found.notes
    assert "resources.generate: each worker needs 4 CPU, 2 GPU, and no node has that (8 CPU); it waits for the" in waits
    assert waits.endswith("to add one of type gpu")
    assert unseen.startswith("generate: no node that it fits on is up")
    assert mounts == "run_dir: nodes that the autoscaler adds must mount /mnt/shared/run as well"
    assert (found.plan["replicas"], found.plan["max_replicas"], found.plan["max_hours"]) == (0, 4, 1.0)


def test_a_cache_that_may_not_fit_is_a_note() -> None:
    """27 GB of weights and 1.5 GB of cache a GPU, of 30 GB 92%."""
    found = judged(everywhere(gpus=[30 * 10**9]))
    assert found.problems == []
    assert "may lack room for the cache of one conversation of teacher.max_model_len 8192 (1.5 GB)" in found.notes[0]


def test_one_node_may_have_a_folder_of_its_own() -> None:
    def alone(facts: dict[str, Any]) -> None:
        facts["nodes"] = [worker(1) | {"sees_run_dir": False}]

    assert judged(alone).problems == []


def test_looking_at_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    run_dir = tmp_path / "not/there/yet"
    found = node.look_at_folder(str(run_dir), "mark")
    assert found == {"run_dir_problem": None, "sees_run_dir": False}
    assert list(tmp_path.iterdir()) == []
    open_folder(str(run_dir)).put(keys.preflight("mark"), b"")
    before = sorted(tmp_path.rglob("*"))
    assert node.look_at_folder(str(run_dir), "mark") == {"run_dir_problem": None, "sees_run_dir": True}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    found = node.look_at_folder("/proc/no/run", "mark")
    assert found["run_dir_problem"].startswith("/proc/no/run: cannot be written (")
    (tmp_path / "file").touch()
    assert "cannot be" in node.look_at_folder(f"{tmp_path}/file/run", "mark")["run_dir_problem"]


def test_unmet_requirements() -> None:
    found = dict(node._unmet(["pytest>=1", "pytest<2", "no-such-package>=3", "vllm>=9", "ruff<0; extra == 'dev'"]))
    assert found.keys() == {"pytest", "no-such-package"}
    assert found["no-such-package"] == "no-such-package>=3, has none"
    assert found["pytest"] == f"pytest<2, has {pytest.__version__}"
    assert dict(node._unmet(requires("stillhouse") or [])) == {}


def test_gpus_are_asked_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text("#!/bin/sh\necho 81559\necho 81559\n")
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert node._gpus() == [81559 * 2**20] * 2
    stand_in.write_text("#!/bin/sh\nexit 9\n")
    assert node._gpus() == []


def test_memory_is_what_the_machine_says() -> None:
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")]
    assert 0 < node._memory_bytes() <= int(line.split()[1]) * 1024


def test_several_teachers_are_judged_one_by_one() -> None:
    """The second one's weights do not fit, a node lacks its folder, and both lack a vLLM that is new enough."""
    large = {**CONFIG["teacher"], "name": "large", "model": "/models/large", "engine": {"tensor_parallel_size": 4}}
    raw = {key: value for key, value in CONFIG.items() if key != "teacher"} | {
        "teachers": [{**CONFIG["teacher"], "name": "small", "when": {"language": ["de"]}}, large],
        "resources": {**CONFIG["resources"], "teachers": {"large": {"max_workers": 2, "num_gpus": 4}}},
    }
    facts = copy.deepcopy(FACTS)
    facts["models"]["teachers.large"] = LARGE_ONE | {"weight_bytes": 400 * 10**9}
    facts["check"]["teachers"] = {"small": 30, "large": 10}
    of_model("teachers.large", 3, has_model=False)(facts)
    judged = judge_all(Config.model_validate(raw), facts)
    assert [text.partition("; put ")[0].partition(", and ")[0] for text in judged.problems] == [
        "teachers.large.model: /models/large is no folder with a model on node 10.0.0.3",
        "teachers.large: weights of 400.0 GB are 100.0 GB for each of 4 GPUs",
    ]
    # 4 replicas of the small one do all in 1 hour, 2 of the large one in 2.
    assert judged.plan == {"nodes": 3, "replicas": 2, "max_replicas": 2, "max_hours": 1.25, "max_bytes": 5 * 10**9}
    for found in facts["nodes"]:
        found["vllm"] = "0.31.0"
    judged = judge_all(Config.model_validate(raw), facts)
    assert sum("0.31.0" in text and not text.startswith("teachers") for text in judged.problems) == 1
