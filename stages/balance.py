"""Marks prompts of kinds that there are too many of, or gives them less weight.

How many there are is known of the whole data set only, so there are three steps: `Sketch` reads one shard, `assign`
counts and chooses, `mark` writes one shard's verdict. Sketches hold no text. Which rows of a kind are kept follows from
their ids: not from shards, order or machines.

Shape legend: R rows of all sketches, G groups.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.schemas import tables
from stillhouse.schemas.config import BalanceConfig, ConfigError, QuotaConfig
from stillhouse.schemas.lists import flat_lists
from stillhouse.stages.filters.quota import lot
from stillhouse.stages.kinds.lengths import length
from stillhouse.stages.kinds.tasks import task
from stillhouse.stages.kinds.topics import terms, topics

OVER = "over_quota"
"""Drop reason: enough prompts of its kind are kept."""
UNKNOWN = "unknown"
"""The language of a row that has none."""

SKETCH = pa.schema(
    [
        pa.field("prompt_id", pa.string()),
        # By which rows are put in order: BLAKE2b of the id.
        pa.field("lot", pa.uint64()),
        pa.field("language", pa.string()),
        pa.field("length", pa.string()),
        pa.field("task", pa.string()),
        # Hashes of its words; empty where no quota is by topic.
        pa.field("terms", pa.list_(pa.int32())),
    ]
)


def assignment_schema(config: BalanceConfig) -> pa.Schema:
    """The columns of what `assign` decides for each row. By the ids, `mark` refuses the assignment of another shard."""
    names = [name for name, by in (("prompt_task", "task"), ("prompt_topic", "topic")) if by in config.kinds]
    names += ["weight"] if config.over == "weight" else []
    curated = [field for field in tables.CURATED if field.name in names]
    return pa.schema([SKETCH.field("prompt_id"), *curated, tables.DROP_REASON])


class Sketch:
    """Turns a shard of screened prompts into their kinds: `SKETCH`, row for row. A row's language is the one that
    screen found, where it looked, else the source's; its task that of its first turn."""

    def __init__(self, config: BalanceConfig) -> None:
        self._kinds = config.kinds

    def __call__(self, table: pa.Table) -> pa.Table:
        ids, turns = table["prompt_id"].to_pylist(), table["user_turns"].to_pylist()
        language = table["prompt_language" if "prompt_language" in table.column_names else "language"]
        columns = [
            table["prompt_id"],
            pa.array([lot("balance", name) for name in ids], pa.uint64()),
            pc.fill_null(language, UNKNOWN),
            pa.array([length(of_row) for of_row in turns]),
            pa.array([task(of_row[0]) if "task" in self._kinds and of_row else None for of_row in turns]),
            pa.array([terms("\n".join(of_row)) if "topic" in self._kinds else [] for of_row in turns]),
        ]
        return pa.table([column.cast(field.type) for column, field in zip(columns, SKETCH, strict=True)], schema=SKETCH)


