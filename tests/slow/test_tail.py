"""How long a stage's last shards keep workers waiting. The figures are in docs/reliability.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.run import driver, sharing
from stillhouse.pipeline.run.pool import LocalPool
from stillhouse.schemas.config import Config
from tests.support.command import Command
from tests.support.inline_pool import Kept
from tests.support.nodes import started_head
from tests.support.timed_teacher import idle, spans_of

NUM_WORKERS = 8


def config_of(folder: Path, raw: dict[str, Any], rows: list[int], most: int, shards_in_flight: int) -> Config:
    """A run whose shards have so many rows when they are screened."""
    source = folder / "source.jsonl"
    with source.open("w") as file:
        for shard, kept in enumerate(rows):
            for number in range(most):
                row = {
                    "conversation_id": f"id-{shard * most + number}",
                    "conversation": [{"role": "user", "content": f"{shard} {number}"}],
                    "openai_moderation": [{"flagged": number >= kept}],
                }
                file.write(json.dumps(row) + "\n")
    raw |= {
        "source": {"path": str(source), "name": "numbers"},
        "ingest": {"rows_per_shard": most},
        "dedupe": {"threshold": 1.0, "max_dropped_fraction": 1.0},
        "screen": {"classifiers": [], "max_dropped_fraction": 1.0},
        "resources": {
            "generate": {
                "num_cpus": 0,
                "min_workers": NUM_WORKERS,
                "max_workers": NUM_WORKERS,
                "shards_in_flight": shards_in_flight,
            }
        },
    }
    raw["teacher"]["backend"] = "tests.support.timed_teacher:TimedTeacher"
    return Config.model_validate(raw)


@pytest.mark.parametrize(("num_shards", "shards_in_flight"), [(8, 1), (40, 1), (40, 3)])
@pytest.mark.parametrize("costs", ["known", "unknown"])
@pytest.mark.parametrize("way", ["shared", "in the source's order"])
def test_workers_are_busy_until_the_end(
    way: str,
    costs: str,
    num_shards: int,
    shards_in_flight: int,
    tmp_path: Path,
    raw_config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shards that differ by 10 to 1: in rows, which is known, or in the time an answer takes, which is not."""
    random = np.random.default_rng(num_shards)
    most = 400 if num_shards == 8 else 100
    rows = [most // 2] * num_shards if costs == "unknown" else np.linspace(most // 10, most, num_shards).astype(int)
    config = config_of(tmp_path, raw_config, random.permutation(rows).tolist(), most, shards_in_flight)
    log = tmp_path / "log"
    log.mkdir()
    monkeypatch.setenv("TIMED_TEACHER_LOG", str(log))
    monkeypatch.setenv("TIMED_TEACHER_S", "0.6" if costs == "known" else "0.12")
    monkeypatch.setenv("TIMED_TEACHER_UNKNOWN", "" if costs == "known" else "1")
    if way != "shared":
        monkeypatch.setattr(sharing, "shared", lambda shards, *rest: [*shards])
    driver.run(config, Kept(), LocalPool(), until="generate")
    assert len(open_folder(config.run_dir).names("generate")) == num_shards
    share = share_of(log, sum(rows), f"{way}: {num_shards} shards, cost {costs}, {shards_in_flight} in flight")
    if way == "shared":
        assert share < 0.1


@pytest.mark.parametrize("costs", ["known", "unknown"])
def test_replicas_on_a_cluster_are_busy_until_the_end(costs: str, tmp_path: Path, raw_config: dict[str, Any]) -> None:
    """The same on Ray, all replicas on one node."""
    rows = [50] * 40 if costs == "unknown" else np.linspace(10, 100, 40).astype(int).tolist()
    rows = np.random.default_rng(40).permutation(rows).tolist()
    config_of(tmp_path, raw_config, rows, 100, 3)
    log = tmp_path / "log"
    log.mkdir()
    timed = {
        "TIMED_TEACHER_LOG": str(log),
        "TIMED_TEACHER_S": "0.6" if costs == "known" else "0.12",
        "TIMED_TEACHER_UNKNOWN": "" if costs == "known" else "1",
    }
    Command(tmp_path, raw_config, local=True)("run", "--until", "screen")
    with started_head(tmp_path / "head.log", "--num-cpus=2", **timed) as head:
        Command(tmp_path, raw_config)("run", "--until", "generate", **head.driver_environment)
    assert share_of(log, sum(rows), f"on Ray: 40 shards, cost {costs}, 3 in flight") < 0.1


def share_of(log: Path, num_answers: int, what: str) -> float:
    """Of the time from the moment when all workers have begun, in which fewer than half of them answer."""
    spans = spans_of(log)
    assert len(spans) == NUM_WORKERS
    assert sum(len(span) for span in spans) == num_answers
    began, end = max(span[:, 0].min() for span in spans), max(span[:, 1].max() for span in spans)
    share = idle(spans, began, end)
    print(f"\n{what}: fewer than half at work {share:.1%} of {end - began:.1f} s")
    return share
