"""What would make a run fail on a cluster, and what it would do there: judged from the facts that `probe` found.

The facts are JSON. `nodes`: one for each that is up, its `address`, `resources` and `labels` as Ray has them, and what
`node.look` returned, or `problem` where it did not answer. `node_types`: those that an autoscaler may add. `check`:
what `look.check` returned there, or `check_problem`. `models`: the footprint of each of `pipeline.models`, by the name
of its section; of a node `models` say by the same names whether it has their files. `gated`: names of the hub with
terms to accept, by their keys.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from stillhouse.pipeline import flow
from stillhouse.pipeline.cluster import RAYS_COPY, engines, files
from stillhouse.pipeline.cluster.engines import Seen
from stillhouse.pipeline.cluster.named import Facts, Named, grouped
from stillhouse.pipeline.cluster.node import ENGINES
from stillhouse.pipeline.run import placement
from stillhouse.pipeline.run.placement import spelled
from stillhouse.pipeline.run.ray_pool import NODE_GROUP_LABEL
from stillhouse.schemas.config import Config

PYTHONS = SpecifierSet(">=3.11,<3.14")


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
    named = Named([node["address"] for node in facts["nodes"]])
    problems = [f"{named(bad)}: {what}; look into that node's Ray logs" for what, bad in _unanswered(facts)]
    every = engines.seen(config, facts, nodes)
    for rule in (_python, _packages, _run_dir, _tokens, files.missing):
        problems += rule(config, facts, nodes, named)
    problems += _vllm(every, nodes, named)
    problems += dict.fromkeys(text for one in every for text in engines.problems(one, named))
    never, waits = _resources(config, facts)
    problems += [*never, *engines.crowded(every)]
    if "check_problem" in facts:
        problems.append(_in_copy(facts["check_problem"]))
    checked = facts.get("check", {})
    problems += checked.get("problems", [])
    of_engines = dict.fromkeys(text for one in every for text in engines.notes(one, named))
    notes = [*waits, *of_engines, *_mounts(config, facts), *checked.get("notes", [])]
    return Judgement(problems, notes, _plan(config, facts))


def _unanswered(facts: Facts) -> Iterator[tuple[str, list[Facts]]]:
    yield from grouped(facts["nodes"], lambda node: node.get("problem"))


def _python(config: Config, facts: Facts, nodes: list[Facts], named: Named) -> Iterator[str]:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    series = dict(grouped(nodes, lambda node: node["python"].rpartition(".")[0]))
    for found, bad in series.items():
        if not PYTHONS.contains(found):
            yield f"{named(bad)}: has Python {found}, and Stillhouse needs {PYTHONS}; use {here} as here"
    if len(series) > 1:
        yield f"the nodes have Python {' and '.join(sorted(series))}; Ray needs the same on all, such as {here} as here"


def _packages(config: Config, facts: Facts, nodes: list[Facts], named: Named) -> Iterator[str]:
    for unmet, bad in grouped(nodes, lambda node: "; ".join(node["unmet"].values()) or None):
        yield (
            f"{named(bad)}: lacks packages ({unmet}); install the lock in the nodes' image (requirements/gpu.txt), or "
            "submit with --runtime-env gpu"
        )


def _vllm(every: list[Seen], nodes: list[Facts], named: Named) -> Iterator[str]:
    ours = [found for found in map(Requirement, requirements()) if found.name in ENGINES]
    wanted = ours[0].specifier if ours else SpecifierSet()

    def lacking(node: Facts) -> tuple[str, str] | None:
        """What it has, and the stages that need another."""
        found = node["vllm"] or "none"
        stages = dict.fromkeys(one.model.stage for one in every if one.is_own and one.may_be_on(node))
        is_fit = found != "none" and wanted.contains(found)
        return None if is_fit or not stages else (found, ", ".join(stages))

    for (found, stages), bad in grouped(nodes, lacking):
        yield (
            f"{named(bad)}: {stages} may run there, and of vLLM {wanted} it has {found}; install the lock "
            "(requirements/gpu.txt), or submit with --runtime-env gpu"
        )


def _run_dir(config: Config, facts: Facts, nodes: list[Facts], named: Named) -> Iterator[str]:
    for problem, bad in grouped(nodes, lambda node: node["run_dir_problem"]):
        yield f"run_dir, from {named(bad)}: {problem}"
    blind = [node for node in nodes if node["run_dir_problem"] is None and not node["sees_run_dir"]]
    if blind and len(facts["nodes"]) > 1:
        yield (
            f"run_dir: {config.run_dir} is another folder on {named(blind)} than on the head; mount one shared file "
            "system there on all nodes, or use an object store"
        )


def _tokens(config: Config, facts: Facts, nodes: list[Facts], named: Named) -> Iterator[str]:
    lacking = [node for node in nodes if not node["has_token"]]
    for key, name in facts.get("gated", {}).items():
        if lacking:
            yield (
                f"{key}: {name} is gated, and {named(lacking)} has no token for the hub; accept its terms there, and "
                "hand HF_TOKEN on with --env HF_TOKEN"
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


def _mounts(config: Config, facts: Facts) -> Iterator[str]:
    may_grow = bool(facts["node_types"]) or any(NODE_GROUP_LABEL in node["labels"] for node in facts["nodes"])
    if may_grow and "://" not in config.run_dir:
        yield f"run_dir: nodes that the autoscaler adds must mount {config.run_dir} as well"


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


def _in_copy(sentence: str) -> str:
    """A sentence about a path in Ray's copy says what that is."""
    if RAYS_COPY not in sentence:
        return sentence
    return (
        f"{sentence} (this is the job's copy of the working directory, where relative paths begin; data, runs and what "
        "ignore files name are not in it: write an absolute path that all nodes see, or an object-store URL)"
    )
