"""Writes down when each shard was made, where and in how many attempts, and meanwhile how far the run is.

In `state/`, for `stillhouse status` and for reports: published bytes know no time.
"""

import contextlib
import dataclasses
import functools
import json
import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from stillhouse.pipeline.errors import StorageError
from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.store import Folder
from stillhouse.pipeline.run.progress import Progress
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.tables import TIMELINE

ROWS_EVERY_S = 60.0
"""A run that is killed loses so much of its timeline."""
NOW_EVERY_S = 15.0
"""`look.status` knows that a run which goes on writes so often, and whenever a step begins."""


class Timeline:
    """A `Report` with two files of its own, which are put anew now and then. Writes nothing where nothing is made, and
    fails no run: one that cannot write says so at its next shard."""

    def __init__(self, run_dir: str, progress: Progress) -> None:
        self._run_dir, self._progress = run_dir, progress
        self._began = self._queued = datetime.now(UTC)
        run = f"{self._began:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        self._rows_key, self._now_key = f"{keys.TIMELINE}/{run}.parquet", f"{keys.NOW}/{run}.json"
        self._rows: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        """Rows that have been written: a tenth of the memory."""
        self._next_rows = self._next_now = time.monotonic()
        self._has_now = False
        self._writing = threading.Lock()

    @functools.cached_property
    def _folder(self) -> Folder:
        """Opened when there is something to write: by then the driver has found that the folder is the run's."""
        return open_folder(self._run_dir)

    def begin(self, step: str, num_shards: int | None, num_answers: int | None = None) -> None:
        self._queued = datetime.now(UTC)
        self._next_now = time.monotonic()

    def result(self, step: str, result: ShardResult) -> None:
        ended = datetime.now(UTC)
        facts = {name: value for name, value in dataclasses.asdict(result).items() if name in TIMELINE.names}
        self._rows.append(
            facts
            | {
                "filters": [{"filter": name, "seconds": took} for name, took in result.filter_seconds.items()],
                "step": "sketch" if step.endswith(": sketch") else "transform",
                "node": result.node or None,
                "worker": result.worker or None,
                "queued": self._queued,
                "started": ended - timedelta(seconds=result.seconds),
                "ended": ended,
            }
        )
        self._write_now_and_then()

    def activity(self, activity: Activity) -> None:
        self._write_now_and_then()

    def trouble(self, text: str) -> None:
        pass

    def close(self) -> None:
        """Writes the rest. What is left in `state/now/` is then of runs that go on or were killed."""
        with self._writing, contextlib.suppress(StorageError):
            if self._rows:
                self._write_rows()
            if self._has_now:
                self._folder.delete(self._now_key)

    def _write_now_and_then(self) -> None:
        now = time.monotonic()
        if now < min(self._next_now, self._next_rows) or not self._writing.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(StorageError):
                if now >= self._next_now:
                    self._next_now = now + NOW_EVERY_S
                    self._write_now()
                if now >= self._next_rows:
                    self._next_rows = now + ROWS_EVERY_S
                    if self._rows:
                        self._write_rows()
        finally:
            self._writing.release()

    def _write_now(self) -> None:
        if (snapshot := self._progress.snapshot()) is not None:
            self._has_now = True
            facts = {"began": self._began.isoformat(), "written": datetime.now(UTC).isoformat()}
            self._folder.put(self._now_key, json.dumps(facts | dataclasses.asdict(snapshot)).encode())

    def _write_rows(self) -> None:
        if number := len(self._rows):  # others may come meanwhile
            self._batches.append(pa.RecordBatch.from_pylist(self._rows[:number], schema=TIMELINE))
            del self._rows[:number]
        table = pa.Table.from_batches(self._batches, schema=TIMELINE).combine_chunks()
        self._batches = table.to_batches()
        self._folder.put(self._rows_key, shards.encode(table))
