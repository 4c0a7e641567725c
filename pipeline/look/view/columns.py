"""What the columns of a stage are to the page: what a cell shows, what filters, sorts and histograms read.

Everything here is SQL over the file's own columns. Lists of numbers are most of the bytes, and a table of them says
nothing: the page shows how long they are, from the small columns that count them where there are such.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from stillhouse.pipeline.look.conversation import TEXT

Kind = Literal["number", "text", "flag", "length", "other"]

CLIP = 300
"""Characters of a text that a cell shows."""
_COUNTED_BY = {
    "input_ids": "num_input_tokens",
    "labels": "num_input_tokens",
    "token_logprobs": "num_target_tokens",
    "teacher_entropy": "num_target_tokens",
    "target_lengths": "num_target_tokens",
    "target_tail": "num_target_tokens",
    "draw_lengths": "num_target_tokens",
    "target_ids": "target_lengths",
    "target_logprobs": "target_lengths",
    "target_gaps": "target_lengths",
    "draw_ids": "draw_lengths",
    "draw_counts": "draw_lengths",
}
"""The columns that say how long lists are (docs/format.md): one number, or a number for each token."""


ANSWER = "answer"
"""The name of the column that is made from messages."""
_LABELS = ("teacher", "language", "source", "finish_reasons", "stage", "reason", "cluster_id", "rendering_differs")
"""Texts that a search leaves out: who searches for `stop` wants rows that say it."""


@dataclass(frozen=True)
class Column:
    name: str
    """As the page and its addresses spell it; a child of a struct is `struct.child`."""
    type: str
    kind: Kind
    value: str
    """SQL of what is filtered, sorted and counted: the value; of a list its length."""
    cell: str
    """SQL of what the table shows."""
    reads: str
    """The column of the file that `value` and `cell` read."""
    contains: tuple[str, ...] = ()
    """SQL of what a search asks: whether a text of it contains a parameter, a word in lower case."""
    is_list_of_numbers: bool = False
    heavy: bool = False
    """To know how long the lists are, they have to be read, and they may be most of the file."""


def quoted(name: str) -> str:
    """A name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def columns_of(schema: pa.Schema, empty: Collection[str] = ()) -> dict[str, Column]:
    """The columns of a file, by name: first what was said, then the others in the file's order, then the lists of
    numbers, and last those in `empty`, of which nothing is to be seen."""
    found = [column for field in schema for column in _of_field(field, schema.names)]

    def place(column: Column) -> int:
        return 3 if column.name in empty else 0 if column.reads in TEXT else 2 if column.is_list_of_numbers else 1

    found.sort(key=place)
    return {column.name: column for column in found}


def _of_field(field: pa.Field, names: list[str]) -> list[Column]:
    name, kind = field.name, field.type
    if pa.types.is_struct(kind):
        path = quoted(name)
        return [_scalar(f"{name}.{child.name}", child.type, f"{path}.{quoted(child.name)}", name) for child in kind]
    if is_list(kind):
        column = _list(name, kind, names)
        is_conversation = name == "messages" and pa.types.is_struct(kind.value_type) and column.contains
        return [column, _answer(name)] if is_conversation and ANSWER not in names else [column]
    return [_scalar(name, kind, quoted(name), name)]


def _scalar(name: str, kind: pa.DataType, path: str, reads: str) -> Column:
    if pa.types.is_boolean(kind):
        return Column(name, str(kind), "flag", path, path, reads)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Column(name, str(kind), "number", path, path, reads)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Column(
            name,
            str(kind),
            "text",
            path,
            f"left({path}, {CLIP})",
            reads,
            _searched(name, f"contains(lower({path}), ?)"),
        )
    text = f"CAST({path} AS VARCHAR)"
    return Column(name, str(kind), "other", text, f"left({text}, {CLIP})", reads)


def _list(name: str, kind: pa.DataType, names: list[str]) -> Column:
    path, item, length = quoted(name), kind.value_type, f"len({quoted(name)})"
    shown = "list of " + ("messages" if pa.types.is_struct(item) else str(item))
    if pa.types.is_string(item) or pa.types.is_large_string(item):
        if name in _LABELS:  # one for each turn
            together = f"array_to_string({path}, ', ')"
            return Column(name, shown, "text", together, f"left({together}, {CLIP})", name)
        searched = (_any_contains(path, "m"),)
        return Column(name, shown, "length", length, f"left({path}[1], {CLIP})", name, searched)
    if pa.types.is_struct(item):
        texts = [child.name for child in item if pa.types.is_string(child.type) or pa.types.is_large_string(child.type)]
        if "content" in texts:
            texts_searched = tuple(_any_contains(path, f"m.{quoted(text)}") for text in texts if text != "role")
            return Column(name, shown, "length", length, _first_of_user(path, "role" in texts), name, texts_searched)
        return Column(name, "list of " + str(item), "length", length, f"left(CAST({path} AS VARCHAR), {CLIP})", name)
    counter = _COUNTED_BY.get(name)
    if counter in names:
        length = f"CAST(list_sum({quoted(counter)}) AS BIGINT)" if counter.endswith("_lengths") else quoted(counter)
        return Column(name, shown, "length", length, length, counter, is_list_of_numbers=True)
    return Column(name, shown, "length", length, length, name, is_list_of_numbers=True, heavy=True)


def _searched(name: str, condition: str) -> tuple[str, ...]:
    return () if name in _LABELS else (condition,)


def _any_contains(path: str, text: str) -> str:
    # Measured: as fast as a search can be made here, and faster than the same over unnested rows or one joined text.
    return f"list_bool_or(list_transform({path}, lambda m: contains(lower({text}), ?)))"


def _answer(path: str) -> Column:
    """What the teacher said last, beside what the user said first. A search in `messages` has it already."""
    said = f"list_filter({quoted(path)}, lambda m: m.role = 'assistant')[-1].content"
    return Column(ANSWER, "last answer", "text", said, f"left({said}, {CLIP})", path)


def _first_of_user(path: str, has_roles: bool) -> str:
    """The beginning of what the user said first: the system's words are often the same in all rows."""
    said = f"list_filter({path}, lambda m: m.role = 'user')" if has_roles else path
    return f"left(coalesce({said}[1].content, {path}[1].content), {CLIP})"
