"""Proposes `source.columns` for rows that no known spelling fits, from the names and types of their columns alone."""

from collections.abc import Iterator
from typing import Any

from stillhouse.stages.sources.conversation import ROLES

_NUM_ROWS = 100


def column_names(row: object) -> list[str]:
    """The columns of a row, those of objects in it as dotted paths."""
    return sorted(path for path, _ in _columns(row))


def proposal(rows: list[Any]) -> dict[str, str]:
    """Values for `source.columns` that fit the first of `rows`; empty where there is no guess.

    A conversation is a list of objects that have a short text with few different values (who speaks), and a longer one
    (what is said); or else the longest text of a row.
    """
    tables = [dict(_columns(row)) for row in rows[:_NUM_ROWS] if isinstance(row, dict)]
    names = dict.fromkeys(name for table in tables for name in table)
    for name in names:
        items = [item for table in tables for item in _objects(table.get(name))]
        fields = dict.fromkeys(path for item in items for path, value in _columns(item) if isinstance(value, str))
        texts = {field: [dict(_columns(item)).get(field) for item in items] for field in fields}
        role = max(fields, key=lambda field: _likeness_to_roles(texts[field]), default=None)
        others = [field for field in fields if field != role]
        if role is not None and others and _likeness_to_roles(texts[role]) > 0:
            content = max(others, key=lambda field: _length(texts[field]))
            return {"conversation": name, "role": role, "content": content} | _id(tables, name)
    lengths = {name: _length([table.get(name) for table in tables]) for name in names}
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    if longest is None or not lengths[longest]:
        return {}
    asked = [name for name in names if lengths[name] and _is_name_of_question(name)]
    return {"conversation": (asked or [longest])[0]} | _id(tables, (asked or [longest])[0])


def _columns(row: object, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items() if isinstance(row, dict) else ():
        if isinstance(value, dict) and before.count(".") < 2:
            yield from _columns(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _likeness_to_roles(texts: list[Any]) -> float:
    """How much a field looks like one that says who speaks: few short values, some of them known."""
    found = [text.strip().casefold() for text in texts if isinstance(text, str)]
    if not found or max(map(len, found)) > 40 or len(set(found)) > 8:
        return 0.0
    return len(found) / len(texts) + sum(text in ROLES for text in found) / len(found) - 0.05 * len(set(found))


def _length(texts: list[Any]) -> int:
    return sum(len(text) for text in texts if isinstance(text, str))


def _is_name_of_question(name: str) -> bool:
    return any(word in name.casefold() for word in ("prompt", "question", "instruct", "query", "input", "user"))


def _id(tables: list[dict[str, Any]], conversation: str) -> dict[str, str]:
    """A column that names rows: called so, and different in each."""
    for name in dict.fromkeys(name for table in tables for name in table):
        values = [table.get(name) for table in tables]
        last = name.rpartition(".")[2].casefold()
        is_named = last in ("id", "key", "uid", "guid", "index", "idx", "hash") or last.endswith(("_id", "id", "_key"))
        is_plain = all(isinstance(value, str | int) and not isinstance(value, bool) for value in values)
        if name != conversation and is_named and is_plain and len(set(map(str, values))) == len(values):
            return {"id": name}
    return {}
