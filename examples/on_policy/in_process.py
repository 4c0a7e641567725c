"""A run in this very process: no worker is started, which for rounds of seconds would be most of the time."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stillhouse.pipeline.run import driver
from stillhouse.pipeline.run.pool import Job, Task
from stillhouse.pipeline.run.progress import Reports
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.config import Config


class InProcessPool:
    """Shards and tasks one after the other; errors come as they are."""

    in_order = None

    def require(self, config: Config, stages: Sequence[str]) -> list[str]:
        return []

    def map_shards(
        self, job: Job, shards: Sequence[str], on_activity: Callable[[Activity], None]
    ) -> Iterator[ShardResult]:
        worker = job.build()
        for shard in shards:
            yield asyncio.run(worker.process(shard))
        worker.close()

    def run_task(self, config: Config, stage: str, task: Task, *arguments: Any) -> Iterator[ShardResult]:
        yield from task(config, *arguments)

    def close(self, error: BaseException | None = None) -> None:
        pass


def run(config: Config) -> dict[str, Any]:
    """The manifest of a finished run."""
    return driver.run(config, Reports(), InProcessPool())
