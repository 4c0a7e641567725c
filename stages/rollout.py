"""rollout: a student answers each prompt, and its answers go to the teacher as they are.

Writing is the work of `generate`, with the student in the teacher's place; this makes given answers of it, for `score`.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import numpy as np
import pyarrow as pa

from stillhouse.schemas import tables
from stillhouse.stages.teacher import Load
from stillhouse.stages.teacher.conversing import Progress


class Writer(Protocol):
    """What writes: prompts in, as many completions of each out, in order."""

    @property
    def __call__(self) -> Callable[[pa.Table], Awaitable[pa.Table]]: ...
    @property
    def broken(self) -> bool: ...
    @property
    def load(self) -> Load: ...
    def progress(self) -> Progress: ...
    def close(self) -> None: ...


class Rollout:
    """Prompts in, a row for each answer out: the prompt's columns, `GIVEN` and `ROLLED_OUT` (`schemas.tables`).

    Drop reasons are those of `generate`.
    """

    def __init__(self, writer: Writer, *, asks_top_k: bool) -> None:
        """`asks_top_k`: whether the teacher is asked about the ids that the student finds most probable."""
        self._writer, self._asks_top_k = writer, asks_top_k

    @property
    def broken(self) -> bool:
        """Whether the student's engine has failed for good: only a new process helps."""
        return self._writer.broken

    @property
    def load(self) -> Load:
        """How full the student's engine is."""
        return self._writer.load

    def progress(self) -> Progress:
        """How far the stage is; may be called from another thread."""
        return self._writer.progress()

    def close(self) -> None:
        """End the student's engine."""
        self._writer.close()

    async def __call__(self, prompts: pa.Table) -> pa.Table:
        return as_given(prompts, await self._writer(prompts), asks_top_k=self._asks_top_k)


def as_given(prompts: pa.Table, written: pa.Table, *, asks_top_k: bool) -> pa.Table:
    """`prompts` with the answers that `written` has, equally many of each. Of questions only those stay that have an
    answer."""
    samples = written.num_rows // max(prompts.num_rows, 1)
    table = prompts.take(pa.array(np.repeat(np.arange(prompts.num_rows), samples)))
    messages = written.column("messages").to_pylist()
    said = {
        role: pa.array(
            [[message["content"] for message in row if message["role"] == role] for row in messages],
            pa.list_(pa.string()),
        )
        for role in ("user", "assistant")
    }
    place = table.column_names.index("user_turns")
    table = table.set_column(place, table.schema.field(place), said["user"])
    columns = {
        "answers": said["assistant"],
        "given_ids": written.column("input_ids"),
        "given_labels": written.column("labels"),
        "asked_ids": written.column("target_ids") if asks_top_k else pa.nulls(table.num_rows, pa.list_(pa.int32())),
        "student_logprobs": written.column("token_logprobs"),
        **{name: written.column(name) for name in (*tables.ROLLED_OUT.names, "drop_reason")},
    }
    for field in [*tables.GIVEN, *tables.ROLLED_OUT, tables.DROP_REASON]:
        table = table.append_column(field, columns[field.name])
    return table
