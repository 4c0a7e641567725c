"""Work on many files, several at once, each in a process of its own."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from stillhouse.pipeline import in_order
from stillhouse.pipeline.errors import ShardError
from stillhouse.schemas.config import ConfigError, WorkersConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

ATTEMPTS = 3
"""So often a file is tried whose process dies."""


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None
) -> Iterator[Result]:
    """`function` of each item, in order, in `num_workers` processes (by default one for each core)."""
    num_workers = min(num_workers or os.cpu_count() or 1, len(items))
    if num_workers <= 1:
        yield from map(function, items)
        return
    workers = WorkersConfig(max_workers=num_workers, num_cpus=0)  # no matter how many cores there are
    tried = functools.partial(_tried, function)
    for result in in_order.in_processes(tried, zip(items, strict=True), workers, ATTEMPTS):
        if isinstance(result, ConfigError | ShardError):
            raise result
        yield result


def _tried(function: Callable[[Item], Result], item: Item) -> Result | ConfigError | ShardError:
    """The result, or an error that callers tell from others."""
    try:
        return function(item)
    except (ConfigError, ShardError) as error:
        return error
