"""Whose a row of the source is, where a run has several teachers, and what else is read of a row for it."""

from typing import Any

from stillhouse.schemas.config import Config, NamedTeacher
from stillhouse.stages.sources import exchanges
from stillhouse.stages.sources.conversation import Spelling, at

NO_TEACHER = "no_teacher"
LANGUAGE, SOURCE = "language", "source"
"""Columns that every row has, in the source or not."""


def more_columns(config: Config) -> tuple[str, ...]:
    """Columns that are read beside those of every conversation: given ids, and what rules ask for."""
    asked = dict.fromkeys(name for teacher in config.teachers or [] for name in teacher.when or {})
    return (*exchanges.columns(config.score), *asked)


class Rules:
    """`teachers`, tried in order."""

    def __init__(self, teachers: list[NamedTeacher], spelling: Spelling, source: str) -> None:
        self._spelling, self._source = spelling, source
        self._wanted = [(teacher.name, _as_sets(teacher)) for teacher in teachers]

    def teacher(self, row: dict[str, Any]) -> str | None:
        """The name of the first teacher that takes a row; None where none does."""
        for name, wanted in self._wanted:
            if all(not values.isdisjoint(self._values(row, column)) for column, values in wanted.items()):
                return name
        return None

    def _values(self, row: dict[str, Any], column: str) -> set[str]:
        """What a row holds in a column, as text: of a list all of its values."""
        found = at(row, column)
        if column == LANGUAGE:
            found = self._spelling.language(row)
        elif column == SOURCE and found is None:
            found = self._source
        values = found if isinstance(found, list | tuple) else [found]
        return {_text(value) for value in values if isinstance(value, str | int | float)}


def _as_sets(teacher: NamedTeacher) -> dict[str, frozenset[str]]:
    return {column: frozenset(values) for column, values in (teacher.when or {}).items()}


def _text(value: str | float) -> str:
    """As JSON and YAML write it: `true` and not `True`."""
    return str(value).lower() if isinstance(value, bool) else str(value)
