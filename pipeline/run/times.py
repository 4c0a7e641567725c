"""Writes down how long shards took, for the report: in `state/times/`, because published bytes know no time."""

import contextlib
import json
import secrets
import threading
import time
from datetime import UTC, datetime
from typing import Any

from stillhouse.pipeline.errors import StorageError
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder.store import Folder
from stillhouse.pipeline.run.progress import Report
from stillhouse.pipeline.run.result import Activity, ShardResult

WRITE_EVERY_S = 60.0
"""A run that is killed loses so much of what it knew."""


class Times:
    """`Report` that passes everything on to another one, and keeps what shards took. Writes nothing where nothing is
    made, and fails no run."""

    def __init__(self, folder: Folder, report: Report) -> None:
        self._folder, self._report = folder, report
        now = datetime.now(UTC)
        self._key = f"{keys.TIMES}/{now:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}.json"
        self._began, self._last_write = time.monotonic(), time.monotonic()
        self._facts: dict[str, Any] = {"began": now.isoformat(timespec="seconds"), "steps": [], "shards": []}
        self._workers: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def begin(self, step: str, num_shards: int | None, num_answers: int | None = None) -> None:
        if num_shards != 0:
            self._facts["steps"].append([step, self._now()])
        self._report.begin(step, num_shards, num_answers)

    def result(self, step: str, result: ShardResult) -> None:
        if result.outcome in ("written", "set_aside"):
            self._facts["shards"].append(
                [step, result.shard, self._now(), round(result.seconds, 3), result.rows_in, result.num_target_tokens,
                 result.attempts, result.outcome == "written"]
            )  # fmt: skip
        self._report.result(step, result)
        if time.monotonic() - self._last_write > WRITE_EVERY_S:
            self.write()

    def activity(self, activity: Activity) -> None:
        if activity.worker:
            with self._lock:
                self._workers.setdefault(activity.stage, set()).add(activity.worker)
        self._report.activity(activity)

    def trouble(self, text: str) -> None:
        self._report.trouble(text)

    def write(self) -> None:
        """Writes what is known so far, if the storage lets it."""
        if not self._facts["shards"]:
            return
        self._last_write = time.monotonic()
        with self._lock:
            workers = {stage: len(names) for stage, names in self._workers.items()}
        facts = self._facts | {"seconds": self._now(), "workers": workers}
        with contextlib.suppress(StorageError):  # a run that cannot write says so at its next shard
            self._folder.put(self._key, json.dumps(facts).encode())

    def _now(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self._began, 3)
