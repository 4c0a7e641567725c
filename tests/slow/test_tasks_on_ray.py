"""Runs of two engines, and of two teachers, on a Ray cluster: byte for byte what this machine alone makes.

The teachers are the tests' own: pure functions of seed and prompt, where a real engine's last digits depend on what it
reads at the same time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.dataset.verify import verify
from tests.support.command import Command, contents
from tests.support.nodes import Head
from tests.support.scoring import make_raw_rollout_config
from tests.support.teaching import make_raw_rolled_out_teachers, make_raw_teachers

Raw = dict[str, Any]


def student(folder: Path) -> Raw:
    """A student writes, and then a teacher scores."""
    raw = make_raw_rollout_config(folder, asked_top_k=3)
    return raw | {"generate": {"system_prompts": ["Be brief.", "Be kind.", None]}}


def teachers_that_write(folder: Path) -> Raw:
    raw = make_raw_teachers(folder)
    template = folder / "template.jinja"
    template.write_text(raw["teachers"][1]["chat_template"])
    raw["teachers"][1]["chat_template"] = str(template)  # a configuration's file names one
    return raw


def teachers_that_score(folder: Path) -> Raw:
    raw = teachers_that_write(folder) | {"task": "score"}
    del raw["sampling"]
    return raw


def mixture(folder: Path) -> Raw:
    """Two teachers read every answer."""
    raw = teachers_that_score(folder) | {"mixture": "average", "targets": {"method": "sampled", "num_draws": 8}}
    first, second = raw["teachers"]
    del first["when"]
    raw["teachers"] = [first, first | {"name": "codes", "backend": second["backend"]}]
    return raw


def student_of_two(folder: Path) -> Raw:
    """A student writes, and then two teachers score, each its rows."""
    return make_raw_rolled_out_teachers(folder)


@pytest.mark.parametrize("make_raw", [student, teachers_that_write, teachers_that_score, mixture, student_of_two])
def test_a_cluster_makes_the_same_as_this_machine(
    make_raw: Callable[[Path], Raw], tmp_path: Path, weights: Path, head: Head
) -> None:
    """With one worker a stage here, and two that share shards there."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    raw = make_raw(here)
    alone = Command(here, raw, local=True)
    manifest, _ = alone("run")
    workers = {"min_workers": 2, "max_workers": 2, "num_cpus": 0.5, "shards_in_flight": 3}
    stages = ("rollout", "score") if "rollout" in raw else (raw.get("task", "generate"),)
    resources = {**raw.get("resources", {}), **dict.fromkeys(stages, workers)}
    cluster = Command(there, raw | {"run_dir": str(there / "run"), "resources": resources})
    again, _ = cluster("run", **head.driver_environment)
    assert again == manifest
    assert manifest["rows"] > 20
    mine, theirs = contents(cluster.run_dir), contents(alone.run_dir)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if mine[key] != theirs[key]] == []
    assert {key.split("/")[0] for key in mine} >= {*stages, "dataset", "ledger"}
    found = verify(str(cluster.run_dir), num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
