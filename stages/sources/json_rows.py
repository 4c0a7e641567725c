"""Reads JSON row by row. A bad row costs one row; a row's size is bounded."""

import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.head import BOM, Head
from stillhouse.stages.sources.json_layout import ARRAY, LINES, is_end_of_object, layout_of
from stillhouse.stages.sources.json_values import parse_bytes
from stillhouse.stages.sources.row import (
    INVALID_JSON,
    MAX_ROW_BYTES,
    ROW_TOO_LARGE,
    TRUNCATED_SOURCE,
    Part,
    Row,
    SourceError,
)
from stillhouse.stages.sources.streams import READ_BYTES

if TYPE_CHECKING:
    from stillhouse.stages.sources.streams import Reader

_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]')


def read_json(name: str, stream: "Reader", spelling: Spelling) -> Iterator[Row]:
    """The rows of a JSON file: one a line, the elements of an array, or objects written over several lines.

    Which of these it is, its beginning says, not its name. Raises `SourceError` where that is no JSON of rows.
    """
    head = Head(stream)
    layout = layout_of(name, head.data, head.is_whole, spelling)
    rewound = io.BufferedReader(head, READ_BYTES)
    rewound.read(layout.start)
    if layout.kind == ARRAY and layout.key is not None:
        return _read_array(rewound, partial(is_end_of_object, name, layout.key, spelling=spelling), is_open=True)
    if layout.kind == ARRAY:
        return _read_array(rewound, _is_blank, is_open=False)
    return _read_lines(rewound) if layout.kind == LINES else _read_objects(rewound)


