"""A run with several teachers: each has an engine of its own, and shards hold rows of all of them.

Inside of the teacher's stage the rows of a shard are ordered by teacher, so that those of one are a piece of it, such
as workers share (`run.sharing`). Teachers take turns; each makes its pieces of all shards, and who makes the last piece
of a shard puts it together, in the order of the source.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from stillhouse.pipeline.folder.index import ShardSummary
from stillhouse.pipeline.folder.shard import Shard
from stillhouse.pipeline.run.sharing import missing
from stillhouse.schemas.tables import TEACHER

PLACE = pa.field("place", pa.int64())
"""Where a row of a grouped table was before."""


def grouped(source: Shard, names: Sequence[str]) -> Shard:
    """`source` with its rows ordered by teacher, as `names` are, those of one in their order; and where they were."""
    codes = np.array([names.index(name) for name in source.table.column(TEACHER.name).to_pylist()], np.int64)
    places = pa.array(np.argsort(codes, kind="stable"), PLACE.type)
    return replace(source, table=source.table.take(places).append_column(PLACE, places))


def in_order(made: pa.Table, source: pa.Table, samples: int) -> pa.Table:
    """What was made of a grouped `source`, `samples` rows for each of its own, in the order before that."""
    places = source.column(PLACE.name).to_numpy()
    rows = np.argsort(places)[:, None] * samples + np.arange(samples)
    return made.take(pa.array(rows.ravel(), pa.int64())).combine_chunks()


def extents(summary: ShardSummary, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Which rows of a grouped shard are whose, in order; teachers without rows are left out."""
    found, low = {}, 0
    for name in names:
        if count := summary.teachers.get(name, {}).get("rows", 0):
            found[name] = (low, low + count)
            low += count
    return found


def turns(
    teacher: str,
    names: Sequence[str],
    ready: Mapping[str, ShardSummary],
    parts: Mapping[str, Collection[tuple[int, int]]],
) -> dict[str, tuple[int, int]]:
    """What `teacher` has to do of the shards `ready`, by their names: its rows, unless an earlier run has made all of
    them (`parts`, by shard). Whose turn comes last in a shard gets it in any case, because somebody puts it together;
    a shard without rows is the first teacher's."""
    found = {}
    for shard, summary in ready.items():
        of_shard = extents(summary, names) or {names[0]: (0, 0)}
        if teacher not in of_shard:
            continue
        low, high = of_shard[teacher]
        if teacher == [*of_shard][-1] or missing(parts.get(shard, ()), low, high):
            found[shard] = (low, high)
    return found
