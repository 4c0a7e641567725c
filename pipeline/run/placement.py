"""What a worker takes of the nodes of a cluster, and where it is put.

A worker is one actor with its GPUs, all of one node. An engine that is larger than a node
(`teacher.engine.distributed_executor_backend: ray`) takes several *pieces*: tensor parallel within a piece, pipeline
parallel across them. It is a placement group of one GPU a bundle, which is all that vLLM takes (0.32,
v1/executor/ray_utils.py): our actor is in bundle 0 with the cores, the actors that vLLM starts hold the GPUs.
"""

import contextlib
from typing import Any

from stillhouse.pipeline.folder import keys
from stillhouse.schemas.config import Config, WorkersConfig

Resources = dict[str, float]
"""By Ray's names: CPU, GPU and custom ones."""


def needed_by(workers: WorkersConfig) -> Resources:
    """What Ray sets aside for one worker."""
    needed = {"CPU": workers.num_cpus, "GPU": workers.num_gpus, **workers.resources}
    return {name: amount for name, amount in needed.items() if amount}


def is_spread(config: Config, stage: str) -> bool:
    """Whether a worker of this stage may be on several nodes."""
    backend = _engine(config, stage).get("distributed_executor_backend")
    return stage in keys.TEACHERS and backend == "ray" and getattr(config.resources, stage).num_gpus >= 1


def _engine(config: Config, stage: str) -> dict[str, Any]:
    """vLLM's options of a stage: the student's where it writes, else the teacher's."""
    return (config.writer if stage == "rollout" else config).teacher.engine


def pieces(config: Config, stage: str) -> list[Resources]:
    """What one worker of a stage takes, node by node; two pieces may be on one node. The first has what is not GPUs."""
    whole = needed_by(getattr(config.resources, stage))
    if not is_spread(config, stage):
        return [whole]
    num = int(_engine(config, stage).get("pipeline_parallel_size", 1))
    each = {"GPU": whole["GPU"] / num}
    return [whole | each, *[each] * (num - 1)]


def how_many(nodes: list[Resources], parts: list[Resources]) -> int:
    """Workers of such `pieces` that there is room for on `nodes`. Exact, as pieces differ in nothing but the first."""
    if len(parts) == 1:
        return sum(_how_many(node, parts[0]) for node in nodes)
    room = sum(_how_many(node, parts[1]) for node in nodes) // len(parts)
    return min(room, sum(_how_many(node, parts[0]) for node in nodes))


def _how_many(there: Resources, needed: Resources) -> int:
    """Pieces that fit on one node; as many as it has cores where they need nothing."""
    if not needed:
        return int(there.get("CPU", 0))
    return int(min(there.get(name, 0) // amount for name, amount in needed.items()))


def can_hold(nodes: list[Resources], parts: list[Resources]) -> bool:
    """Whether there is room for one worker of such `pieces` where nothing else runs."""
    return any(has_room(node, parts[0]) for node in nodes) and (len(parts) == 1 or how_many(nodes, parts) > 0)


def has_room(there: Resources, needed: Resources) -> bool:
    return all(there.get(name, 0) >= amount for name, amount in needed.items())


def spelled(resources: Resources) -> str:
    """Such as 8 CPU, 1 GPU. A node's memory, its name and the kinds of its accelerators are left out."""
    named = {name: amount for name, amount in resources.items() if "memory" not in name and ":" not in name}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(named.items())) or "nothing"


def lacking(stage: str, parts: list[Resources], have: str) -> str:
    """The sentence about workers for which there is no room; `have` is what there is."""
    if len(parts) == 1:
        return f"resources.{stage}: each worker needs {spelled(parts[0])}, and no node has that ({have})"
    return (
        f"resources.{stage}: each worker needs {len(parts)} times {spelled(parts[1])}, each on one node "
        f"(pipeline_parallel_size times tensor_parallel_size), and {spelled(parts[0])} on the first of them; the nodes "
        f"have no room for that ({have})"
    )


def hint(config: Config, stage: str) -> str:
    """What else may be done about a worker that is too large for a node."""
    several = int(_engine(config, stage).get("pipeline_parallel_size", 1)) > 1
    if stage not in keys.TEACHERS or is_spread(config, stage) or not several:
        return ""
    section = "rollout" if stage == "rollout" else "teacher"
    return f"; or set {section}.engine.distributed_executor_backend to ray, by which an engine may be on several nodes"


class Groups:
    """Places a worker. Its placement group, where it needs one, ends with it; that of a driver that was killed ends
    with its job."""

    def __init__(self, config: Config, stage: str) -> None:
        self._bundles: list[Resources] = []
        if is_spread(config, stage):
            first, *_ = parts = pieces(config, stage)
            num = round(sum(part["GPU"] for part in parts))
            self._bundles = [first | {"GPU": 1.0}, *[{"GPU": 1.0}] * (num - 1)]
        self._groups: list[Any] = []

    def options(self) -> dict[str, Any]:
        """Ray's options of a new actor.

        By Ray's default strategy, which takes nodes with GPUs last for what needs none. One of several pieces gets
        bundle 0 of a group of its own, which need not have a place yet: PACK fills a node before it takes the next one,
        so that pieces stay whole where what is free on each node is a multiple of `tensor_parallel_size`. vLLM gives
        neighbouring ranks to bundles of one node.
        """
        if not self._bundles:
            return {}
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._groups.append(group := ray.util.placement_group(self._bundles, strategy="PACK"))
        strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        return {"scheduling_strategy": strategy, "num_gpus": 0}

    def close(self) -> None:
        """Gives the nodes back, and Ray ends what is left there."""
        import ray

        for group in self._groups:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.util.remove_placement_group(group)
        self._groups.clear()


def enter() -> None:
    """In an actor of a group: waits until all of it has a place."""
    import ray

    group = ray.util.get_current_placement_group()
    while group is not None and not group.wait(timeout_seconds=60):
        pass
