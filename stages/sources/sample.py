"""Rows drawn from a whole source, in one pass over it."""

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from stillhouse.stages.sources.row import Row


def draw(rows: Iterable[tuple[int, Row]], num_rows: int, seed: int) -> Iterator[tuple[int, Row]]:
    """`num_rows` of the numbered `rows`, in their order, each set of so many as likely as any other; all of them where
    there are fewer. Memory holds `num_rows` rows.

    A row has a lot by its number and the seed, and the lowest lots win: the same rows in every run, and those of a
    smaller sample are in every larger one.
    """
    drawn: list[tuple[int, int, Row]] = []  # a heap whose first has the highest lot; lots are negative
    for number, row in rows:
        lot = -int.from_bytes(blake2b(f"{seed}/sample/{number}".encode(), digest_size=8).digest())
        if len(drawn) < num_rows:
            heapq.heappush(drawn, (lot, number, row))
        elif lot > drawn[0][0]:
            heapq.heapreplace(drawn, (lot, number, row))
    yield from sorted(((number, row) for _, number, row in drawn), key=lambda pair: pair[0])
