"""The labelled lines, read."""

import re
from pathlib import Path
from typing import NamedTuple

_MARK = re.compile(r"\[\[(\w+)\|(.*?)\]\]")


class Line(NamedTuple):
    language: str
    text: str
    finds: set[tuple[int, int, str]]
    """Start, end and kind of what a careful reader marks."""


def labelled_lines() -> list[Line]:
    """Every line of `lines.txt`: below the name of its language, `[[kind|text]]` around what is personal."""
    found, language = [], ""
    for line in (Path(__file__).parent / "lines.txt").read_text().splitlines():
        if line.startswith("# "):
            language = line.removeprefix("# ")
            continue
        text, finds, end = "", set(), 0
        for match in _MARK.finditer(line):
            text += line[end : match.start()]
            finds.add((len(text), len(text) + len(match[2]), match[1]))
            text += match[2]
            end = match.end()
        found.append(Line(language, text + line[end:], finds))
    return found
