"""What would make a run fail on a cluster, and what it would do there: judged from the facts that `probe` found.

The facts are JSON. `nodes`: one for each that is up, its `address`, `resources` and `labels` as Ray has them, and what
`node.look` returned, or `problem` where it did not answer. `node_types`: those that an autoscaler may add. `check`:
what `look.check` returned there, or `check_problem`. `footprint`, `gated`: of the teacher and the source.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from stillhouse.pipeline import flow
from stillhouse.pipeline.cluster import RAYS_COPY
from stillhouse.pipeline.cluster.node import ENGINES
from stillhouse.pipeline.run import placement
from stillhouse.pipeline.run.placement import spelled
from stillhouse.pipeline.run.ray_pool import MAX_NODES_NAMED, NODE_GROUP_LABEL
from stillhouse.schemas.config import Config, TeacherConfig, is_local_path, num_parallel

PYTHONS = SpecifierSet(">=3.11,<3.14")
DEFAULT_GPU_SHARE = 0.92
"""vLLM 0.32's gpu_memory_utilization."""
OWN_ENGINE = TeacherConfig.model_fields["backend"].default

Facts = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """What comes of a pre-flight."""

    problems: list[str]
    """Why a run would fail: each says where, what, and what to do."""
    notes: list[str]
    """What to know."""
    plan: dict[str, Any]
    """What a run would do: see `_plan`."""


def requirements() -> list[str]:
    """What the package that this process runs needs; empty where it is not installed."""
    try:
        return requires("stillhouse") or []
    except PackageNotFoundError:
        return []


def judge(config: Config, facts: Facts) -> Judgement:
    """All that is wrong, at once, for one teacher (`several` is for more). No network is asked here."""
    if "problem" in facts:
        return Judgement([_in_copy(facts["problem"])], [], {})
    nodes = [node for node in facts["nodes"] if "problem" not in node]
    named = _Named([node["address"] for node in facts["nodes"]])
    problems = [f"{named(bad)}: {what}; look into that node's Ray logs" for what, bad in _unanswered(facts)]
    for rule in (_python, _packages, _engine, _run_dir, _tokens, _model, _memory, _disk):
        problems += rule(config, facts, nodes, named)
    never, waits = _resources(config, facts)
    problems += never
    problems += _parallel(config)
    if "check_problem" in facts:
        problems.append(_in_copy(facts["check_problem"]))
    checked = facts.get("check", {})
    problems += checked.get("problems", [])
    notes = [*waits, *_unseen(config, facts, nodes), *_cache(config, facts, nodes), *_crossing(config, nodes, named)]
    notes += checked.get("notes", [])
    return Judgement(problems, notes, _plan(config, facts))


class _Named:
    """Nodes in a sentence: by address, or all of them."""

    def __init__(self, addresses: list[str]) -> None:
        self._num = len(addresses)

    def __call__(self, nodes: list[Facts]) -> str:
        # Several nodes of one machine have one address.
        addresses = list(dict.fromkeys(node["address"] for node in nodes))
        if len(nodes) == self._num:
            return "every node" if self._num > 1 else f"the only node ({addresses[0]})"
        more = f" and {len(addresses) - MAX_NODES_NAMED} more" if len(addresses) > MAX_NODES_NAMED else ""
        return f"node{'s'[: len(nodes) > 1]} {', '.join(addresses[:MAX_NODES_NAMED])}{more}"


def _grouped(nodes: list[Facts], key: Callable[[Facts], Any]) -> Iterator[tuple[Any, list[Facts]]]:
    """Nodes of which `key` is the same and not None."""
    groups = defaultdict(list)
    for node in nodes:
        if (found := key(node)) is not None:
            groups[found].append(node)
    yield from groups.items()


def _unanswered(facts: Facts) -> Iterator[tuple[str, list[Facts]]]:
    yield from _grouped(facts["nodes"], lambda node: node.get("problem"))


