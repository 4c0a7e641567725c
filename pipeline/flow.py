"""What a run does, in order: the list of stages, read from top to bottom.

A stage maps a table to a table, row for row, and marks rows it gives up in `drop_reason`. A stage that needs a view of
the whole data set has two steps before that: `sketch` (per shard, small) and `assign` (once, over all sketches), whose
per-shard result is its second argument.

Imports of models, engines and libraries happen inside the builders, which run in the workers.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stillhouse.pipeline.folder.identity import run_date
from stillhouse.schemas.config import Config, ConfigError, EvaluationConfig, MatchesConfig

if TYPE_CHECKING:
    from stillhouse.stages.generate import Generate
    from stillhouse.stages.teacher import Teacher
    from stillhouse.stages.teacher.chat import Chat
    from stillhouse.stages.teacher.watchdog import Watchdog

Transform = Callable[..., Any]
"""(table) or (table, assignment) -> table, or an awaitable of one. Of ingest: rows of the source -> tables."""


@dataclass(frozen=True)
class Stage:
    name: str
    build: Callable[[Config], Transform]
    sketch: Callable[[Config], Transform] | None = None
    assign: Callable[[Iterable[pa.Table], Config], Iterable[pa.Table]] | None = None
    sketch_columns: tuple[str, ...] | None = None
    """What the sketch reads of the shards before it; None is every column."""
    is_async: bool = False
    """Its transform is a coroutine and one worker runs several shards at once."""
    follows_answers: bool = False
    """Its shards are made from the teacher's answers: they are made again when those are. Before these that is not
    asked: what is made again there holds the same rows, and answers are too dear to be lost to a difference in how they
    are written."""


def of(config: Config) -> tuple[Stage, ...]:
    """The stages of a run, in order."""
    rollout = () if config.rollout is None else (Stage("rollout", _rollout, is_async=True),)
    balance = Stage("balance", _balance, sketch=_balance_sketch, assign=_balance_assign)  # only where there are quotas
    return (
        Stage("ingest", _ingest),  # reads the source and fixes the shards
        Stage("dedupe", _dedupe, sketch=_dedupe_sketch, assign=_dedupe_assign),
        Stage("screen", _screen),
        *([] if config.balance is None else [balance]),
        *rollout,
        Stage(config.task, _score if config.task == "score" else generate, is_async=True),
        Stage(
            "review",
            _review,
            sketch=_review_sketch,
            assign=_review_assign,
            sketch_columns=("sample_id", "messages"),
            follows_answers=True,
        ),
        Stage("publish", _publish, follows_answers=True),
    )


def stage(config: Config, name: str) -> Stage:
    return next(stage for stage in of(config) if stage.name == name)


def previous(config: Config, name: str) -> str:
    """The stage whose shards `name` reads."""
    names = [stage.name for stage in of(config)]
    return names[names.index(name) - 1]


def require_end(config: Config, until: str) -> None:
    """Raises `ConfigError` where a run cannot stop after the stage `until`, because it is the last or there is none."""
    names = [stage.name for stage in of(config)[:-1]]
    if until not in names:
        raise ConfigError(f"--until: a run cannot stop after {until!r}; name one of {', '.join(names)}")


def _ingest(config: Config) -> Transform:
    from stillhouse.stages.ingest import Ingest

    if not config.has_rules:
        return Ingest(config, functools.partial(prompt_counter(config), short=config.max_prompt_tokens))
    counters = prompt_counters(config)
    short = {name: config.of_teacher(name).max_prompt_tokens for name in counters}
    return Ingest(config, {name: functools.partial(count, short=short[name]) for name, count in counters.items()})


def prompt_counters(config: Config) -> dict[str, Callable[..., list[int | None]]]:
    """`prompt_counter` of each of `teachers`. Raises `TemplateError`, which says whose template it is about."""
    from stillhouse.stages.teacher import TemplateError

    counters = {}
    for name in config.teacher_names:
        try:
            counters[name] = prompt_counter(config.of_teacher(name))
        except TemplateError as error:
            raise TemplateError(f"teachers: of {name}: {error}") from None
    return counters


def prompt_counter(config: Config) -> Callable[..., list[int | None]]:
    """Counts first prompts in the teacher's tokens, with its template and the longest system prompt, or with those that
    are its second argument where these are the source's own; all of them, unless it is told what is `short`.

    Raises `TemplateError` when the template cannot do what the configuration asks: better here than after dedupe.
    """
    from stillhouse.stages.teacher.chat import load_chat
    from stillhouse.stages.teacher.conversing import check_template, longest_system_prompt

    chat = load_chat(config, run_date(config))
    if not config.given_ids:
        check_template(config, chat)
    if config.generate.system_prompts == "source":
        return chat.num_prompt_tokens
    return functools.partial(chat.num_prompt_tokens, system_prompt=longest_system_prompt(config, chat))


def _dedupe(config: Config) -> Transform:
    from stillhouse.stages.dedupe import mark

    return mark


def _dedupe_sketch(config: Config) -> Transform:
    from stillhouse.stages.dedupe import Sketch

    return Sketch(config.dedupe)


def _dedupe_assign(sketches: Iterable[pa.Table], config: Config) -> Iterable[pa.Table]:
    from stillhouse.stages.dedupe import assign

    return assign(sketches, config.dedupe)


def _screen(config: Config) -> Transform:
    from stillhouse.stages.screen import Screen

    return Screen(config.screen, _contamination(config), _jailbreaks(config))


def _contamination(config: Config) -> Any:
    """The index of the evaluation sets, built from their files in each worker; None where none is asked for."""
    if config.decontamination is None:
        return None
    from stillhouse.stages.filters.contamination import CONTAMINATION

    return _index(config.decontamination, config.decontamination.evaluations, CONTAMINATION)


def _jailbreaks(config: Config) -> Any:
    """The same of the jailbreak templates."""
    if config.screen.jailbreaks is None:
        return None
    from stillhouse.stages.filters.contamination import JAILBREAK

    jailbreaks = config.screen.jailbreaks
    return _index(jailbreaks, jailbreaks.templates, JAILBREAK, "screen.jailbreaks.templates")


def _index(
    matches: MatchesConfig, sets: list[EvaluationConfig], label: str, key: str = "decontamination.evaluations"
) -> Any:
    from stillhouse.stages.filters.contamination import Contamination
    from stillhouse.stages.sources.evaluations import read_evaluation

    items = (read_evaluation(one, key) for one in sets)
    return Contamination(matches, itertools.chain.from_iterable(items), label)


def _balance(config: Config) -> Transform:
    from stillhouse.stages.balance import mark

    return mark


def _balance_sketch(config: Config) -> Transform:
    from stillhouse.stages.balance import Sketch

    assert config.balance is not None
    return Sketch(config.balance)


def _balance_assign(sketches: Iterable[pa.Table], config: Config) -> list[pa.Table]:
    from stillhouse.stages.balance import assign

    assert config.balance is not None
    return assign(sketches, config.balance)


def generate(
    config: Config,
    around: "Callable[[Teacher], Teacher]" = lambda teacher: teacher,
    template_of: Config | None = None,
) -> "Generate":
    """The stage generate with its engine; `around` puts something between the two. Template and tokenizer are those of
    `config`, or of another configuration."""
    from stillhouse.stages.generate import Generate

    chat, teacher = _teacher(config, template_of)
    return Generate(config, chat, around(teacher))


def _rollout(config: Config) -> Transform:
    """The student in the teacher's place, which reads and stops by the teacher's template."""
    from stillhouse.stages.rollout import Rollout

    return Rollout(generate(config.writer, template_of=config), asks_top_k=config.asks_more)


def _score(config: Config) -> Transform:
    from stillhouse.stages.score import Score

    return Score(config, *_teacher(config))


def _teacher(config: Config, template_of: Config | None = None) -> "tuple[Chat, Watchdog]":
    from stillhouse.stages.teacher import load_teacher
    from stillhouse.stages.teacher.chat import load_chat
    from stillhouse.stages.teacher.watchdog import Watchdog

    chat = load_chat(template_of or config, run_date(config))
    teacher = load_teacher(config, chat.end_of_turn_ids())
    return chat, Watchdog(teacher, config.teacher.stall_timeout_s)


def _review(config: Config) -> Transform:
    from stillhouse.stages.review import Review

    return Review(config.review, config.screen.classifiers, _contamination(config), config.personal)


def _review_sketch(config: Config) -> Transform:
    from stillhouse.stages.review import Sketch

    return Sketch(config.review)


def _review_assign(sketches: Iterable[pa.Table], config: Config) -> Iterable[pa.Table]:
    from stillhouse.stages.review import assign

    return assign(sketches, config.review)


def _publish(config: Config) -> Transform:
    from stillhouse.stages.publish import publish

    return publish
