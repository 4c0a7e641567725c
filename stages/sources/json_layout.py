"""How a JSON file lays out its rows, told from its beginning: names say little (arrays are called .jsonl, and objects
are printed over many lines)."""

import json
import re
from typing import Any, Literal, NamedTuple

from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.head import BOM, refuse_other_kinds
from stillhouse.stages.sources.json_values import parse_bytes
from stillhouse.stages.sources.row import SourceError

Kind = Literal["array", "lines", "objects"]
ARRAY: Kind = "array"
LINES: Kind = "lines"
OBJECTS: Kind = "objects"
_WRAPPERS = ("data", "dataset", "entries", "examples", "instances", "items", "records", "rows", "samples", "train")
"""Keys under which files of one object keep their rows. Any other counts too where its first element is a row."""


class Layout(NamedTuple):
    kind: Kind
    start: int = 0
    """Bytes before the first row: a byte order mark, or all that comes before the first element of a wrapped array."""
    is_wrapped: bool = False
    """The array is inside of an object, and its [ is before `start`."""


def layout_of(name: str, head: bytes, is_whole: bool, spelling: Spelling) -> Layout:
    """The layout of a file that begins with `head`, which is all of it if `is_whole`.

    Raises `SourceError` for a file that is no JSON, or holds its rows in a way that is not read.
    """
    refuse_other_kinds(name, head)
    start = len(BOM) if head.startswith(BOM) else 0
    first, newline, rest = head[start:].lstrip().partition(b"\n")
    first, rest = first.strip(), rest.lstrip()
    kind = first[:1]
    parsed = parse_bytes(first) if newline or is_whole else None
    is_line = parsed is not None and parsed.error is None
    is_called_lines = re.search(r"\.(jsonl|ndjson)(\.|$)", name.lower()) is not None
    if is_called_lines and (kind, first[-1:]) in ((b"[", b"]"), (b"{", b"}")):
        is_line = True  # whole, though it may be too deep to be read
    has_more = rest[:1] in (b"[", b"{") or (rest and is_called_lines)
    if kind not in (b"[", b"{") or (is_line and has_more):
        return Layout(LINES, start)
    if kind == b"[":
        return _of_array(head, start, is_line, is_called_lines, spelling)
    begin = head.index(b"{", start)
    wrapped = _wrapped(name, head[begin:].decode("utf-8", "surrogateescape"), spelling)
    if wrapped is not None:
        return Layout(ARRAY, begin + wrapped, is_wrapped=True)
    if is_line or not newline or first[-1:] not in (b"{", b"[", b",", b":") or rest[:1] not in (b'"', b"}", b"{", b"["):
        return Layout(LINES, start)
    return Layout(OBJECTS, start)


def _of_array(head: bytes, start: int, is_line: bool, is_called_lines: bool, spelling: Spelling) -> Layout:
    text = head[head.index(b"[", start) :].decode("utf-8", "surrogateescape")
    at = _past_space(text, 1)
    if text[at : at + 1] != "{":
        # Elements are no objects: a line of its own, unless the name says that it is an array.
        return Layout(LINES if is_line and is_called_lines else ARRAY, start)
    element, _ = _decode(text, at)
    if spelling.is_message(element):  # the file is one conversation
        return Layout(LINES if is_line else OBJECTS, start)
    return Layout(ARRAY, start)


def _wrapped(name: str, text: str, spelling: Spelling) -> int | None:
    """Where the rows of a file begin that is one object with a list of them, in bytes past that list's [; None where it
    is no such object. Raises `SourceError` for an object that holds rows in another way."""
    at = _past_space(text, 1)
    while text[at : at + 1] == '"':
        key, at = _decode(text, at)
        at = _past_space(text, at)
        if text[at : at + 1] != ":":
            return None
        at = _past_space(text, at + 1)
        inner = _past_space(text, at + 1)
        if text[at : at + 1] == "[" and text[inner : inner + 1] == "{":
            element, _ = _decode(text, inner)
            if spelling.is_row_of(str(key), element) or (key in _WRAPPERS and not spelling.is_message(element)):
                return len(text[: at + 1].encode("utf-8", "surrogateescape"))
        value, at = _decode(text, at)
        _refuse_other_tables(name, str(key), value, spelling)
        at = _past_space(text, at)
        if text[at : at + 1] != ",":
            return None
        at = _past_space(text, at + 1)
    return None


def _refuse_other_tables(name: str, key: str, value: object, spelling: Spelling) -> None:
    first = next(iter(value.items()), ("", None)) if isinstance(value, dict) else ("", None)
    is_listed = isinstance(value, list) and bool(value) and isinstance(value[0], list) and len(value[0]) > 0
    if key in spelling.candidates and (
        (first[0] == "0" and isinstance(first[1], list | str))
        or (is_listed and isinstance(value, list) and isinstance(value[0][0], dict))
    ):
        raise SourceError(f"{name}: is a table by columns; write it by rows (pandas: orient='records', lines=True)")
    if spelling.is_row_of("", value) and not key.startswith(("body", "params", "request")):
        raise SourceError(f"{name}: is an object of rows by key; write one row a line (jq -c '.[]')")


def _decode(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a place and the place after it; None and the text's end where there is no whole one."""
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, len(text)


_SPACE = re.compile(r"\s*+")


def _past_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
