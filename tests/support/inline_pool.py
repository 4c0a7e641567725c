"""A pool in this very process: for tests that count calls, break them, or die at one. And a report that is kept."""

from typing import Any

from examples.on_policy.in_process import InProcessPool
from stillhouse.pipeline.run import driver
from stillhouse.pipeline.run.progress import Report, Reports
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.config import Config

InlinePool = InProcessPool


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