def parts_of_json(name: str, stream: "Reader", spelling: Spelling, num_bytes: int) -> list[Part]:
    """Parts of a file of one row a line, wherever they end; JSON takes four times the bytes of Parquet, so these have
    four times `num_bytes`. None of other files, and of what is no JSON of rows: reading says so."""
    head = Head(stream)
    try:
        layout = layout_of(name, head.data, head.is_whole, spelling)
    except SourceError:
        return []
    if layout.kind != LINES:
        return []
    num_bytes *= 4
    size = stream.seek(0, 2)
    ends = [*range(num_bytes, size - num_bytes // 2, num_bytes), size]
    return [Part(begin, end, end - begin) for begin, end in zip([0, *ends], ends, strict=False)]


def read_lines(name: str, stream: "Reader", spelling: Spelling, part: Part) -> Iterator[Row]:
    """The rows of those lines that begin in a part of a file."""
    if part.begin == 0:
        at = len(BOM) if stream.peek(len(BOM)).startswith(BOM) else 0
        stream.seek(at)
    else:
        stream.seek(part.begin - 1)  # after a line break a line begins
        at = _past_line(stream, part.begin - 1, part.end)
    return _read_lines(stream, at, part.end)


def _past_line(stream: "Reader", at: int, end: int | None) -> int:
    """The place after the rest of a line, of which a stream is at `at`; or one past `end`, where no other line begins
    before it."""
    while (end is None or at < end) and (line := stream.readline(READ_BYTES)):
        at += len(line)
        if line.endswith(b"\n"):
            break
    return at


def _read_lines(stream: "Reader", at: int = 0, end: int | None = None) -> Iterator[Row]:
    """One JSON value per line that begins before `end`; a blank line is not a row. The stream is at `at`: asking it
    after each line would have an object store's client fetch the same bytes again."""
    while (end is None or at < end) and (line := stream.readline(MAX_ROW_BYTES + 1)):
        at += len(line)
        if len(line) > MAX_ROW_BYTES:
            if not line.endswith(b"\n"):
                at = _past_line(stream, at, end)
            yield Row(None, ROW_TOO_LARGE)
        elif line := line.strip():
            row = parse_bytes(line)
            if row.error is not None and line.endswith(b"},"):  # the elements of an array without its brackets
                row = parse_bytes(line[:-1])
            yield row


def _read_objects(stream: "Reader") -> Iterator[Row]:
    """Objects that are written over several lines, one after the other. A line that begins with { begins one, so that
    one without an end costs one row; unless lines are not indented, and it may be inside of the one before."""
    lines = bytearray()
    depth = 0
    is_indented = False
    while line := stream.readline(MAX_ROW_BYTES + 1):
        is_indented |= line[:1] in (b" ", b"\t")
        if lines and line.startswith(b"{") and (is_indented or not _may_be_inside(line, bytes(lines[-9:]))):
            yield Row(None, INVALID_JSON if len(lines) <= MAX_ROW_BYTES else ROW_TOO_LARGE)
            lines.clear()
            depth = 0
        if not lines and not line.strip(b", \t\r\n"):
            continue
        if len(lines) <= MAX_ROW_BYTES:
            lines += line
        for match in _BRACKETS.finditer(line):
            bracket = line[match.start() : match.start() + 1]
            depth += (bracket in (b"[", b"{")) - (bracket in (b"]", b"}"))
        if depth <= 0:
            is_small = len(lines) <= MAX_ROW_BYTES
            yield parse_bytes(bytes(lines.strip(b", \t\r\n"))) if is_small else Row(None, ROW_TOO_LARGE)
            lines.clear()
            depth = 0
    if lines:
        yield Row(None, TRUNCATED_SOURCE)


def _may_be_inside(line: bytes, before: bytes) -> bool:
    """Whether a line may open an object inside of another one, as `json.dumps(row, indent=0)` does."""
    return line.strip(b", \r\n") in (b"{", b"{}") and before.rstrip().endswith((b"[", b",", b":"))


_OUTSIDE_STRING = re.compile(rb'[^"\[\]{},]*+')
_INSIDE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_QUOTE, _BACKSLASH, _COMMA, _CLOSE_LIST = b'"\\,]'


def _is_blank(rest: Iterator[bytes]) -> bool:
    return not any(data.strip() for data in rest)


def _read_array(stream: "Reader", is_end: Callable[[Iterator[bytes]], bool], *, is_open: bool) -> Iterator[Row]:
    """The elements of one JSON array, found by counting brackets and quotes, so that a bad element costs one row.
    `is_open`: its [ has been read.

    An array without an end gives a last row `truncated_source`, which stands for all that is missing. What follows its
    ] gives one row `invalid_json`, unless `is_end` finds nothing wrong with it.
    """
    element = bytearray()
    is_too_large = False
    depth = 0
    in_string = False
    carry = b""
    while data := stream.read1(READ_BYTES):
        chunk = carry + data
        carry = b""
        at = start = 0
        if not is_open:
            at = start = chunk.index(b"[") + 1
            is_open = True
        while at < len(chunk):
            found = (_INSIDE_STRING if in_string else _OUTSIDE_STRING).match(chunk, at)
            at = found.end() if found else at
            if at == len(chunk):
                break
            byte = chunk[at]
            if in_string:
                if byte == _BACKSLASH:  # the last byte here: what it escapes is in the next chunk
                    carry = chunk[at:]
                    break
                in_string = False
            elif byte == _QUOTE:
                in_string = True
            elif byte in b"[{":
                depth += 1
            elif depth:
                depth -= byte in b"]}"
            elif byte in b",]":
                element += chunk[start:at]
                is_last = byte == _CLOSE_LIST
                if is_too_large or len(element) > MAX_ROW_BYTES:
                    yield Row(None, ROW_TOO_LARGE)
                elif not is_last or element.strip():  # an empty array, or a comma before its end, is not a row
                    yield parse_bytes(bytes(element))
                if is_last:
                    if not is_end(chain([chunk[at + 1 :]], iter(stream.read1, b""))):
                        yield Row(None, INVALID_JSON)
                    return
                element.clear()
                is_too_large = False
                start = at + 1
            at += 1
        element += chunk[start:at]
        if len(element) > MAX_ROW_BYTES:
            element.clear()
            is_too_large = True
    if not depth and not in_string and not is_too_large and element.rstrip().endswith((b"}", b"]")):
        yield parse_bytes(bytes(element))
    yield Row(None, TRUNCATED_SOURCE)
