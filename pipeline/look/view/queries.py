"""From the address of a page to SQL. What comes out holds names of known columns, quoted, and places for parameters:
nothing that a person or a page wrote becomes SQL.

In an address, `q` is a search, `sort` a column (`-` before it: downwards), and `c.COLUMN` a filter of COLUMN:

    lo..hi        lo <= value < hi; either may be left out; of lists, the length
    length:lo..hi the same of a text's length in characters
    is:VALUE      equal
    has:TEXT      contains, in any case
    null, there   without a value, with one
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stillhouse.pipeline.look.view.columns import Column

FILTER = "c."
MAX_LENGTH = 1000
"""Characters of a search or a filter."""


class QueryError(ValueError):
    """An address that asks for something that is not there; the message says what is wrong and what to write."""


@dataclass(frozen=True)
class Query:
    """Which rows of a stage, in which order."""

    where: str = ""
    """SQL of the condition; empty where all rows are asked for."""
    parameters: tuple[Any, ...] = ()
    order: str = ""
    """SQL of what is sorted by; empty for the order of the files."""

    @property
    def rows_only(self) -> "Query":
        """The same rows, in any order."""
        return Query(self.where, self.parameters)


def query_of(columns: dict[str, Column], parameters: Iterable[tuple[str, str]]) -> Query:
    """What the parameters of an address ask for; those it does not know belong to others. Raises `QueryError`."""
    conditions, values, order = list[str](), list[Any](), ""
    for name, text in parameters:
        if len(text) > MAX_LENGTH:
            raise QueryError(f"{name}: is longer than {MAX_LENGTH} characters")
        if name == "q":
            for condition, wanted in _search(columns, text):
                conditions.append(condition)
                values += wanted
        elif name.startswith(FILTER):
            condition, wanted = _filter(_known(columns, name.removeprefix(FILTER)), text)
            conditions.append(condition)
            values += wanted
        elif name == "sort" and text:
            column = _known(columns, text.removeprefix("-"))
            order = f"{column.value} {'DESC' if text.startswith('-') else 'ASC'} NULLS LAST"
    return Query(" AND ".join(conditions), tuple(values), order)


def _known(columns: dict[str, Column], name: str) -> Column:
    if name not in columns:
        raise QueryError(f"{name}: is no column of this stage; the table's header has them")
    return columns[name]


def _search(columns: dict[str, Column], text: str) -> Iterable[tuple[str, list[str]]]:
    """A condition for each word, or each phrase in quotation marks: it is in one of the texts of the row."""
    conditions = [condition for column in columns.values() for condition in column.contains]
    for phrase, word in re.findall(r'"([^"]*)"|(\S+)', text):
        wanted = (phrase or word).lower()
        if not wanted:
            continue
        if not conditions:
            raise QueryError("q: this stage has no texts to search in; choose another stage")
        yield "(" + " OR ".join(conditions) + ")", [wanted] * len(conditions)


def _filter(column: Column, text: str) -> tuple[str, list[Any]]:
    if text == "null":
        return f"{column.value} IS NULL", []
    if text == "there":
        return f"{column.value} IS NOT NULL", []
    kind, _, wanted = text.partition(":")
    if kind == "is":
        return _equals(column, wanted)
    if kind == "has" and column.kind in ("text", "other"):
        return f"contains(lower({column.value}), ?)", [wanted.lower()]
    if kind == "length" and column.kind == "text":
        return _between(column, f"length({column.value})", wanted)
    if column.kind in ("number", "length"):
        return _between(column, column.value, text)
    raise QueryError(f"{FILTER}{column.name}: does not know {text!r}; write is:VALUE, has:TEXT, null or there")


def _equals(column: Column, wanted: str) -> tuple[str, list[Any]]:
    if column.kind == "flag":
        if wanted not in ("true", "false"):
            raise QueryError(f"{FILTER}{column.name}: write is:true or is:false, not {wanted!r}")
        return f"{column.value} = ?", [wanted == "true"]
    if column.kind in ("number", "length"):
        return f"{column.value} = ?", [_number(column, wanted)]
    return f"{column.value} = ?", [wanted]


def _between(column: Column, value: str, text: str) -> tuple[str, list[Any]]:
    low, dots, high = text.partition("..")
    if not dots or not (low or high):
        raise QueryError(f"{FILTER}{column.name}: does not know {text!r}; write LOW..HIGH, LOW.. or ..HIGH")
    conditions, values = [], []
    for end, sign in ((low, ">="), (high, "<")):
        if end:
            conditions.append(f"{value} {sign} ?")
            values.append(_number(column, end))
    return "(" + " AND ".join(conditions) + ")", values


def _number(column: Column, text: str) -> float | int:
    try:
        number = int(text) if re.fullmatch(r"-?\d{1,18}", text) else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise QueryError(f"{FILTER}{column.name}: {text!r} is no number")
    return number
