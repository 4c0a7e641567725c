"""Fenced code of README.md, docs/*.md and the examples' README.md, as it is written. docs/training has tests of its own
(tests/trainers)."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.data import ROOT

OF_READERS = ("polars",)
"""Packages that this environment lacks: their blocks run in tests/readers."""
BEFORE = {
    "examples/distill_student/README.md": """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
sys.path.insert(0, {folder!r})
from distillation import *
student = LlamaForCausalLM(LlamaConfig(vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                       num_attention_heads=2))
""".replace("{folder!r}", repr(str(ROOT / "examples/distill_student")))
}
"""What a page takes for granted: the names that its code uses."""
NOT_RUN = "<!-- not run: "
"""Begins the line before a block that cannot be run; the reason follows."""


class Snippet(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    reason: str
    """Why it is not run; empty when it is."""

    @property
    def package(self) -> str:
        """The one of `OF_READERS` that it imports, or nothing."""
        return next((name for name in OF_READERS if re.search(rf"^import {name}\b", self.text, re.M)), "")

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


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("examples/*/README.md"))]


def every() -> list[Snippet]:
    return [snippet for page in pages() for snippet in of_page(page.relative_to(ROOT).as_posix(), page.read_text())]


def runnable(language: str, package: str = "") -> list[Snippet]:
    """The blocks of a language that run: those that import a package of `OF_READERS`, or of the others."""
    return [
        snippet
        for snippet in every()
        if snippet.language == language and not snippet.reason and snippet.package == package
    ]
