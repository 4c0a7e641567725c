"""Reads JSON: one value per line, or the elements of one array. A bad row costs one row; a row's size is bounded."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stillhouse.stages.sources.row import INVALID_JSON, ROW_TOO_LARGE, TRUNCATED_SOURCE, UNDECODABLE, Row
from stillhouse.stages.sources.streams import READ_BYTES

if TYPE_CHECKING:
    from stillhouse.stages.sources.streams import Reader

MAX_ROW_BYTES = 32 << 20
"""A longer line or array element is not a conversation. Without a bound, one missing newline could fill the memory."""
MAX_JSON_DEPTH = 100
"""Deeper nesting is refused by counting brackets, because Python's parser gives up at a depth that depends on the depth
of its caller's stack."""
_BOM = b"\xef\xbb\xbf"


def _parse(raw: bytes) -> Row:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Row(None, UNDECODABLE)
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        return Row(None, INVALID_JSON)
    try:
        return Row(json.loads(text))
    except ValueError:  # also for integers of more digits than Python converts
        return Row(None, INVALID_JSON)


_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text nest."""
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        character = text[match.start()]
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def read_json(name: str, stream: "Reader") -> Iterator[Row]:
    """The elements of an array where the file begins like one; otherwise one JSON value per line."""
    is_array = stream.peek(1).removeprefix(_BOM).lstrip().startswith(b"[")
    return _read_array(stream) if is_array else read_lines(name, stream)


def read_lines(name: str, stream: "Reader") -> Iterator[Row]:
    """One JSON value per line; a blank line is not a row."""
    is_first = True
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if is_first:
            line, is_first = line.removeprefix(_BOM), False
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_ROW_BYTES + 1)
            yield Row(None, ROW_TOO_LARGE)
        elif line.strip():
            yield _parse(line)


_OUTSIDE_STRING = re.compile(rb'[^"\[\]{},]*+')
_INSIDE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_QUOTE, _BACKSLASH, _COMMA, _CLOSE_LIST = b'"\\,]'


def _read_array(stream: "Reader") -> Iterator[Row]:
    """The elements of one JSON array, found by counting brackets and quotes, so that a bad element costs one row.

    An array without an end gives a last row `truncated_source`, which stands for all that is missing. Anything after
    its end gives one row `invalid_json`.
    """
    element = bytearray()
    is_too_large = False
    depth = 0
    in_string = False
    carry = b""
    is_open = False  # past the array's [
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
                    yield _parse(bytes(element))
                if is_last:
                    if chunk[at + 1 :].strip() or any(rest.strip() for rest in iter(stream.read1, b"")):
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
        yield _parse(bytes(element))
    yield Row(None, TRUNCATED_SOURCE)
