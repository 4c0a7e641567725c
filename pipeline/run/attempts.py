"""Attempts at a shard, counted so that one in which its process dies counts as well.

Each attempt writes an empty file, a mark, and removes it at the end. Marks are named by the run: a counter that
outlived the driver would set healthy shards aside after a few unlucky kills of the whole job.
"""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Iterator

from stillhouse.pipeline.errors import StageError, StorageError
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder.store import Folder
from stillhouse.pipeline.run import sharing


class Attempts:
    """The marks of one step of a stage in one run."""

    def __init__(self, folder: Folder, run_id: str, stage: str, step: str, limit: int) -> None:
        self._folder = folder
        self._marks = keys.attempts(run_id)
        self._stage, self._step = stage, step
        self.limit = limit

    def mark(self, shard: str, attempt: str) -> str:
        """The key of a mark."""
        return f"{self._marks}/{self._stage}.{self._step}.{shard}.{attempt}"

    def num_made(self, shard: str) -> int:
        """Attempts at a shard that were begun and did not end."""
        marks = (self.mark(shard, str(n)) for n in range(self.limit))
        return len(list(itertools.takewhile(self._folder.exists, marks)))

    def of_parts(self, shard: str) -> set[str]:
        """The attempts at parts of a shard that were begun and did not end, such as 0-10.1."""
        prefix = keys.name(self.mark(shard, ""))
        names = (name.removeprefix(prefix) for name in self._folder.list(self._marks) if name.startswith(prefix))
        return {name for name in names if "-" in name}

    def begin(self, shard: str, attempt: str) -> None:
        self._folder.put_if_absent(self.mark(shard, attempt), b"")

    def end(self, shard: str, attempt: str) -> None:
        self._folder.delete(self.mark(shard, attempt))

    def cancel(self, shard: str, attempt: str) -> None:
        """Takes back an attempt that failed for no fault of the shard."""
        with contextlib.suppress(StorageError):  # the run ends with the first one; its marks count in no other run
            self.end(shard, attempt)

    def forgive(self, unit: str) -> None:
        """Takes back all attempts at a shard or piece of one whose worker's node left: what the worker did when it was
        told to end says nothing of the shard. Those at parts of it too: which one was under way is not known."""
        for attempt in range(self.limit):
            self.cancel(unit, str(attempt))
        shard, _ = sharing.parsed(unit)
        for mark in self.of_parts(shard):
            self.cancel(shard, mark)

    @contextlib.contextmanager
    def start(self, max_workers: int) -> Iterator[None]:
        """Counts starts of a worker that end in the death of its process, which a pool would repeat for ever (an engine
        that takes all memory, say). Raises `StageError` when it is always so; any start that succeeds clears the
        count."""
        prefix = f"{self._stage}.{self._step}.start."
        begun = [name for name in self._folder.list(self._marks) if name.startswith(prefix)]
        if len(begun) >= self.limit + max_workers:  # so many may be starting now
            raise StageError(
                f"{self._stage}: its workers died {len(begun)} times in a row while starting; see Ray's logs for why "
                "(memory?), then run again"
            )
        mark = f"{self._marks}/{prefix}{secrets.token_hex(4)}"
        self._folder.put_if_absent(mark, b"")
        try:
            yield
        except Exception:
            with contextlib.suppress(StorageError):
                self._folder.delete(mark)  # it has a reason, which ends the run
            raise
        for name in [*begun, keys.name(mark)]:
            self._folder.delete(f"{self._marks}/{name}")


class Gate:
    """Readers-writer lock: first attempts run concurrently, retries run alone.

    A shard that takes its worker down takes the shards beside it along. Tried again it runs alone, so that only the
    guilty one uses up its attempts.
    """

    def __init__(self) -> None:
        self._changed, self._num_inside, self._is_alone = asyncio.Condition(), 0, False

    @contextlib.asynccontextmanager
    async def __call__(self, *, alone: bool) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_alone and not (alone and self._num_inside))
            self._num_inside, self._is_alone = self._num_inside + 1, alone
        try:
            yield
        finally:
            async with self._changed:
                self._num_inside, self._is_alone = self._num_inside - 1, False
                self._changed.notify_all()