def _python(config: Config, facts: Facts, nodes: list[Facts], named: _Named) -> Iterator[str]:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    series = dict(_grouped(nodes, lambda node: node["python"].rpartition(".")[0]))
    for found, bad in series.items():
        if not PYTHONS.contains(found):
            yield f"{named(bad)}: has Python {found}, and Stillhouse needs {PYTHONS}; use {here} as here"
    if len(series) > 1:
        yield f"the nodes have Python {' and '.join(sorted(series))}; Ray needs the same on all, such as {here} as here"


def _packages(config: Config, facts: Facts, nodes: list[Facts], named: _Named) -> Iterator[str]:
    for unmet, bad in _grouped(nodes, lambda node: "; ".join(node["unmet"].values()) or None):
        yield (
            f"{named(bad)}: lacks packages ({unmet}); install the lock in the nodes' image (requirements/gpu.txt), or "
            "submit with --runtime-env gpu"
        )


def _engine(config: Config, facts: Facts, nodes: list[Facts], named: _Named) -> Iterator[str]:
    if config.teacher.backend != OWN_ENGINE:
        return
    ours = [found for found in map(Requirement, requirements()) if found.name in ENGINES]
    wanted = ours[0].specifier if ours else SpecifierSet()
    fitting = _fitting(config, nodes)
    for found, bad in _grouped(fitting, lambda node: node["vllm"] or "none"):
        if found == "none" or not wanted.contains(found):
            yield (
                f"{named(bad)}: generate may run there, and of vLLM {wanted} it has {found}; install the lock "
                "(requirements/gpu.txt), or submit with --runtime-env gpu"
            )


def _run_dir(config: Config, facts: Facts, nodes: list[Facts], named: _Named) -> Iterator[str]:
    for problem, bad in _grouped(nodes, lambda node: node["run_dir_problem"]):
        yield f"run_dir, from {named(bad)}: {problem}"
    blind = [node for node in nodes if node["run_dir_problem"] is None and not node["sees_run_dir"]]
    if blind and len(facts["nodes"]) > 1:
        yield (
            f"run_dir: {config.run_dir} is another folder on {named(blind)} than on the head; mount one shared file "
            "system there on all nodes, or use an object store"
        )


def _tokens(config: Config, facts: Facts, nodes: list[Facts], named: _Named) -> Iterator[str]:
    lacking = [node for node in nodes if not node["has_token"]]
    for key, name in facts.get("gated", {}).items():
        if lacking:
            yield (
                f"{key}: {name} is gated, and {named(lacking)} has no token for the hub; accept its terms there, and "
                "hand HF_TOKEN on with --env HF_TOKEN"
            )


def _fitting(config: Config, nodes: list[Facts]) -> list[Facts]:
    """Nodes on which an engine may be, or a piece of one."""
    smallest = placement.pieces(config, config.task)[-1]
    return [node for node in nodes if placement.has_room(node["resources"], smallest)]


def _model(config: Config, facts: Facts, nodes: list[Facts], named: _Named) -> Iterator[str]:
    fitting = _fitting(config, nodes)
    if lacking := [node for node in fitting if not node["has_model"]]:
        yield (
            f"teacher.model: {config.teacher.model} is no folder with a model on {named(lacking)}; put the weights "
            "where every node finds them, or name a hub id with its revision"
        )


def _parallel(config: Config) -> Iterator[str]:
    num, asked = num_parallel(config.teacher.engine), config.engine_workers.num_gpus
    if asked and config.teacher.backend == OWN_ENGINE and asked != num:
        yield (
            f"resources.{config.task}.num_gpus: {asked:g}, and an engine of teacher.engine uses {num} "
            f"(tensor_parallel_size x pipeline_parallel_size); set it to {num}"
        )