def assign(sketches: Iterable[pa.Table], config: BalanceConfig) -> list[pa.Table]:
    """Sketches of all shards in, a table of `assignment_schema(config)` per shard out, row for row, in the same order.

    The quotas apply one after the other, each to what those before it left. Raises `ConfigError` where a share is too
    small for the number of groups that there are. Memory: with topics about 1 kB per row, else 100 bytes.
    """
    shards = list(sketches)
    sketch = pa.concat_tables([SKETCH.empty_table(), *shards]).combine_chunks()
    order_R = np.argsort(sketch["lot"].to_numpy(), kind="stable")
    values = {kind: np.array(sketch[kind].to_pylist(), object) for kind in config.kinds if kind != "topic"}
    topic_R = np.full(sketch.num_rows, -1, np.int32)
    if "topic" in config.kinds:
        found = flat_lists(sketch["terms"])
        parts = np.split(found.values.to_numpy(), found.offsets.to_numpy()[1:-1]) if sketch.num_rows else []
        topic_R[order_R] = topics([parts[row] for row in order_R.tolist()], config.topics, config.seed)
        values["topic"] = topic_R.astype(object)

    weight_R = np.ones(sketch.num_rows)
    for number, quota in enumerate(config.quotas):
        group_R = _groups([values[kind] for kind in quota.by])
        mass_G = np.bincount(group_R, weights=weight_R, minlength=1).astype(np.float64)
        most = _most(mass_G, quota, f"balance.quotas[{number}]")
        if config.over == "weight":
            weight_R *= np.minimum(1.0, most / np.maximum(mass_G, 1e-9))[group_R]
        else:
            weight_R[_beyond(group_R, weight_R > 0, order_R, most)] = 0.0
    columns = {
        "prompt_id": sketch["prompt_id"],
        "prompt_task": sketch["task"],
        "prompt_topic": pa.array(topic_R, mask=topic_R < 0),
        "weight": pa.array(weight_R.astype(np.float32)),
        "drop_reason": pa.array([None if weight else OVER for weight in weight_R.tolist()], pa.string()),
    }
    schema = assignment_schema(config)
    assignment = pa.table([columns[name] for name in schema.names], schema=schema)
    ends = np.cumsum([shard.num_rows for shard in shards], dtype=np.int64)
    return [assignment.slice(end - shard.num_rows, shard.num_rows) for shard, end in zip(shards, ends, strict=True)]


def mark(table: pa.Table, assignment: pa.Table) -> pa.Table:
    """Appends a shard's assignment to it. Raises `ValueError` when that is another shard's."""
    if not assignment["prompt_id"].equals(table["prompt_id"]):
        raise ValueError(
            f"balance: the assignment of {assignment.num_rows} rows is not for this shard of {table.num_rows} rows; "
            "delete the assignments and run again"
        )
    for field in list(assignment.schema)[1:]:
        table = table.append_column(field, assignment[field.name])
    return table


def _groups(values: list[NDArray[np.object_]]) -> NDArray[np.int64]:
    """The number of each row's group [R]: of the values that it has together."""
    rows = list(zip(*(column.tolist() for column in values), strict=True))
    numbers = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    return np.array([numbers[row] for row in rows], np.int64)


def _most(mass_G: NDArray[np.float64], quota: QuotaConfig, where: str) -> float:
    """The most rows (or weight) that a group may have, infinite where none has more than it may.

    A share is of what is left in the end, so the limit c solves c = share x sum of min(mass, c): of the k largest
    groups cut to c and all others whole.
    """
    if quota.max_rows is not None:
        return float(quota.max_rows)
    share = quota.max_share
    assert share is not None
    mass = np.sort(mass_G[mass_G > 0])[::-1]
    if not len(mass) or mass[0] <= share * mass.sum() * (1 + 1e-9):
        return float(np.inf)
    for k in range(1, len(mass)):
        left = 1 - share * k
        if left > 0 and (found := share * mass[k:].sum() / left) >= mass[k] * (1 - 1e-9):
            return float(found)
    raise ConfigError(
        f"{where}: {len(mass)} groups of {' and '.join(quota.by)} cannot have at most {share:g} of the rows each; "
        "raise max_share, or set max_rows instead"
    )


def _beyond(
    group_R: NDArray[np.int64], is_left_R: NDArray[np.bool_], order_R: NDArray[np.int64], most: float
) -> NDArray[np.int64]:
    """The rows left that are not among the first `most`, and at least one, of their group in this order."""
    rows = order_R[is_left_R[order_R]]
    by_group = rows[np.argsort(group_R[rows], kind="stable")]
    groups = group_R[by_group]
    place = np.arange(len(groups)) - np.searchsorted(groups, groups)
    return np.asarray(by_group[(place >= 1) & (place + 1 > most * (1 + 1e-9))], np.int64)
