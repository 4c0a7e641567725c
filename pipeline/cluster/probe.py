"""Runs on a cluster, as a job of its own: asks every node what it has, looks at the source, and prints it as one line.

python -m stillhouse.pipeline.cluster.probe CONFIG [--set KEY=VALUE]... [--sample N] --requirements JSON
"""

import argparse
import contextlib
import json
import logging
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from stillhouse.pipeline import models
from stillhouse.pipeline.cluster.files import sets
from stillhouse.pipeline.cluster.node import look, missing_folders, open_preflight, remove_folders
from stillhouse.pipeline.errors import safe_message
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.look.check import check
from stillhouse.pipeline.models import Model
from stillhouse.schemas.config import Config, is_local_path, load, sampled
from stillhouse.stages.teacher.footprint import footprint

MARK = "stillhouse-facts "
"""How the line begins."""
NODE_TIMEOUT_S = 120.0
"""What nodes get to answer: a worker imports what a node's disk gives it."""
RAYS_NODE_TYPES = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` puts the cluster's file on the head."""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--sample", type=int)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--tokens-per-second", type=float, default=2500.0)
    parser.add_argument("--requirements", type=json.loads, default=[])
    arguments = parser.parse_args(argv)
    try:
        config = load(arguments.config, arguments.set)
        if arguments.sample is not None:
            config = sampled(config, arguments.sample)
        facts = facts_of_cluster(config, arguments.requirements)
        facts |= _facts_of_data(config, arguments.rows, arguments.tokens_per_second)
    except Exception as error:  # of any kind: only what is safe to show goes on
        facts = {"problem": safe_message(error)}
    print(MARK + json.dumps(facts), flush=True)


def facts_of_cluster(config: Config, requirements: list[str]) -> dict[str, Any]:
    """Facts about every node that is up and about those that may come: see `preflight`."""
    import ray

    ray.init(address=os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False, logging_level=logging.ERROR)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    mark, made = secrets.token_hex(6), missing_folders(config.run_dir)
    with contextlib.suppress(Exception):  # the nodes say the same, each for itself
        open_preflight(config.run_dir).put(keys.preflight(mark), b"")
    try:
        answers = _ask(config, requirements, mark, [node["NodeID"] for node in nodes])
    finally:
        with contextlib.suppress(Exception):
            open_preflight(config.run_dir).delete(keys.preflight(mark))
        remove_folders(made)
    found = [
        {
            "address": node["NodeManagerAddress"],
            "resources": node["Resources"],
            "labels": node.get("Labels", {}),
            **said,
        }
        for node, said in zip(nodes, answers, strict=True)
    ]
    return {"ray": ray.__version__, "nodes": found, "node_types": _node_types()}


def _ask(config: Config, requirements: list[str], mark: str, ids: list[str]) -> list[dict[str, Any]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(look)
    asked = [
        task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(config, requirements, mark)
        for node_id in ids
    ]
    ray.wait(asked, num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    answers: list[dict[str, Any]] = []
    for reference in asked:
        try:
            answers.append(ray.get(reference, timeout=0.1))
        except ray.exceptions.GetTimeoutError:
            answers.append({"problem": f"does not answer within {NODE_TIMEOUT_S:.0f} s"})
        except ray.exceptions.RayTaskError as error:
            answers.append({"problem": safe_message(error.cause)})
        except ray.exceptions.RayError as error:
            answers.append({"problem": f"cannot run a task ({type(error).__name__})"})
    return answers


def _node_types() -> list[dict[str, Any]]:
    """Of nodes that an autoscaler may add: name, resources of one, the most there may be (-1: no limit)."""
    with contextlib.suppress(Exception):  # private, so another release may have moved it
        from ray._private.state import state

        config = state.get_cluster_config()
        if config is not None:
            return [
                {"name": group.name, "resources": dict(group.resources), "max": group.max_count}
                for group in config.node_group_configs
            ]
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, yaml.YAMLError):
        types = yaml.safe_load(RAYS_NODE_TYPES.expanduser().read_text())["available_node_types"]
        return [
            {"name": name, "resources": given.get("resources", {}), "max": given.get("max_workers", -1)}
            for name, given in types.items()
        ]
    return []


def _facts_of_data(config: Config, rows: int, tokens_per_second: float) -> dict[str, Any]:
    footprints = {where: footprint(model.run)._asdict() for where, model in _every(config).items()}
    facts: dict[str, Any] = {"models": footprints, "gated": gated(config)}
    try:
        facts["check"] = check(config, rows, tokens_per_second)
    except Exception as error:  # of any kind: only what is safe to show goes on
        facts["check_problem"] = safe_message(error)
    return facts


def _every(config: Config) -> dict[str, Model]:
    """The models of all views, by their sections."""
    return {model.where: model for view in config.views() for model in models.of(view)}


def gated(config: Config) -> dict[str, str]:
    """What of the hub has terms to accept, by the key that names it."""
    import huggingface_hub

    ask = huggingface_hub.HfApi()
    named: list[tuple[str, str, Callable[..., Any]]] = [
        (f"{model.where}.model", model.teacher.model, ask.model_info)
        for model in _every(config).values()
        if not is_local_path(model.teacher.model)
    ]
    if config.source.dataset is not None:
        named.append(("source.dataset", config.source.dataset, ask.dataset_info))
    named += [(where, one.dataset, ask.dataset_info) for where, one, _ in sets(config) if one.dataset is not None]
    semantic = config.dedupe.semantic
    if semantic is not None and not is_local_path(semantic.model):
        named.append(("dedupe.semantic.model", semantic.model, ask.model_info))

    def is_gated(name: str, info: Callable[..., Any]) -> bool:
        with contextlib.suppress(Exception):  # no hub within reach: what is there is in a cache
            return bool(info(name, timeout=10).gated)
        return False

    with ThreadPoolExecutor(len(named) or 1) as pool:  # a firewall that answers nothing takes the timeout of each
        answers = [*pool.map(lambda one: is_gated(*one[1:]), named)]
    return {key: name for (key, name, _), gated in zip(named, answers, strict=True) if gated}


if __name__ == "__main__":
    main(sys.argv[1:])