def _memory(config: Config, facts: Facts, nodes: list[Facts], named: _Named) -> Iterator[str]:
    """Weights that do not fit: on a GPU, or in the machine where there are none."""
    weights = facts.get("footprint", {}).get("weight_bytes")
    if not weights or config.teacher.backend != OWN_ENGINE:
        return
    fitting = _fitting(config, nodes)
    if config.engine_workers.num_gpus:
        num, share = num_parallel(config.teacher.engine), _gpu_share(config)
        each = weights / num
        for found, bad in _grouped(fitting, lambda node: min(node["gpus"], default=None)):
            if each > share * found:
                yield (
                    f"teacher: weights of {_gb(weights)} are {_gb(each)} for each of {num} GPUs, and those of "
                    f"{named(bad)} have {_gb(found)}, of which {share:.0%} are used; raise "
                    f"teacher.engine.tensor_parallel_size with resources.{config.task}.num_gpus, or use larger GPUs"
                )
        return
    cache = float(config.teacher.env.get("VLLM_CPU_KVCACHE_SPACE") or 0) * 2**30
    for found, bad in _grouped(fitting, lambda node: node["memory_bytes"]):
        if weights + cache > found:
            yield (
                f"teacher: weights of {_gb(weights)} and a cache of {_gb(cache)} (VLLM_CPU_KVCACHE_SPACE) exceed the "
                f"{_gb(found)} of memory of {named(bad)}; use a smaller teacher or cache, or larger nodes"
            )


def _disk(config: Config, facts: Facts, nodes: list[Facts], named: _Named) -> Iterator[str]:
    """Weights from the hub, which each node fetches for itself."""
    size = facts.get("footprint", {}).get("file_bytes")
    if not size or is_local_path(config.teacher.model):
        return
    fitting = _fitting(config, nodes)
    for free, bad in _grouped(fitting, lambda node: None if node["is_cached"] else node["disk_free_bytes"]):
        if size > free:
            yield (
                f"teacher.model: {_gb(size)} of weights are to be fetched, and {named(bad)} has {_gb(free)} free where "
                "they are kept; make room, or point HF_HOME to a larger disk"
            )


def _resources(config: Config, facts: Facts) -> tuple[list[str], list[str]]:
    """Stages that no node has room for: those that none ever can, and those that wait for the autoscaler."""
    nodes, types = facts["nodes"], facts["node_types"]
    have = "; ".join(dict.fromkeys(spelled(node["resources"]) for node in nodes))
    may_grow = bool(types) or any(NODE_GROUP_LABEL in node["labels"] for node in nodes)
    never, waits = [], []
    for stage in flow.of(config):
        parts = placement.pieces(config, stage.name)
        if placement.can_hold([node["resources"] for node in nodes], parts):
            continue
        fitting = [t["name"] for t in types if placement.can_hold(_all_of(t, len(parts)), parts)]
        if not fitting and placement.can_hold([one for t in types for one in _all_of(t, len(parts))], parts):
            fitting = [t["name"] for t in types if t["max"] != 0]
        sentence = placement.lacking(stage.name, parts, have)
        more = placement.hint(config, stage.name)
        if fitting:
            waits.append(f"{sentence}; it waits for the autoscaler to add one of type {', '.join(fitting)}")
        elif types:
            offered = "; ".join(f"{t['name']}: {spelled(t['resources'])}" for t in types if t["max"] != 0)
            never.append(
                f"{sentence}, nor any that the autoscaler may add ({offered}); lower it, or add such a type{more}"
            )
        elif may_grow:
            waits.append(f"{sentence}; it waits for the autoscaler, which does not say what it may add")
        else:
            never.append(f"{sentence}; lower it, or add such a node{more}")
    return never, waits


def _all_of(node_type: dict[str, Any], most: int) -> list[dict[str, float]]:
    """Nodes of a type that there may be, as far as one worker on `most` nodes can tell."""
    num = most if node_type["max"] < 0 else min(most, node_type["max"])
    return [node_type["resources"]] * num


