"""An export of text alone, damaged and certified again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.dataset.verify import verify
from tests.support.damage import copied


def change_text(rows: list[Any]) -> None:
    rows[0]["messages"][-1]["content"] += "!"


def add_field(rows: list[Any]) -> None:
    rows[0]["messages"][-1]["name"] = "x"


LINES: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "a word added": (change_text, "row 0 (sample"),
    "lines exchanged": (
        lambda rows: rows.insert(0, rows.pop(1)),
        "its messages are not those of the dataset; the same",
    ),
    "a line lost": (lambda rows: rows.pop(), "lines, and manifest.json says"),
    "a field added": (add_field, "has 1 fields beside messages, role and content"),
    "the answer lost": (lambda rows: rows[0]["messages"].pop(), "no conversation that ends with the teacher's words"),
}


@pytest.mark.parametrize("kind", LINES)
def test_damaged_lines(exported: Path, tmp_path: Path, kind: str) -> None:
    change, expected = LINES[kind]
    folder = copied(exported, "openai", tmp_path, alone=False)
    rows = [json.loads(line) for line in folder.file(0).read_text().splitlines()]
    change(rows)
    folder.put(0, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    (problem,) = verify(str(folder.path), 1)["problems"]
    assert expected in problem
