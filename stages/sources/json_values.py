"""Parses one value whose text nobody has checked, as JSON or as Python prints it: bounded depth, no exception."""

import ast
import json
import re
import warnings

from stillhouse.stages.sources.row import INVALID_JSON, UNDECODABLE, Row

MAX_JSON_DEPTH = 100
"""Deeper nesting is refused by counting brackets, because Python's parser gives up at a depth that depends on the depth
of its caller's stack."""
_MAX_PRINTED_BRACKETS = 100_000
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def parse_bytes(raw: bytes) -> Row:
    """The value of a line or array element, or the reason why there is none."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Row(None, UNDECODABLE)
    return parse_text(text)


def parse_text(text: str) -> Row:
    """The value of a JSON text, or `invalid_json`."""
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        return Row(None, INVALID_JSON)
    try:
        return Row(json.loads(text))
    except ValueError:  # also for integers of more digits than Python converts
        return Row(None, INVALID_JSON)


_PRINTED = re.compile(r"\s*(?:\[\s*)?\{\s*'")


def parse_printed(text: str) -> object:
    """The messages that Python printed (`[{'role': 'user', …}]`, which is what `DataFrame.to_csv` writes of them); the
    text itself where it is none of that."""
    if not _PRINTED.match(text) or text.count("[") + text.count("{") > _MAX_PRINTED_BRACKETS:
        return text
    try:
        with warnings.catch_warnings(action="ignore"):  # "\d" is an invalid escape
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


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
