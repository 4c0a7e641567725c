"""Work on many files, several at once, each in a process of its own."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from stillhouse.schemas.arrow import keep_pandas_out

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None
) -> Iterator[Result]:
    """`function` of each item, in order, in `num_workers` processes (by default one for each core)."""
    num_workers = min(num_workers or os.cpu_count() or 1, len(items))
    if num_workers <= 1:
        yield from map(function, items)
        return
    # A fork would take the parent's threads' locks along.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, keep_pandas_out) as pool:
        try:
            yield from pool.map(function, items)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
