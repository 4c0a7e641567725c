"""Killed at any moment, a run goes on as if nothing had been: every shard byte for byte that of an undisturbed run.

`make test-faults` kills real drivers, workers, raylets and GCS servers at random moments, and single processes at every
single step that they take on the storage.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from stillhouse.schemas.config import Config
from tests.support.command import Command
from tests.support.data import ROOT, STAGES
from tests.support.processes import descendants, end_all
from tests.support.undisturbed import (
    assert_nothing_lost_nothing_twice,
    killed_again_and_again,
    make_config,
    undisturbed_run,
)

ROWS = 60


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Config:
    return undisturbed_run(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_step_many_times(finished: Config, tmp_path: Path, seed: int) -> None:
    config = finished.model_copy(update={"run_dir": str(tmp_path / "run")})
    random_steps = random.Random(seed)
    kills = killed_again_and_again(config, Path(finished.run_dir), iter(lambda: random_steps.randint(1, 50), None))
    print(f"\n{kills} kills of one process at a step on the storage")
    assert kills >= 25


# ---------------------------------------------------------------------------------------------------------------------
# A cluster of real processes, killed at random moments


def kind(name: str) -> str | None:
    """Which part of a run a process is; None for those that hold none of its work (dashboards, agents, spares)."""
    if name in ("raylet", "gcs_server"):
        return name
    return "worker" if re.match(r"ray::(StageWorker|ingest_task|assign_task)", name) else None


def stage_under_way(run_dir: Path) -> str:
    """The first stage that lacks a shard."""
    folders = [(name, "dataset/data" if name == "publish" else name) for name in STAGES]
    return next((name for name, folder in folders if len([*run_dir.glob(f"{folder}/*.parquet")]) < 6), "manifest")


@pytest.mark.parametrize("seed", range(int(os.environ.get("FAULT_ROUNDS", "8"))))
def test_killed_at_random_moments(finished: Config, tmp_path: Path, seed: int) -> None:
    """In each round one folder, a run that is started again and again, and in it processes killed until `FAULT_KILLS`
    have been: workers mostly, else the driver, the raylet or the GCS. Then one run that is left in peace."""
    chance = random.Random(seed)
    command = Command(tmp_path, make_config(tmp_path))
    wanted = int(os.environ.get("FAULT_KILLS", "10"))
    kills: Counter[str] = Counter()
    under_way: Counter[str] = Counter()
    codes: list[int] = []
    while kills.total() < wanted:
        if (command.run_dir / "dataset/manifest.json").exists():
            assert_nothing_lost_nothing_twice(command.run_dir, Path(finished.run_dir))
            shutil.rmtree(command.run_dir)
        with (tmp_path / "log").open("a") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "stillhouse", "run", str(command.file)],
                cwd=ROOT,
                env={**os.environ, "FAKE_TEACHER_DELAY_S": "0.3", "RAY_AUTH_MODE": "disabled"},
                stdout=log,
                stderr=log,
            )
        family: dict[int, str] = {}
        deadline = time.monotonic() + 300
        # A few kills per stage, so that a run gets on to the next one.
        left = {stage: chance.randint(1, 4) for stage in STAGES}
        while driver.poll() is None and kills.total() < wanted:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(chance.uniform(0, 1.5))  # starting takes seconds, a shard tenths of one: hit both
            present = descendants(driver.pid)
            family |= present
            workers = [pid for pid, name in present.items() if kind(name) == "worker"]
            stage = stage_under_way(command.run_dir)
            if not workers or not left.get(stage):
                continue
            left[stage] -= 1
            victim, part = chance.choice(workers), "worker"
            if chance.random() < 0.15:
                part = chance.choice(["driver", "raylet", "gcs_server"])
                victim = next((pid for pid, name in family.items() if name == part), driver.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kills[part] += 1
                deadline = time.monotonic() + 300
                under_way[stage] += 1
        code = driver.poll()
        codes.append(-1 if code is None else code)
        end_all(driver, family)
    command("run")
    print(
        f"\nround {seed}: {kills.total()} kills {dict(kills)} in {len(codes)} runs that ended with {codes}; "
        f"under way: {dict(under_way)}"
    )
    assert_nothing_lost_nothing_twice(command.run_dir, Path(finished.run_dir))


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_a_driver_without_ray_ends(finished: Config, tmp_path: Path, part: str) -> None:
    """Amid a stage. Without its GCS Ray itself ends the driver, after a minute; without its raylet it would wait for
    ever."""
    command = Command(tmp_path, make_config(tmp_path))
    driver = command.start("run", FAKE_TEACHER_DELAY_S="0.3", RAY_AUTH_MODE="disabled")
    until, family = time.monotonic() + 120, dict[int, str]()
    while "worker" not in map(kind, family.values()) or not list(command.run_dir.glob("ingest/*")):
        assert time.monotonic() < until
        assert driver.poll() is None
        time.sleep(0.1)
        family = descendants(driver.pid)
    os.kill(next(pid for pid, name in family.items() if name == part), signal.SIGKILL)
    killed = time.monotonic()
    _, err = driver.communicate(timeout=150)
    print(f"\n{part} killed: the driver ended with {driver.returncode} after {time.monotonic() - killed:.0f} s")
    assert driver.returncode == 1
    assert part != "raylet" or "its raylet has ended); run again to go on with what is missing" in err
    end_all(driver, family)
    command("run")
    assert_nothing_lost_nothing_twice(command.run_dir, Path(finished.run_dir))
