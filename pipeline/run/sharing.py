"""In which order the shards of a step are made, and which of them several workers share, so that the last one does not
keep all the others waiting."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from stillhouse.pipeline.folder.index import ShardSummary

MIN_PIECE_ROWS = 8
"""Source rows of a piece, at least: an engine wants several at once."""
_PART = re.compile(r"([0-9]+)\.([0-9]+)-([0-9]+)\.(?:parquet|failed)")


def unit(shard: str, low: int, high: int) -> str:
    """The name of a piece: rows `low` to `high` of what a shard is made from."""
    return f"{shard}@{low}-{high}"


def parsed(unit: str) -> tuple[str, tuple[int, int] | None]:
    """The shard of a unit, and its rows where it is a piece."""
    shard, _, extent = unit.partition("@")
    if not extent:
        return shard, None
    low, _, high = extent.partition("-")
    return shard, (int(low), int(high))


def by_cost(shards: Sequence[str], costs: Mapping[str, float], max_workers: int) -> list[str]:
    """The dearest first, so that what is left at the end is small. One worker needs no order."""
    return sorted(shards, key=lambda name: -costs[name]) if max_workers > 1 else [*shards]


def answer_cost(summary: ShardSummary) -> float:
    """What is known of the work to answer a screened shard, before it is done: how many answers it needs. How long they
    get is not known."""
    return max(summary.num_turns, summary.rows_out)


def shared(
    shards: Sequence[str],
    ready: Mapping[str, ShardSummary],
    num_workers: int,
    shards_in_flight: int,
    begun: Collection[str] = (),
    extents: Mapping[str, tuple[int, int]] | None = None,
) -> list[str]:
    """Names of what is given to workers, in this order: whole shards, and at the end pieces of them.

    A unit is at most half of the work that is left when it is given out, divided by what all workers hold at once
    (factoring, Hummel, Schonberg and Flynn 1992: half, because how long answers get is not known before). So units get
    smaller towards the end, and a shard that alone is more than that is shared from the beginning. Pieces are halves of
    halves, as those of `parts`. Shards that were `begun` by an earlier run are shared, because some pieces are there.
    With `extents` only these rows of each shard are to be made, and all units are pieces (but of a shard without rows).
    """
    whole = {name: (0, ready[name].rows_out) for name in shards} if extents is None else extents
    share = {name: (whole[name][1] - whole[name][0]) / max(ready[name].rows_out, 1) for name in shards}
    costs = {name: answer_cost(ready[name]) * share[name] for name in shards}
    num_held, left = num_workers * shards_in_flight, sum(costs.values())
    units = []
    for name in by_cost(shards, costs, num_workers):
        low, high = whole[name]
        rows, depth = high - low, 0
        while (
            num_workers > 1 and rows >> (depth + 1) >= MIN_PIECE_ROWS and costs[name] / 2**depth > left / 2 / num_held
        ):
            depth += 1
        if num_workers > 1 and name in begun and rows > 1:
            depth = max(depth, 1)
        is_piece = depth or (extents is not None and rows)
        units += [unit(name, *rows_of) for rows_of in halves(low, high, depth)] if is_piece else [name]
        left -= costs[name]
    return units


def halves(low: int, high: int, depth: int) -> list[tuple[int, int]]:
    """The rows `low` to `high`, halved `depth` times."""
    if depth == 0:
        return [(low, high)]
    middle = (low + high) // 2
    return halves(low, middle, depth - 1) + halves(middle, high, depth - 1)


def by_shard(names: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
    """Which rows the parts of shards hold, by the names of their files; others are nobody's."""
    found: dict[str, list[tuple[int, int]]] = {}
    for name in names:
        if part := _PART.fullmatch(name):
            found.setdefault(f"{part[1]}.parquet", []).append((int(part[2]), int(part[3])))
    return found


def missing(parts: Collection[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    """Which of the rows `low` to `high` are in none of `parts`, as the fewest halves of halves. (Where parts are no
    such halves of these, as those of several teachers are none of a shard, what is told may hold more; it is empty
    where nothing is missing, and only there.)"""
    if _covers(parts, low, high):
        return []
    if not any(low <= begin and end <= high for begin, end in parts):
        return [(low, high)]
    middle = (low + high) // 2
    return missing(parts, low, middle) + missing(parts, middle, high)


def _covers(parts: Collection[tuple[int, int]], low: int, high: int) -> bool:
    """Whether the rows `low` to `high` are all in some of `parts`."""
    for begin, end in sorted(parts):
        if begin <= low < end:
            low = end
    return low >= high
