"""A pool in this very process: for tests that count calls, break them, or die at one. And a report that is kept."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stillhouse.pipeline.run import driver
from stillhouse.pipeline.run.pool import Job, Task
from stillhouse.pipeline.run.progress import Report, Reports
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.config import Config


class InlinePool:
    """Shards and tasks one after the other; errors come as they are."""

    def require(self, config: Config, stages: Sequence[str]) -> list[str]:
        return []

    def map_shards(
        self, job: Job, shards: Sequence[str], on_activity: Callable[[Activity], None]
    ) -> Iterator[ShardResult]:
        worker = job.build()
        for shard in shards:
            yield asyncio.run(worker.process(shard))

    def run_task(self, config: Config, stage: str, task: Task, *arguments: Any) -> Iterator[ShardResult]:
        yield from task(config, *arguments)

    def close(self, error: BaseException | None = None) -> None:
        pass


class Kept:
    """A `Report` whose messages of trouble are kept."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[tuple[str, int | None]] = []

    def begin(self, step: str, num_shards: int | None, num_answers: int | None = None) -> None:
        self.steps.append((step, num_shards))

    def result(self, step: str, result: ShardResult) -> None:
        if result.message:
            self.messages.append(result.message)

    def activity(self, activity: Activity) -> None:
        pass

    def trouble(self, text: str) -> None:
        self.messages.append(text)


def run_inline(config: Config, *told: Report) -> tuple[dict[str, Any], str]:
    """A run in this process, of which others are `told`: its manifest, and what it reported of trouble on the way."""
    report = Kept()
    return driver.run(config, Reports(report, *told), InlinePool()), "\n".join(report.messages)
