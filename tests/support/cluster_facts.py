"""Facts about a cluster that is right, for tests that change one of them: a head and two nodes of four GPUs."""

import copy
from collections.abc import Callable
from typing import Any

from stillhouse.pipeline.cluster.preflight import Judgement
from stillhouse.pipeline.cluster.several import judge_all
from stillhouse.schemas.config import Config

GPU = 80 * 10**9
GUARD = "screen.classifiers (guard llama_guard)"
CONFIG: dict[str, Any] = {
    "run_dir": "/mnt/shared/run",
    "source": {"dataset": "lmsys/lmsys-chat-1m", "revision": "abc"},
    "teacher": {"model": "google/gemma-2-27b-it", "revision": "def", "max_model_len": 8192,
                "engine": {"tensor_parallel_size": 2}},
    "sampling": {"max_tokens": 2048},
    "resources": {"generate": {"max_workers": 6, "num_gpus": 2, "num_cpus": 4}},
}  # fmt: skip


MODELS = ("teacher", "rollout", GUARD, "screen.classifiers (guard wildguard)", "teachers.small", "teachers.large")
FILES = {"has_model": True, "is_cached": False}
LARGE_ONE = {"weight_bytes": 54 * 10**9, "file_bytes": 54 * 10**9, "cache_bytes_per_token": 376_832}


def worker(number: int) -> dict[str, Any]:
    return {
        "address": f"10.0.0.{number}", "resources": {"CPU": 32.0, "GPU": 4.0, "memory": 1e11}, "labels": {},
        "host": f"w{number}", "python": "3.11.9", "unmet": {}, "vllm": "0.32.1", "run_dir_problem": None,
        "sees_run_dir": True, "has_token": True, "gpus": [GPU] * 4, "memory_bytes": 256 * 10**9,
        "disk_free_bytes": 500 * 10**9, "missing_inputs": [], "models": {where: dict(FILES) for where in MODELS},
    }  # fmt: skip


def head() -> dict[str, Any]:
    return worker(1) | {"resources": {"CPU": 8.0}, "gpus": [], "vllm": None, "disk_free_bytes": 10**9}


FACTS: dict[str, Any] = {
    "ray": "2.60.0",
    "nodes": [head(), worker(2), worker(3)],
    "node_types": [],
    "models": dict.fromkeys(MODELS, LARGE_ONE),
    "gated": {"teacher.model": "google/gemma-2-27b-it"},
    "check": {"problems": [], "notes": ["a note of check's"],
              "estimate": {"max_answer_tokens": 36_000_000, "max_bytes": 5 * 10**9,
                           "tokens_per_second_per_replica": 2500.0}},
}  # fmt: skip


def judged(change: Callable[[dict[str, Any]], Any] = lambda facts: None, **config: Any) -> Judgement:
    facts = copy.deepcopy(FACTS)
    change(facts)
    return judge_all(Config.model_validate({**CONFIG, **config}), facts)


def on(number: int, **values: Any) -> Callable[[dict[str, Any]], Any]:
    """Changes node 10.0.0.`number`."""
    return lambda facts: facts["nodes"][number - 1].update(values)


def everywhere(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda facts: [found.update(values) for found in facts["nodes"]]


def of_model(where: str, number: int, **values: Any) -> Callable[[dict[str, Any]], Any]:
    """Changes what node 10.0.0.`number` has of a model."""
    return lambda facts: facts["nodes"][number - 1]["models"][where].update(values)
