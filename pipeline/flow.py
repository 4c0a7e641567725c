"""What a run does, in order: the list of stages, read from top to bottom.

A stage maps a table to a table, row for row, and marks rows it gives up in `drop_reason`. A stage that needs a view of
the whole data set has two steps before that: `sketch` (per shard, small) and `assign` (once, over all sketches), whose
per-shard result is its second argument.

Imports of models, engines and libraries happen inside the builders, which run in the workers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stillhouse.schemas.config import Config

Transform = Callable[..., Any]
"""(table) or (table, assignment) -> table, or an awaitable of one."""


@dataclass(frozen=True)
class Stage:
    name: str
    build: Callable[[Config], Transform]
    sketch: Callable[[Config], Transform] | None = None
    assign: Callable[[Iterable[pa.Table], Config], list[pa.Table]] | None = None
    sketch_columns: tuple[str, ...] | None = None
    """What the sketch reads of the shards before it; None is every column."""
    is_async: bool = False
    """Its transform is a coroutine and one worker runs several shards at once."""


def _dedupe(config: Config) -> Transform:
    from stillhouse.stages.dedupe import mark

    return mark


def _dedupe_sketch(config: Config) -> Transform:
    from stillhouse.stages.dedupe import Sketch

    return Sketch(config.dedupe)


def _dedupe_assign(sketches: Iterable[pa.Table], config: Config) -> list[pa.Table]:
    from stillhouse.stages.dedupe import assign

    return assign(sketches, config.dedupe)


def _screen(config: Config) -> Transform:
    from stillhouse.stages.screen import Screen

    return Screen(config.screen)


def _generate(config: Config) -> Transform:
    from stillhouse.stages.teacher.watchdog import Watchdog
    from stillhouse.stages.teacher.chat import load_chat
    from stillhouse.stages.generate import Generate
    from stillhouse.stages.teacher import load_teacher

    chat = load_chat(config)
    teacher = load_teacher(config, chat.end_of_turn_ids())
    return Generate(config, chat, Watchdog(teacher, config.teacher.stall_timeout_s))


def _review(config: Config) -> Transform:
    from stillhouse.stages.review import Review

    return Review(config.review, config.screen.classifiers)


def _review_sketch(config: Config) -> Transform:
    from stillhouse.stages.review import Sketch

    return Sketch(config.review)


def _review_assign(sketches: Iterable[pa.Table], config: Config) -> list[pa.Table]:
    from stillhouse.stages.review import assign

    return assign(sketches, config.review)


STAGES = (
    # ingest, before these, reads the source and fixes the shards; publish, after them, publishes what is left.
    Stage("dedupe", _dedupe, sketch=_dedupe_sketch, assign=_dedupe_assign),
    Stage("screen", _screen),
    Stage("generate", _generate, is_async=True),
    Stage("review", _review, sketch=_review_sketch, assign=_review_assign, sketch_columns=("sample_id", "messages")),
)
NAMES = ("ingest", *(stage.name for stage in STAGES), "publish")


def previous(name: str) -> str:
    """The stage whose shards `name` reads."""
    return NAMES[NAMES.index(name) - 1]
