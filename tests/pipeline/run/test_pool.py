"""The pool of this machine: results as they come, workers that die, workers that cannot start, places and GPUs."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.run import pool as pools
from stillhouse.pipeline.run import ray_pool
from stillhouse.pipeline.run.pool import Job, LocalPool
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.config import Config, ConfigError
from tests.support.command import Command, copy_of, without_answers
from tests.support.processes import descendants
from tests.support.prompts import numbered, put_screened

NAMES = [f"{n:05d}.parquet" for n in range(5)]


@pytest.fixture
def config(raw_config: dict[str, Any]) -> Config:
    """A run whose screened shards exist: two prompts each."""
    config = Config.model_validate(raw_config)
    for number, name in enumerate(NAMES):
        put_screened(config, name, numbered([10 * number, 10 * number + 1]))
    return config


def generate(config: Config, **workers: Any) -> Job:
    resources = config.resources.generate.model_copy(update={"num_cpus": 0.5, "shards_in_flight": 2} | workers)
    config = config.model_copy(update={"resources": config.resources.model_copy(update={"generate": resources})})
    return Job(config, "generate", "transform", len(NAMES), is_async=True)


def made(job: Job, names: list[str]) -> tuple[list[ShardResult], list[Activity]]:
    pool, activities = LocalPool(), list[Activity]()
    try:
        return list(pool.map_shards(job, names, activities.append)), activities
    finally:
        pool.close()


@pytest.mark.long
def test_every_shard_is_made_once_and_workers_say_what_they_do(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TEACHER_DELAY_S", "1.2")
    results, activities = made(generate(config, max_workers=2), NAMES)
    assert sorted(result.shard for result in results) == NAMES
    assert {result.outcome for result in results} == {"written"}
    assert open_folder(config.run_dir).names("generate") == set(NAMES)
    assert {activity.worker for activity in activities} == {"local-0", "local-1"}
    assert max(activity.num_under_way for activity in activities if not activity.is_starting) == 4
    assert max(activity.num_shards for activity in activities) == 2


@pytest.mark.long
def test_worker_that_dies_is_replaced_and_costs_one_row(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config.model_copy(update={"resources": config.resources.model_copy(update={"max_attempts": 1})})
    monkeypatch.setenv("FAKE_TEACHER_DIES_ON", "id-20/")
    results, _ = made(generate(config), NAMES)
    assert sorted(result.shard for result in results) == NAMES
    assert {result.outcome for result in results} == {"written"}
    assert {result.shard: result.dropped for result in results if result.dropped} == {
        "00002.parquet": {"teacher_failed": 1}
    }


def test_worker_that_cannot_start_says_why(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TEACHER_FAILS_TO_START", "1")
    results, _ = made(generate(config), NAMES[:1])
    assert [(result.outcome, result.message) for result in results] == [("fatal", "teacher: no such weights")]


@pytest.mark.long
def test_worker_that_dies_whenever_it_starts_is_not_started_for_ever(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TEACHER_FAILS_TO_START", "dies")
    results, _ = made(generate(config), NAMES[:1])
    assert [result.outcome for result in results] == ["fatal"]
    assert "its workers died 4 times in a row while starting" in results[0].message


@pytest.mark.long
def test_workers_end_with_their_driver(finished: Command, tmp_path: Path) -> None:
    """However it ends: here by a kill."""
    command = copy_of(finished, tmp_path)
    without_answers(command)
    driver = command.start("run", FAKE_TEACHER_DELAY_S="60")
    until = time.monotonic() + 60
    while not list(command.run_dir.glob("state/attempts/*/*")) and time.monotonic() < until:
        time.sleep(0.1)  # until a worker has begun a shard
    processes = descendants(driver.pid)
    assert processes
    driver.kill()
    driver.communicate()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in processes) and time.monotonic() < until:
        time.sleep(0.1)
    assert [name for pid, name in processes.items() if Path(f"/proc/{pid}").exists()] == []


def refuse(config: Config) -> Iterator[ShardResult]:
    raise ConfigError("source.path: is no file")
    yield


def test_what_is_wrong_with_a_configuration_stays_that(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command ends by 2 for it, not by 1."""
    with pytest.raises(ConfigError, match=r"^source\.path: is no file$"):
        list(LocalPool().run_task(config, "ingest", refuse))

    class TaskError(Exception):
        cause = ConfigError("source.path: is no file")

    ray = SimpleNamespace(exceptions=SimpleNamespace(RayTaskError=TaskError, RayError=OSError))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ConfigError, match=r"^source\.path: is no file$"), ray_pool._explained("ingest"):
        raise TaskError


def test_gpus_are_shared_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3,5,7")
    gpus = pools._gpus(2)
    assert gpus == ["0", "3", "5", "7"]
    assert [pools._share(gpus, place, 2) for place in range(2)] == ["0,3", "5,7"]
    assert [pools._share(gpus, place, 0.5) for place in range(4)] == ["0", "0", "3", "3"]
    assert [pools._share(gpus, place, 0.3) for place in range(6)] == ["0", "0", "0", "3", "3", "3"]
    assert pools._num_workers(generate(config, num_gpus=0.3, num_cpus=0, max_workers=99), 99, gpus) == 12
    assert pools._share(pools._gpus(0), 0, 0) is None
    assert pools._num_workers(generate(config, num_gpus=2, max_workers=8), 8, gpus) == 2
    with pytest.raises(RunError, match=r"resources\.generate\.num_gpus: 8 for each worker, and this machine has 4"):
        pools._num_workers(generate(config, num_gpus=8), 8, gpus)
