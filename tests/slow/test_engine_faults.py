"""Slow (`make test-faults`): the real engine and all around it killed at random moments of generate."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.schemas import targets
from tests.support.command import Command
from tests.support.data import ROOT, TEACHER, make_raw_config
from tests.support.processes import descendants, end_all

ROWS = 40
PARTS = ("VLLM::Worker", "VLLM::EngineCore", "ray::StageWorker", "driver")


def make_config(folder: Path) -> dict[str, Any]:
    raw = make_raw_config(folder)
    raw["source"]["limit"] = ROWS
    raw["ingest"] |= {"rows_per_shard": 8, "max_prompt_tokens": 200}
    raw["teacher"] = {
        "model": str(TEACHER),
        "max_model_len": 384,
        "engine": {"enforce_eager": True, "max_num_seqs": 8},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    raw["sampling"] = {"max_tokens": 64, "temperature": 0.7}
    raw["targets"] = {"method": "both", "top_k": 16}
    # What an engine writes may differ with what else is in its batch; what becomes of it must not depend on that here.
    raw["review"] = {"loop_tokens": 100_000, "max_duplicates": 1000, "thresholds": {}, "max_dropped_fraction": 1.0}
    raw["resources"] = {"max_attempts": 1000, "generate": {"num_cpus": 1, "shards_in_flight": 2}}
    return raw


def outcome(run_dir: Path) -> dict[str, Any]:
    """What must not depend on kills: which rows were published and which dropped, where and why, and what was asked."""
    published = pa.concat_tables([pq.read_table(file) for file in sorted(run_dir.glob("dataset/data/*.parquet"))])
    ledger = pa.concat_tables([pq.read_table(file) for file in sorted(run_dir.glob("ledger/*/*.parquet"))]).to_pylist()
    rows = published.column("source_row").to_pylist() + [row["source_row"] for row in ledger]
    assert sorted(rows) == list(range(ROWS))
    for row, drawn in zip(published.to_pylist(), targets.decode(published, "draw"), strict=True):
        assert len(drawn.tail) == row["num_target_tokens"] == sum(label != -100 for label in row["labels"])
    return {
        "published": sorted((row["sample_id"], row["messages"][0]["content"]) for row in published.to_pylist()),
        "dropped": sorted((row["source_row"], row["stage"], row["reason"]) for row in ledger),
    }


def test_killed_engines(tmp_path: Path) -> None:
    """`ENGINE_KILLS` kills of the engine's worker, its core, its front end (a Ray worker) and the driver; each is given
    time to get to work first. Then one run that is left in peace."""
    chance = random.Random(0)
    (tmp_path / "undisturbed").mkdir()
    undisturbed = Command(tmp_path / "undisturbed", make_config(tmp_path / "undisturbed"))
    undisturbed("run")
    expected = outcome(undisturbed.run_dir)
    command = Command(tmp_path, make_config(tmp_path))
    wanted = int(os.environ.get("ENGINE_KILLS", "12"))
    kills: Counter[str] = Counter()
    shards_before: list[int] = []
    runs = 0
    while kills.total() < wanted:
        if (command.run_dir / "dataset/manifest.json").exists():
            assert outcome(command.run_dir) == expected
            shutil.rmtree(command.run_dir)
        runs += 1
        log = (tmp_path / "log").open("a")
        driver = subprocess.Popen(
            [sys.executable, "-m", "stillhouse", "run", str(command.file)],
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stdout=log,
            stderr=log,
        )
        family: dict[int, str] = {}
        deadline = time.monotonic() + 600
        after = chance.randint(0, 3)  # shards that it has made by then
        while driver.poll() is None and kills.total() < wanted:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.5)
            present = descendants(driver.pid)
            family |= present
            if "VLLM::Worker" not in present.values() or (command.run_dir / "review").exists():
                continue
            if len([*command.run_dir.glob("generate/*.parquet")]) < after:
                continue
            time.sleep(chance.uniform(0, 3))  # it loads for some seconds, and then answers
            part = chance.choices(PARTS, [4, 3, 3, 2])[0]
            names = {pid: name for pid, name in descendants(driver.pid).items() if name.startswith(part)}
            victim = chance.choice([*names]) if names else driver.pid if part == "driver" else None
            if victim is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kills[part] += 1
                deadline, after = time.monotonic() + 600, chance.randint(0, 3)
                shards_before.append(len([*command.run_dir.glob("generate/*.parquet")]))
        end_all(driver, family)
        log.close()
    command("run")
    assert outcome(command.run_dir) == expected
    print(
        f"\n{kills.total()} kills {dict(kills)} in {runs} runs, with {shards_before} of 5 shards generated at the time"
    )
