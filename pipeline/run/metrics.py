"""What a run on a cluster tells Prometheus, by way of Ray, which exports each name as `ray_<name>`.

All of it is told by the driver, from what workers report to it. `deploy/grafana.json` is the dashboard of these names.
No label holds anything of a prompt.
"""

import threading
import time
from typing import Any

from stillhouse.pipeline.run.progress import Progress, new_tokens
from stillhouse.pipeline.run.result import Activity, ShardResult

SILENT_AFTER_S = 30.0
"""A worker that says nothing for so long is gone; what it was doing is then 0, where Prometheus would keep it."""
STEP_EVERY_S = 1.0

OF_WORKER = {
    "stillhouse_worker_shards": ("shards under way in a worker", "num_shards"),
    "stillhouse_worker_answers_done": ("answers that are done, of a worker's shards under way", "num_done"),
    "stillhouse_worker_answers_under_way": ("answers being written by a worker", "num_under_way"),
    "stillhouse_worker_requests_waiting": ("requests that a worker's engine has not begun", "num_waiting"),
    "stillhouse_worker_kv_cache_use": ("share of the key-value cache that is taken, 0 to 1", "kv_cache_use"),
    "stillhouse_worker_starting": ("1 while a worker loads its model", "is_starting"),
}
"""Gauges with the labels run, stage and worker: description, and the field of `Activity`."""

OF_STEP = {
    "stillhouse_step_shards": ("shards of the step under way", "num_shards"),
    "stillhouse_step_shards_done": ("shards of it that are done", "shards_done"),
    "stillhouse_step_answers": ("answers of the step under way", "num_answers"),
    "stillhouse_step_answers_done": ("answers of it that are done", "answers_done"),
    "stillhouse_step_answers_under_way": ("answers of it that are being written", "answers_under_way"),
    "stillhouse_step_workers": ("workers that have said something in it", "num_workers"),
    "stillhouse_step_seconds_left": ("estimate of how long it takes yet", "seconds_left"),
}
"""Gauges with the labels run and step: description, and the field of `Snapshot`."""

COUNTERS = {
    "stillhouse_tokens_total": ("tokens that a teacher has written", ("run", "stage", "worker")),
    "stillhouse_shards_total": ("shards by what became of them", ("run", "stage", "outcome")),
    "stillhouse_attempts_total": ("attempts at shards", ("run", "stage")),
    "stillhouse_rows_total": ("rows that went into shards", ("run", "stage")),
    "stillhouse_rows_dropped_total": ("rows dropped", ("run", "stage", "reason")),
}


class Metrics:
    """A `Report`. `run` is the label of that name; `gauge` and `counter` are Ray's classes, once Ray is started."""

    def __init__(self, run: str, progress: Progress, gauge: Any = None, counter: Any = None) -> None:
        self._run, self._progress = run, progress
        self._gauge, self._counter = gauge, counter
        self._made: dict[str, Any] = {}
        self._workers: dict[tuple[str, str], tuple[Activity, float]] = {}
        self._step, self._next_step = "", 0.0
        self._lock = threading.Lock()  # results and activities come from two threads

    def begin(self, step: str, num_shards: int | None, num_answers: int | None = None) -> None:
        with self._lock:
            for worker in [*self._workers]:
                self._forget(*worker)
            if self._step:  # is over
                for name in OF_STEP:
                    self._set(name, 0, step=self._step)
            self._step = ""

    def result(self, step: str, result: ShardResult) -> None:
        with self._lock:
            if result.outcome != "others":  # the other run counts them
                self._count("stillhouse_attempts_total", result.attempts, stage=result.stage)
            if result.outcome == "part":  # its shard counts the rows
                return
            if result.outcome != "others":
                self._count("stillhouse_rows_total", result.rows_in, stage=result.stage)
                for reason, rows in result.dropped.items():
                    self._count("stillhouse_rows_dropped_total", rows, stage=result.stage, reason=reason)
            self._count("stillhouse_shards_total", 1, stage=result.stage, outcome=result.outcome)
            self._tell_step()

    def activity(self, activity: Activity) -> None:
        if not activity.worker:
            return
        labels, now = {"stage": activity.stage, "worker": activity.worker}, time.monotonic()
        key = (activity.stage, activity.worker)
        with self._lock:
            if activity.has_ended:
                self._forget(*key)
                return
            before, _ = self._workers.get(key, (None, 0.0))
            self._workers[key] = activity, now
            for name, (_, field) in OF_WORKER.items():
                self._set(name, getattr(activity, field), **labels)
            self._count("stillhouse_tokens_total", new_tokens(before, activity), **labels)
            for worker, (_, heard) in [*self._workers.items()]:
                if now - heard > SILENT_AFTER_S:
                    self._forget(*worker)
            self._tell_step()

    def trouble(self, text: str) -> None:
        pass

    def _tell_step(self) -> None:
        now = time.monotonic()
        snapshot = self._progress.snapshot()
        if snapshot is None or (snapshot.step == self._step and now < self._next_step):
            return
        self._step, self._next_step = snapshot.step, now + STEP_EVERY_S
        for name, (_, field) in OF_STEP.items():
            self._set(name, getattr(snapshot, field) or 0, step=snapshot.step)

    def _forget(self, stage: str, worker: str) -> None:
        """Sets what a worker was doing to 0."""
        self._workers.pop((stage, worker), None)
        for name in OF_WORKER:
            self._set(name, 0, stage=stage, worker=worker)

    def _set(self, name: str, value: float, **labels: str) -> None:
        if name not in self._made:
            description = {**OF_WORKER, **OF_STEP}[name][0]
            self._made[name] = self._classes()[0](name, description, ("run", *labels))
        self._made[name].set(float(value), {"run": self._run, **labels})

    def _count(self, name: str, by: float, **labels: str) -> None:
        if not by:  # Ray refuses to count nothing
            return
        if name not in self._made:
            self._made[name] = self._classes()[1](name, *COUNTERS[name])
        self._made[name].inc(by, {"run": self._run, **labels})

    def _classes(self) -> tuple[Any, Any]:
        """Not before a worker has said something: Ray runs by then."""
        if self._gauge is None:
            from ray.util.metrics import Counter, Gauge

            self._gauge, self._counter = Gauge, Counter
        return self._gauge, self._counter
