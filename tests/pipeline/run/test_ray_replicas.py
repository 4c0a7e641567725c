"""Who is given what where nodes come and go, without a cluster: tests/slow/test_cluster.py has real ones."""

import sys
import time
from typing import Any

import pytest

from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.pipeline.run import placement, ray_replicas
from stillhouse.pipeline.run.pool import Job
from stillhouse.pipeline.run.ray_replicas import Replicas
from stillhouse.schemas.config import Config
from tests.support.fake_ray import FakeRay

NAMES = [f"{n:05d}.parquet" for n in range(6)]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


@pytest.fixture
def job(raw_config: dict[str, Any]) -> Job:
    raw_config["resources"] = {"generate": {"max_workers": 3, "shards_in_flight": 1}, "max_attempts": 2}
    return Job(Config.model_validate(raw_config), "generate", "transform", len(NAMES), is_async=True)


def marks(job: Job) -> set[str]:
    """Attempts that were begun and did not end, such as 00003.parquet.0."""
    return {mark.removeprefix("generate.transform.") for mark in open_folder(job.config.run_dir).list(marks_of(job))}


def marks_of(job: Job) -> str:
    return keys.attempts(job.run_id)


def begin(job: Job, mark: str) -> None:
    open_folder(job.config.run_dir).put_if_absent(f"{marks_of(job)}/generate.transform.{mark}", b"")


def made(replicas: Replicas, names: list[str] = NAMES) -> list[str]:
    results = [result.shard for result in replicas.results(names)]
    replicas.close(is_done=True)
    return results


def is_there() -> None:
    """The driver's node is."""


def work(ray: FakeRay) -> None:
    """All that is alive starts, and ends one of the units that it has."""
    for number, actor in enumerate(ray.actors):
        if not actor.is_killed and not actor.is_closed:
            actor.start(f"node-{number}")
            for unit in [*actor.given][:1]:
                actor.finish(unit)


def test_each_is_made_once_and_replicas_end_as_work_runs_out(ray: FakeRay, job: Job) -> None:
    """Of three replicas on three nodes the second has the long shard: the others' nodes can leave meanwhile."""
    open_at = []

    def script(tick: int) -> None:
        work_of = [actor for actor in ray.actors if not actor.is_closed]
        open_at.append(len(work_of))
        for number, actor in enumerate(ray.actors):
            actor.start(f"node-{number}")
            for unit in [*actor.given]:
                if unit != NAMES[1] or tick > 20:
                    actor.finish(unit)

    ray.script = script
    assert sorted(made(Replicas(job, None, is_there))) == NAMES
    assert len(ray.actors) == 3
    assert open_at[0] == 3
    assert open_at[19] == 1
    assert all(actor.is_closed and actor.is_killed for actor in ray.actors)


def test_as_many_stay_as_are_wanted(ray: FakeRay, job: Job) -> None:
    job.resources.__dict__["min_workers"] = 2
    closed_at = []

    def script(tick: int) -> None:
        closed_at.append(sum(actor.is_closed for actor in ray.actors))
        for actor in ray.actors:
            actor.start("node")
            for unit in [*actor.given]:
                if unit != NAMES[1] or tick > 20:
                    actor.finish(unit)

    ray.script = script
    assert sorted(made(Replicas(job, None, is_there))) == NAMES
    assert closed_at[19] == 1


def test_no_more_are_started_than_shards_need(ray: FakeRay, job: Job) -> None:
    ray.script = lambda tick: work(ray)
    assert made(Replicas(job, None, is_there), NAMES[:2]) == NAMES[:2]
    assert len(ray.actors) == 2


