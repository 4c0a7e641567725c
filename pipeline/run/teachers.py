"""A run with several teachers: each has an engine of its own, and shards hold rows of all of them.

Inside of the teacher's stage the rows of a shard are ordered by teacher, so that those of one are a piece of it, such
as workers share (`run.sharing`). Teachers take turns; each makes its pieces of all shards, and who makes the last piece
of a shard puts it together, in the order of the source.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from stillhouse.pipeline.folder.index import ShardSummary
from stillhouse.pipeline.folder.shard import Shard
from stillhouse.pipeline.run.sharing import missing
from stillhouse.schemas.config import Config
from stillhouse.schemas.tables import TEACHER
from stillhouse.stages.teacher.mixture import average

PLACE = pa.field("place", pa.int64())
"""Where a row of a grouped table was before."""


def grouped(source: Shard, config: Config) -> Shard:
    """`source` with its rows ordered by teacher, as `teachers` are, those of one in their order; and where they were.
    In a mixture with all of its rows for each teacher."""
    num_rows = source.table.num_rows
    if config.has_rules:
        names = config.teacher_names
        codes = np.array([names.index(name) for name in source.table.column(TEACHER.name).to_pylist()], np.int64)
        order = np.argsort(codes, kind="stable")
    else:
        order = np.tile(np.arange(num_rows), len(config.teacher_names))
    places = pa.array(order, PLACE.type)
    return replace(source, table=source.table.take(places).append_column(PLACE, places))


def in_order(made: pa.Table, source: pa.Table, config: Config) -> pa.Table:
    """What was made of a grouped `source`, `sampling.n` rows for each of its own, in the order before that; of a
    mixture one row for each that there was before."""
    if not config.has_rules:
        num_rows = made.num_rows // len(config.teacher_names)
        return average([made.slice(i * num_rows, num_rows) for i in range(len(config.teacher_names))])
    samples, places = config.sampling.n, source.column(PLACE.name).to_numpy()
    rows = np.argsort(places)[:, None] * samples + np.arange(samples)
    return made.take(pa.array(rows.ravel(), pa.int64())).combine_chunks()


def extents(summary: ShardSummary, config: Config) -> dict[str, tuple[int, int]]:
    """Which rows of a grouped shard are whose, in order; teachers without rows are left out."""
    found, low = {}, 0
    for name in config.teacher_names:
        count = summary.teachers.get(name, {}).get("rows", 0) if config.has_rules else summary.rows_out
        if count:
            found[name] = (low, low + count)
            low += count
    return found


def turns(
    teacher: str,
    config: Config,
    ready: Mapping[str, ShardSummary],
    parts: Mapping[str, Collection[tuple[int, int]]],
) -> dict[str, tuple[int, int]]:
    """What `teacher` has to do of the shards `ready`, by their names: its rows, unless an earlier run has made all of
    them (`parts`, by shard). Whose turn comes last in a shard gets it in any case, because somebody puts it together;
    a shard without rows is the first teacher's."""
    found = {}
    for shard, summary in ready.items():
        of_shard = extents(summary, config) or {config.teacher_names[0]: (0, 0)}
        if teacher not in of_shard:
            continue
        low, high = of_shard[teacher]
        if teacher == [*of_shard][-1] or missing(parts.get(shard, ()), low, high):
            found[shard] = (low, high)
    return found
