"""A teacher that is put over nodes as vLLM's Ray executor puts itself (vllm 0.32, v1/executor/ray_executor_v2.py)."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer
from tests.support.fake_teacher import FakeTeacher

CORE = """
import json, logging, os, pickle, sys
import ray
from ray.util import placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

front_end, group = pickle.load(sys.stdin.buffer)
ray.init(log_to_driver=False, logging_level=logging.ERROR)

@ray.remote(num_cpus=0, num_gpus=1)
class Rank:
    def place(self):
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids()["GPU"]

nodes = placement_group_table(group)["bundles_to_node_id"]
bundles = [bundle for bundle, needed in enumerate(group.bundle_specs) if needed.get("GPU")]
bundles.sort(key=lambda bundle: (nodes[bundle] != front_end, nodes[bundle]))
places = [PlacementGroupSchedulingStrategy(group, bundle) for bundle in bundles]
ranks = [Rank.options(scheduling_strategy=place).remote() for place in places]
places = ray.get([rank.place.remote() for rank in ranks])
print(json.dumps({"group": group.id.hex(), "front_end": front_end, "bundles": group.bundle_specs,
                  "nodes": [node for node, _ in places], "gpus": [gpus for _, gpus in places]}), flush=True)
sys.stdin.buffer.read()
"""
"""The engine's process: a driver of its own, which is given the group."""


class SpreadTeacher(FakeTeacher):
    """`teacher.env` says where it writes a line of JSON at each start (`LOG`), and whether it dies at its first answer,
    once (`DIES`)."""

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        super().__init__(config, stop_token_ids)
        import ray

        self._log, self._dies = Path(config.teacher.env["LOG"]), "DIES" in config.teacher.env
        context = ray.get_runtime_context()
        self._core = subprocess.Popen(
            [sys.executable, "-c", CORE],
            env={**os.environ, "RAY_ADDRESS": context.gcs_address},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._core.stdin is not None
        assert self._core.stdout is not None
        pickle.dump((context.get_node_id(), ray.util.get_current_placement_group()), self._core.stdin)
        self._core.stdin.flush()
        line = self._core.stdout.readline().decode()
        with self._log.open("a") as file:
            file.write(json.dumps(json.loads(line) | {"pid": os.getpid()}) + "\n")

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        died = self._log.with_suffix(".died")
        if self._dies and not died.exists():
            died.touch()
            os._exit(1)
        return await super().answer(prompt_ids, request_id, seed, max_tokens)

    def shutdown(self) -> None:
        assert self._core.stdin is not None
        self._core.stdin.close()
        self._core.wait(30)
