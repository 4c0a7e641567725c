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
from tests.support.inline_pool import Kept
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
    spans = spans_of(log)
    assert len(spans) == NUM_WORKERS
    assert sum(len(span) for span in spans) == sum(rows)
    began, end = max(span[:, 0].min() for span in spans), max(span[:, 1].max() for span in spans)
    share, seconds = idle(spans, began, end), end - began
    print(
        f"\n{way}: {num_shards} shards, cost {costs}, {shards_in_flight} in flight: fewer than half at work "
        f"{share:.1%} of {seconds:.1f} s"
    )
    if way == "shared":
        assert share < 0.1
