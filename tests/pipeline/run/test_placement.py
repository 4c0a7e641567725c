"""Whether there is room for workers, against every way to put their pieces on nodes."""

import itertools
from typing import Any

import numpy as np
import pytest

from stillhouse.pipeline.run import placement
from stillhouse.schemas.config import Config


def config(raw: dict[str, Any], engine: dict[str, Any], **generate: Any) -> Config:
    raw["teacher"]["engine"] = engine
    raw["resources"] = {"generate": generate}
    return Config.model_validate(raw)


SPREAD = {"distributed_executor_backend": "ray", "tensor_parallel_size": 8, "pipeline_parallel_size": 2}


def test_a_worker_is_one_piece_unless_it_is_spread(raw_config: dict[str, Any]) -> None:
    big = {"num_gpus": 16, "num_cpus": 4, "resources": {"rdma": 1}}
    for engine in ({}, {**SPREAD, "distributed_executor_backend": "mp"}):
        found = placement.pieces(config(raw_config, engine, **big), "generate")
        assert found == [{"CPU": 4, "GPU": 16, "rdma": 1}]
    spread = config(raw_config, SPREAD, **big)
    assert placement.pieces(spread, "generate") == [{"CPU": 4, "GPU": 8, "rdma": 1}, {"GPU": 8}]
    assert placement.pieces(spread, "screen") == [{"CPU": 1}]
    assert not placement.is_spread(config(raw_config, SPREAD, num_gpus=0), "generate")


def ways(nodes: list[placement.Resources], parts: list[placement.Resources]) -> bool:
    """Whether some way puts each piece on a node that has room for it beside the others."""
    for chosen in itertools.product(range(len(nodes)), repeat=len(parts)):
        left = [dict(node) for node in nodes]
        for place, part in zip(chosen, parts, strict=True):
            for name, amount in part.items():
                left[place][name] = left[place].get(name, 0) - amount
        if all(amount >= 0 for node in left for amount in node.values()):
            return True
    return False


def test_room_is_found_where_there_is_some() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1500):
        each = {"GPU": float(rng.integers(1, 5))}
        parts = [each | {"CPU": float(rng.integers(1, 6))}, *[each] * int(rng.integers(0, 4))]
        nodes = [
            {"CPU": float(rng.integers(0, 9)), "GPU": float(rng.integers(0, 9))} for _ in range(rng.integers(1, 5))
        ]
        found.append(placement.can_hold(nodes, parts))
        assert found[-1] == ways(nodes, parts), (nodes, parts)
        most = placement.how_many(nodes, parts)
        if len(nodes) * len(parts) * most <= 12:
            assert most == 0 or ways(nodes, parts * most)
            assert not ways(nodes, parts * (most + 1))
    assert 0.2 < np.mean(found) < 0.8


def test_workers_that_need_nothing_are_as_many_as_cores() -> None:
    assert placement.how_many([{"CPU": 8.0}, {"CPU": 2.0}], [{}]) == 10
    assert placement.can_hold([{}], [{}])


@pytest.mark.parametrize(
    ("engine", "is_said"),
    [(SPREAD, False), ({"pipeline_parallel_size": 2}, True), ({"tensor_parallel_size": 2}, False)],
)
def test_the_way_over_nodes_is_named_where_it_would_help(
    raw_config: dict[str, Any], engine: dict[str, Any], is_said: bool
) -> None:
    found = placement.hint(config(raw_config, engine, num_gpus=16), "generate")
    assert bool(found) == is_said
    assert placement.hint(config(raw_config, engine, num_gpus=16), "screen") == ""


def test_a_students_engine_is_placed_by_its_own_section(raw_config: dict[str, Any]) -> None:
    del raw_config["sampling"]
    student = {"model": "./student", "sampling": {"max_tokens": 8}, "engine": SPREAD}
    resources = {"rollout": {"num_gpus": 16}, "score": {"num_gpus": 1}}
    made = Config.model_validate(raw_config | {"task": "score", "rollout": student, "resources": resources})
    assert placement.pieces(made, "rollout") == [{"CPU": 1, "GPU": 8}, {"GPU": 8}]
    assert placement.pieces(made, "score") == [{"CPU": 1, "GPU": 1}]
    turned = student | {"engine": {}}
    made = Config.model_validate(raw_config | {"task": "score", "rollout": turned, "resources": resources})
    assert placement.pieces(made, "rollout") == [{"CPU": 1, "GPU": 16}]
