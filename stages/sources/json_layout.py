"""How a JSON file lays out its rows, told from its beginning: names say little (arrays are called .jsonl, and objects
are printed over many lines)."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.head import BOM, HEAD_BYTES, refuse_other_kinds
from stillhouse.stages.sources.json_values import parse_bytes
from stillhouse.stages.sources.row import SourceError

Kind = Literal["array", "lines", "objects"]
ARRAY: Kind = "array"
LINES: Kind = "lines"
OBJECTS: Kind = "objects"
_WRAPPERS = (
    *("data", "dataset", "entries", "examples", "instances", "items", "records", "rows", "samples"),
    *("train", "validation", "dev", "test"),
)
"""Keys under which files of one object keep their rows. Any other counts too where its first element is a row."""


class Layout(NamedTuple):
    kind: Kind
    start: int = 0
    """Bytes before the first row: a byte order mark, or all that comes before the first element of a wrapped array."""
    key: str | None = None
    """Of a wrapped array, whose [ is before `start`: under which its object has it."""


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
    is_cut_line = is_called_lines and kind == b"{" and not newline and not is_whole
    is_cut_line = is_cut_line and not _keeps_rows(first.decode("utf-8", "surrogateescape"), spelling)
    if kind not in (b"[", b"{") or (is_line and has_more) or is_cut_line:
        return Layout(LINES, start)
    if kind == b"[":
        return _of_array(head, start, is_line, is_called_lines, spelling)
    begin = head.index(b"{", start)
    wrapped = _wrapped(name, head[begin:].decode("utf-8", "surrogateescape"), spelling, is_called_lines)
    if wrapped is not None:
        return Layout(ARRAY, begin + wrapped.start, wrapped.key)
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


def is_end_of_object(name: str, key: str, rest: Iterator[bytes], spelling: Spelling) -> bool:
    """Whether `rest`, which follows the ] of a wrapped array, ends its object and the file. Only a bounded part is
    looked at: what is longer is no such end. Raises `SourceError` where the object has more rows."""
    tail = bytearray()
    for data in rest:
        tail += data
        if len(tail) >= HEAD_BYTES:
            break
    text = tail.decode("utf-8", "surrogateescape")
    members, end = _members(text, _past_space(text, 0))
    lists, others = _parted(members, spelling)
    if spelling.holds_conversation(others):
        raise SourceError(
            f"{name}: is an object with a list like rows under {_named([key])}, and with a conversation; "
            "write one row a line (jq -c .), and name the file .jsonl"
        )
    _refuse_more_rows(name, [key, *(member.key for member in lists)])
    return end is not None and not text[end:].strip() and not any(data.strip() for data in rest)


class _Member(NamedTuple):
    """A key of an object, its value, and where that begins."""

    key: str
    value: Any
    start: int


def _wrapped(name: str, text: str, spelling: Spelling, is_called_lines: bool) -> Layout | None:
    """Where the rows of a file begin that is one object with a list of them; None where it is no such object. Raises
    `SourceError` for an object that holds rows in another way.

    An object that has a conversation is a row, and so is one that others follow, whatever lists are in them.
    """
    members, end = _members(text, 0)
    if end is not None and text[end:].lstrip(", \t\r\n").startswith("{"):
        return None
    for member in members:
        _refuse_columns(name, member, spelling)
    lists, others = _parted(members, spelling)
    if spelling.holds_conversation(others):
        if end is not None and not is_called_lines and spelling.is_plain(others):
            _refuse_text_beside_rows(name, [member.key for member in lists if member.key in _WRAPPERS])
        return None
    if lists:
        _refuse_more_rows(name, [member.key for member in lists])
        return Layout(ARRAY, len(text[: lists[0].start + 1].encode("utf-8", "surrogateescape")), lists[0].key)
    rows = [
        key
        for key in others
        if spelling.is_row_of("", others[key]) and not key.startswith(("body", "params", "request"))
    ]
    # Of an object that is not whole here, a conversation may come later: something else than rows says so.
    if rows and (end is not None or all(isinstance(value, dict) for value in others.values())):
        raise SourceError(f"{name}: is an object of rows by key; write one row a line (jq -c '.[]')")
    return None


def _members(text: str, at: int) -> tuple[list[_Member], int | None]:
    """What an object holds, of which a text has the { or a comma at a place, and the place after its }; None where
    it is not there. Of a value that is not whole, something stands for it that begins like it."""
    found = []
    while text[at : at + 1] in ("{", ","):
        at = _past_space(text, at + 1)
        if text[at : at + 1] != '"':
            break
        key, at = _decode(text, at)
        at = _past_space(text, at)
        if text[at : at + 1] != ":":
            break
        start = _past_space(text, at + 1)
        value, at = _decode(text, start)
        found.append(_Member(key, _begun(text, start) if value is None else value, start))
        at = _past_space(text, at)
    return found, at + 1 if text[at : at + 1] == "}" else None


def _begun(text: str, at: int) -> Any:
    """What stands for a value without an end: its first element, an object, its text."""
    if text[at : at + 1] == "[":
        inner = _past_space(text, at + 1)
        value, _ = _decode(text, inner)
        return [_begun(text, inner) if value is None else value]
    return {"{": {"": None}, '"': text[at + 1 :]}.get(text[at : at + 1])


def _parted(members: list[_Member], spelling: Spelling) -> tuple[list[_Member], dict[str, Any]]:
    """Those that are lists of rows, and all else by its key."""
    lists, others = list[_Member](), dict[str, Any]()
    for member in members:
        if _is_of_rows(member, spelling):
            lists.append(member)
        else:
            others[member.key] = member.value
    return lists, others


def _keeps_rows(text: str, spelling: Spelling) -> bool:
    """Whether an object that is not whole keeps rows where files do, and is none itself as far as it goes."""
    lists, others = _parted(_members(text, 0)[0], spelling)
    return any(member.key in _WRAPPERS for member in lists) and not spelling.holds_conversation(others)


def _is_of_rows(member: _Member, spelling: Spelling) -> bool:
    first = member.value[0] if isinstance(member.value, list) and member.value else None
    if not isinstance(first, dict):
        return False
    return spelling.is_row_of(member.key, first) or (member.key in _WRAPPERS and not spelling.is_message(first))


def _refuse_columns(name: str, member: _Member, spelling: Spelling) -> None:
    value = member.value
    first = next(iter(value.items()), ("", None)) if isinstance(value, dict) else ("", None)
    is_listed = isinstance(value, list) and bool(value) and isinstance(value[0], list) and len(value[0]) > 0
    if member.key in spelling.candidates and (
        (first[0] == "0" and isinstance(first[1], list | str)) or (is_listed and isinstance(value[0][0], dict))
    ):
        raise SourceError(f"{name}: is a table by columns; write it by rows (pandas: orient='records', lines=True)")


def _refuse_text_beside_rows(name: str, keys: list[str]) -> None:
    """A text and a list of rows: the row and its examples, or rows and what they are about. Nobody can tell."""
    if keys:
        raise SourceError(
            f"{name}: is one object with a text that may be a prompt, and with a list of rows under {_named(keys)}; "
            f"write what is meant one row a line: the list{_by_jq(keys)}, or the object (jq -c ., named .jsonl)"
        )


def _refuse_more_rows(name: str, keys: list[str]) -> None:
    if len(keys) > 1:
        keys = sorted(keys, key=lambda key: key not in _WRAPPERS)
        raise SourceError(
            f"{name}: holds lists of rows under {_named(keys)}; write those to be read, one row a line{_by_jq(keys)}"
        )


def _by_jq(keys: list[str]) -> str:
    """How jq writes the list under the first key, where that may be shown."""
    return "" if _named(keys[:1]) == "…" else f""" (jq -c '.["{keys[0]}"][]')"""


def _named(keys: list[str]) -> str:
    """Keys for a message, which must not quote a question that is one."""
    return ", ".join(key if re.fullmatch(r"[\w.-]{1,30}", key) else "…" for key in keys[:5])


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