def test_a_replica_is_placed_by_the_engine_of_its_own_teacher(
    ray: FakeRay, raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two teachers, the second needs several nodes."""
    model = raw_config.pop("teacher")
    spread = {"distributed_executor_backend": "ray", "tensor_parallel_size": 2}
    small = {**model, "name": "small", "when": {"task": ["x"]}}
    raw_config["teachers"] = [small, {**model, "name": "large", "engine": spread}]
    raw_config["resources"] = {"teachers": {"large": {"num_gpus": 2}}}
    config, bundles = Config.model_validate(raw_config), dict[str, int]()

    class Groups(placement.Groups):
        def options(self) -> dict[str, Any]:
            bundles[name] = len(self._bundles)
            return {}

    monkeypatch.setattr(placement, "Groups", Groups)
    ray.script = lambda tick: work(ray)
    for name in ("small", "large"):
        ray.actors.clear()
        job = Job(config, "generate", "transform", 1, is_async=True, teacher=name)
        assert made(Replicas(job, None, is_there), NAMES[:1]) == NAMES[:1]
    assert bundles == {"small": 0, "large": 2}


@pytest.mark.parametrize("deadline", ["none", "far"])
def test_a_draining_node_ends_what_it_holds_and_gets_no_more(ray: FakeRay, job: Job, deadline: str) -> None:
    job.resources.__dict__["shards_in_flight"] = 2
    names = [f"{n:05d}.parquet" for n in range(12)]
    replicas, given = Replicas(job, None, is_there), dict[int, set[str]]()
    begin(job, f"{NAMES[0]}.0")

    def script(tick: int) -> None:
        if tick == 2:
            replicas.draining = {"node-0": 0.0 if deadline == "none" else time.time() + 1000}
        for number, actor in enumerate(ray.actors):
            actor.start(f"node-{number}")
            given.setdefault(number, set()).update(actor.given)
            for unit in [*actor.given]:
                if unit != NAMES[0] or tick > 20:
                    actor.finish(unit)

    ray.script = script
    results = made(replicas, names)
    assert sorted(results) == names
    assert results[-1] == NAMES[0]
    assert marks(job) == {f"{NAMES[0]}.0"}, "its worker, which ended it, sees to its mark"
    assert len(ray.actors) == 4, "one took its place"
    assert given[0] == {NAMES[0], NAMES[3]}


def test_what_a_draining_node_cannot_end_costs_no_attempt(ray: FakeRay, job: Job) -> None:
    """Neither of the shard nor of parts of it. What other shards have used up stays."""
    replicas = Replicas(job, None, is_there)
    given = []

    def script(tick: int) -> None:
        if tick == 1:
            for number, actor in enumerate(ray.actors):
                actor.start(f"node-{number}")
        if tick == 4:
            for mark in (f"{NAMES[0]}.0", f"{NAMES[0]}.1", f"{NAMES[0]}.0-4.0", f"{NAMES[1]}.0"):
                begin(job, mark)
            assert NAMES[0] in ray.actors[0].given
            replicas.draining = {"node-0": time.time() + ray_replicas.NOTICE_LEFT_S - 1}
        if tick > 4:
            given.append(NAMES[0] in ray.actors[0].given and ray.actors[0].is_killed)
            for actor in ray.actors[1:]:
                actor.start("node-9")
                for unit in [*actor.given]:
                    actor.finish(unit)

    ray.script = script
    assert sorted(made(replicas)) == NAMES
    assert given[0]
    assert marks(job) == {f"{NAMES[1]}.0"}


@pytest.mark.parametrize("part", ["", "@0-8"])
@pytest.mark.parametrize(
    ("preempted", "reason", "counts"),
    [(True, None, False), (False, 1, False), (False, 3, False), (False, 2, True), (False, None, True)],
    ids=["preempted", "ended", "drained", "lost", "alone"],
)
def test_only_a_death_with_a_node_that_was_to_leave_costs_no_attempt(
    ray: FakeRay,
    job: Job,
    preempted: bool,
    reason: int | None,
    counts: bool,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_replicas, "NEWS_S", 0.05)
    unit = f"{NAMES[0]}{part}"

    def script(tick: int) -> None:
        if tick == 1:
            for number, actor in enumerate(ray.actors):
                actor.start(f"node-{number}")
        if tick == 3:
            begin(job, f"{unit}.0")
            assert unit in ray.actors[0].given
            ray.actors[0].die(preempted=preempted)
        if tick == 5 and reason is not None:
            ray.dead_nodes = {"node-0": reason}
        if tick > 5:
            time.sleep(0.01)
            for actor in ray.actors[1:]:
                actor.start("node-9")
                for held in [*actor.given]:
                    actor.finish(held)

    ray.script = script
    assert sorted(made(Replicas(job, None, is_there), [unit, *NAMES[1:]])) == sorted([unit, *NAMES[1:]])
    assert marks(job) == ({f"{unit}.0"} if counts else set())


def test_a_replica_that_starts_on_a_draining_node_is_not_waited_for(ray: FakeRay, job: Job) -> None:
    replicas = Replicas(job, None, is_there)

    def script(tick: int) -> None:
        if tick == 1:
            replicas.nodes, replicas.draining = {ray.actors[0].name: "node-0"}, {"node-0": 0.0}
        if tick == 2:
            assert ray.actors[0].is_killed
            assert len(ray.actors) == 4
        if tick > 1:
            for actor in ray.actors[1:]:
                actor.start("node-9")
                for unit in [*actor.given]:
                    actor.finish(unit)

    ray.script = script
    assert sorted(made(replicas)) == NAMES


def test_workers_that_die_before_they_begin_end_the_run(ray: FakeRay, job: Job) -> None:
    def script(tick: int) -> None:
        for actor in ray.actors:
            if not actor.is_killed:
                actor.die()

    ray.script = script
    with pytest.raises(RunError, match="its workers died 10 times in a row before they had begun"):
        made(Replicas(job, None, is_there))


def test_an_error_ends_all_at_once(ray: FakeRay, job: Job) -> None:
    replicas = Replicas(job, None, is_there)
    ray.script = lambda tick: work(ray)
    next(replicas.results(NAMES))
    replicas.close(is_done=False)
    assert all(actor.is_killed and not actor.is_closed for actor in ray.actors)


def test_a_driver_whose_own_node_is_gone_does_not_wait_for_others(
    ray: FakeRay, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts no actor for it any more."""

    def is_gone() -> None:
        raise RunError("gone")

    monkeypatch.setattr(ray_replicas, "QUIET_S", 0.5)
    ray.script = lambda tick: time.sleep(0.01)
    with pytest.raises(RunError, match="gone"):
        made(Replicas(job, None, is_gone))
    assert ray.num_waits > 3, "it is asked for only where nothing comes"
