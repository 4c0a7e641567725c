"""Several teachers in one run, each for some of its rows."""

from typing import Annotated, Literal

from pydantic import Field

from stillhouse.schemas.config.section import free
from stillhouse.schemas.config.teacher import GenerateConfig, TargetsConfig, TeacherConfig, ThinkingTokens


class NamedTeacher(TeacherConfig):
    """One of `teachers`: the keys of `teacher`, its name, its rows, and what `generate` says otherwise for it."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    """What the column `teacher` says of its rows."""
    when: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)] | None = None
    """Which rows are its own: columns (or paths such as meta.task) of the source with the values that they may have,
    all of which must fit. A number is compared as it is written, and of a list one value is enough. `language` is what
    `ingest.languages` is compared with, `source` the source's name where the rows have no column of that name. Rules
    are tried in order; the last teacher may have none, and takes the rest."""
    license: Annotated[str | None, free] = None
    """For the dataset card, as the Hub spells it: that of the model, whose terms its answers are under."""
    system_prompts: list[str | None] | Literal["source"] | None = None
    """As `generate.system_prompts`; null: as there."""
    thinking: Literal["supervise", "keep", "drop"] | None = None
    """As `generate.thinking`; null: as there."""
    thinking_tokens: ThinkingTokens | None = None
    """As `generate.thinking_tokens`; null: as there."""


OF_GENERATE = ("system_prompts", "thinking", "thinking_tokens")
"""Keys of a `NamedTeacher` that stand for those of `generate`."""


def check_mixture(teachers: list[NamedTeacher], task: str, targets: TargetsConfig, generate: GenerateConfig) -> None:
    """Raises ValueError where the distributions of teachers cannot be averaged: they must read the same ids, and what
    is kept must add up."""
    if task != "score" or targets.method != "sampled" or targets.draws_from != "engine":
        raise ValueError(
            "mixture: draws of several teachers are draws of their average, and nothing else that is stored adds up; "
            "set task to score, targets.method to sampled and targets.draws_from to engine"
        )
    if len(teachers) < 2 or targets.num_draws % len(teachers):
        raise ValueError(
            f"mixture: each of {len(teachers)} teachers gives as many of the {targets.num_draws} draws; name two or "
            "more, and set targets.num_draws to a multiple of their number"
        )
    if targets.has_entropy:
        raise ValueError("mixture: nobody knows the entropy of an average; remove targets.entropy and targets.keep")
    for teacher in teachers:
        if teacher.when is not None:
            raise ValueError(f"mixture: every row is everybody's; remove `when` of {teacher.name}")
    check_read_alike(teachers, "mixture: all teachers read the same ids")
    if isinstance(teachers[0].system_prompts or generate.system_prompts, list):
        raise ValueError("mixture: system prompts are drawn for each teacher; set generate.system_prompts to source")


def check_read_alike(teachers: list[NamedTeacher], why: str) -> None:
    """Raises ValueError, which begins with `why`, where teachers make other ids of the same conversation."""
    for teacher in teachers:
        for key in ("max_model_len", "chat_template", "chat_template_kwargs", "date", *OF_GENERATE):
            if getattr(teacher, key) != getattr(teachers[0], key):
                raise ValueError(f"{why}; {key} of {teacher.name} is another one than that of {teachers[0].name}")
