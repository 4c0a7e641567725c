"""The student and the guards of a run, looked at before it as its teacher is: one thing is wrong with them, or none."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from stillhouse.pipeline.cluster import node, probe
from stillhouse.schemas.config import Config
from tests.support.cluster_facts import CONFIG, GPU, GUARD, LARGE_ONE, judged, of_model, on

STUDENT: dict[str, Any] = {
    "task": "score",
    "sampling": {},
    "rollout": {"model": "org/student", "revision": "ghi", "engine": {"tensor_parallel_size": 1},
                "sampling": {"max_tokens": 512}},
    "resources": {"score": {"num_gpus": 2, "num_cpus": 4}, "rollout": {"num_gpus": 1, "num_cpus": 4}},
}  # fmt: skip


def guarded(**guard: Any) -> dict[str, Any]:
    own = {"name": "guard", "preset": "llama-guard-3", "model": "meta-llama/Llama-Guard-3-8B", "revision": "jkl"}
    gpu = {"num_gpus": 1}
    return {
        "screen": {"classifiers": [own | guard]},
        "resources": {**CONFIG["resources"], "screen": gpu, "review": gpu},
    }


OTHERS_WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, Any], list[str]]] = {
    "a student that is gated": (
        lambda facts: (on(3, has_token=False)(facts), facts.update(gated={"rollout.model": "org/student"})), STUDENT,
        ["rollout.model: org/student is gated, and node 10.0.0.3 has no token for the hub"],
    ),
    "a student's folder is missing on a node": (
        of_model("rollout", 2, has_model=False), {**STUDENT, "rollout": {**STUDENT["rollout"], "model": "/models/s"}},
        ["rollout.model: /models/s is no folder with a model on node 10.0.0.2; put the weights"],
    ),
    "a student that is too large for its GPU": (
        lambda facts: facts["models"].update(rollout={"weight_bytes": 90 * 10**9}), STUDENT,
        ["rollout: weights of 90.0 GB are 90.0 GB for each of 1 GPUs, and those of nodes 10.0.0.2, 10.0.0.3 have 80.0"],
    ),
    "a student and a full disk": (
        lambda facts: (facts["models"].update(rollout={"file_bytes": 501 * 10**9})), STUDENT,
        ["rollout.model: 501.0 GB of weights are to be fetched, and nodes 10.0.0.2, 10.0.0.3 has 500.0 GB free"],
    ),
    "a student on fewer GPUs than it uses": (
        lambda facts: None, {**STUDENT, "rollout": {**STUDENT["rollout"], "engine": {"tensor_parallel_size": 2}}},
        ["resources.rollout.num_gpus: 1, and an engine of rollout.engine uses 2 (tensor_parallel_size x"],
    ),
    "vLLM is missing where only the student may be": (
        lambda facts: (facts["nodes"][2].update(vllm=None, resources={"CPU": 8.0, "GPU": 1.0}, gpus=[GPU])), STUDENT,
        ["node 10.0.0.3: rollout may run there, and of vLLM <0.33,>=0.32.0 it has none; install the lock"],
    ),
    "a guard that is gated": (
        lambda facts: (on(3, has_token=False)(facts), facts.update(gated={f"{GUARD}.model": "meta-llama/L"})),
        guarded(), [f"{GUARD}.model: meta-llama/L is gated, and node 10.0.0.3 has no token for the hub"],
    ),
    "a guard's folder is missing on a node": (
        of_model(GUARD, 3, has_model=False), guarded(model="/models/guard"),
        [f"{GUARD}.model: /models/guard is no folder with a model on node 10.0.0.3; put the weights where every"],
    ),
    "a guard that is too large for its GPU": (
        lambda facts: facts["models"].update({GUARD: {"weight_bytes": 90 * 10**9}}), guarded(reads=["prompts"]),
        [f"{GUARD}: weights of 90.0 GB are 90.0 GB for each of 1 GPUs"],
    ),
    "a guard on fewer GPUs than it uses": (
        lambda facts: None, guarded(engine={"tensor_parallel_size": 2}, reads=["answers"]),
        ["resources.review.num_gpus: 1, and an engine of screen.classifiers (guard llama_guard).engine uses 2"],
    ),
    "vLLM is missing where a guard may be": (
        lambda facts: None, guarded() | {"resources": {**CONFIG["resources"], "review": {"num_gpus": 1}}},
        ["node 10.0.0.1: screen may run there, and of vLLM <0.33,>=0.32.0 it has none; install",
         f"{GUARD}.model: 54.0 GB of weights are to be fetched, and node 10.0.0.1 has 1.0 GB free"],
    ),
    "two guards on one GPU": (
        lambda facts: None,
        guarded() | {"screen": {"classifiers": [
            *guarded(reads=["prompts"])["screen"]["classifiers"],
            *guarded(preset="wildguard", chat_template="x", reads=["prompts"])["screen"]["classifiers"],
        ]}},
        ["resources.screen: the 2 guards of a worker start on the same GPU, and their engines take 184% of its memory"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS_WRONG)
def test_students_and_guards_are_looked_at_like_teachers(name: str) -> None:
    change, config, sentences = OTHERS_WRONG[name]
    found = judged(change, **config)
    assert len(found.problems) == len(sentences), found.problems
    for sentence in sentences:
        assert [problem for problem in found.problems if problem.startswith(sentence)], found.problems


def test_a_right_student_and_a_guard_that_shares_a_gpu_have_no_problem() -> None:
    assert judged(**STUDENT).problems == []
    shared = guarded(engine={"gpu_memory_utilization": 0.25})
    shared["resources"]["screen"] = {"num_gpus": 0.25}
    small = {**LARGE_ONE, "weight_bytes": 16 * 10**9}
    assert judged(lambda facts: facts["models"].update({GUARD: small}), **shared).problems == []


def test_what_a_node_has_of_every_model(tmp_path: Path) -> None:
    """A teacher that is there, a student and a guard that are not."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/config.json").write_text("{}")
    local = {key: value for key, value in CONFIG["teacher"].items() if key != "revision"}
    raw = {**CONFIG, **STUDENT, "run_dir": str(tmp_path / "run"), "teacher": local | {"model": f"{tmp_path}/teacher"}}
    raw["rollout"] = {**STUDENT["rollout"], "model": f"{tmp_path}/student", "revision": None}
    raw["screen"] = guarded(model=f"{tmp_path}/guard", revision=None)["screen"]
    found = node.look(Config.model_validate(raw), [], "mark")["models"]
    assert {where: files["has_model"] for where, files in found.items()} == {
        "teacher": True, "rollout": False, GUARD: False,
    }  # fmt: skip


def test_every_gated_name_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a teacher that is not; a student, a guard and sets of texts that are."""
    gated = ("org/student", "meta-llama/Llama-Guard-3-8B", "org/exam", "org/templates", "org/vectors")

    class Hub:
        def model_info(self, name: str, timeout: float) -> Any:
            return SimpleNamespace(gated="manual" if name in gated else False)

        dataset_info = model_info

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    exam, templates = (
        {"name": name, "dataset": f"org/{name}", "revision": "main", "columns": ["text"]}
        for name in ("exam", "templates")
    )
    raw = {**CONFIG, **STUDENT, "screen": {**guarded()["screen"], "jailbreaks": {"templates": [templates]}}}
    raw["decontamination"] = {"evaluations": [exam]}
    raw["dedupe"] = {"semantic": {"model": "org/vectors", "revision": "main"}}
    assert probe.gated(Config.model_validate(raw)) == {
        "rollout.model": "org/student",
        f"{GUARD}.model": "meta-llama/Llama-Guard-3-8B",
        "decontamination.evaluations (exam)": "org/exam",
        "screen.jailbreaks.templates (templates)": "org/templates",
        "dedupe.semantic.model": "org/vectors",
    }
