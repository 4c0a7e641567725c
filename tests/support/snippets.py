"""Fenced code of README.md and docs/*.md, as it is written. docs/training has tests of its own (tests/trainers)."""

import re
from typing import NamedTuple

from tests.support.data import ROOT

NOT_RUN = "<!-- not run: "
"""Begins the line before a block that cannot be run; the reason follows."""


class Snippet(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    reason: str
    """Why it is not run; empty when it is."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def of_page(page: str, text: str) -> list[Snippet]:
    """The blocks of a page that name a language."""
    found = []
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        before = text[: block.start()].rstrip("\n").rpartition("\n")[2]
        reason = before.removeprefix(NOT_RUN).removesuffix(" -->") if before.startswith(NOT_RUN) else ""
        line = text.count("\n", 0, block.start()) + 2
        found.append(Snippet(page, line, block[1], block[2], reason))
    return found


def every() -> list[Snippet]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [snippet for page in pages for snippet in of_page(page.relative_to(ROOT).as_posix(), page.read_text())]


def runnable(language: str) -> list[Snippet]:
    return [snippet for snippet in every() if snippet.language == language and not snippet.reason]