def _unseen(config: Config, facts: Facts, nodes: list[Facts]) -> Iterator[str]:
    """What could not be looked at."""
    if not _fitting(config, nodes):
        yield f"{config.task}: no node that it fits on is up, so its vLLM, GPUs and memory were not looked at"
    may_grow = bool(facts["node_types"]) or any(NODE_GROUP_LABEL in node["labels"] for node in nodes)
    if may_grow and "://" not in config.run_dir.removeprefix("file://"):
        yield f"run_dir: nodes that the autoscaler adds must mount {config.run_dir} as well"


def _cache(config: Config, facts: Facts, nodes: list[Facts]) -> Iterator[str]:
    """A cache that may be too small for one longest conversation; an upper bound, so no problem."""
    found = facts.get("footprint", {})
    weights, per_token = found.get("weight_bytes"), found.get("cache_bytes_per_token")
    gpus = [min(node["gpus"]) for node in nodes if node["gpus"]]
    if not weights or not per_token or not gpus or not config.engine_workers.num_gpus:
        return
    num, share = num_parallel(config.teacher.engine), _gpu_share(config)
    cache = per_token * config.teacher.max_model_len / num
    if weights / num <= share * min(gpus) < weights / num + cache:
        yield (
            f"teacher: beside {_gb(weights / num)} of weights a GPU of {_gb(min(gpus))} may lack room for the cache of "
            f"one conversation of teacher.max_model_len {config.teacher.max_model_len} ({_gb(cache)}); lower it, or "
            "raise tensor_parallel_size"
        )


def _crossing(config: Config, nodes: list[Facts], named: _Named) -> Iterator[str]:
    """Nodes by whose GPUs a piece of an engine may come to lie on two of them."""
    each = placement.pieces(config, config.task)[-1].get("GPU", 0)
    odd = [node for node in _fitting(config, nodes) if each and node["resources"]["GPU"] % each]
    if odd and placement.is_spread(config, config.task):
        yield (
            f"teacher.engine: the GPUs of {named(odd)} are no multiple of tensor_parallel_size {each:g}, so that "
            "tensor parallel may go across nodes, which is slow; use another size, or nodes for it"
        )


def _plan(config: Config, facts: Facts) -> dict[str, Any]:
    """`nodes` that are up, `replicas` of the engine on them, `max_replicas` with what may be added, upper bounds of
    `max_hours` for generate with the latter (None: not known) and of `max_bytes`."""
    workers, parts = config.engine_workers, placement.pieces(config, config.task)
    fit = placement.how_many([node["resources"] for node in facts["nodes"]], parts)
    enough = workers.max_workers * len(parts)  # nodes of a type that has no limit
    later = placement.how_many([one for t in facts["node_types"] for one in _all_of(t, enough)], parts)
    replicas = min(fit, workers.max_workers)
    most = min(max(fit, later), workers.max_workers)
    plan: dict[str, Any] = {"nodes": len(facts["nodes"]), "replicas": replicas, "max_replicas": most}
    estimate = facts.get("check", {}).get("estimate")
    if estimate is not None:
        rate = estimate["tokens_per_second_per_replica"] * most
        hours = round(estimate["max_answer_tokens"] / rate / 3600, 2) if rate else None
        plan |= {"max_hours": hours, "max_bytes": estimate["max_bytes"]}
    return plan


def _gpu_share(config: Config) -> float:
    return float(config.teacher.engine.get("gpu_memory_utilization", DEFAULT_GPU_SHARE))


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _in_copy(sentence: str) -> str:
    """A sentence about a path in Ray's copy says what that is."""
    if RAYS_COPY not in sentence:
        return sentence
    return (
        f"{sentence} (this is the job's copy of the working directory, where relative paths begin; data, runs and what "
        "ignore files name are not in it: write an absolute path that all nodes see, or an object-store URL)"
    )
