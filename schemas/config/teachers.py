"""Several teachers in one run, each for some of its rows."""

from typing import Annotated, Literal

from pydantic import Field

from stillhouse.schemas.config.section import free
from stillhouse.schemas.config.teacher import TeacherConfig


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
    thinking_tokens: tuple[str, str] | None = None
    """As `generate.thinking_tokens`; null: as there."""


OF_GENERATE = ("system_prompts", "thinking", "thinking_tokens")
"""Keys of a `NamedTeacher` that stand for those of `generate`."""
