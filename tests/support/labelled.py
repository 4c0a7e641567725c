"""Texts that people marked, and how well what a filter finds agrees with them, by language."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from stillhouse.stages.filters import Combined, unsafe_rows
from tests.support.data import ROOT

FOLDER = ROOT / "tests/stages/filters/labelled"
Scores = dict[str, tuple[int, int, int]]
"""By language: found and right, found and wrong, not found."""


def lines(path: Path) -> list[list[str]]:
    """Fields between tabs: the language, what the text is, the text."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def scores(
    rows: Sequence[list[str]], is_right: Callable[[list[str]], bool], is_found: Callable[[list[str]], bool]
) -> Scores:
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        right, said = is_right(row), is_found(row)
        if right or said:
            found[row[0]][0 if right and said else 1 if said else 2] += 1
            if right != said:
                print(row)
    return {language: (a, b, c) for language, (a, b, c) in found.items()}


def classified(classifier: Combined, rows: Sequence[list[str]]) -> Scores:
    """Prompts that some threshold takes, as screen would. Right are those that are not marked `no`."""
    found_N = unsafe_rows(classifier.score([row[2] for row in rows]), classifier.labels, classifier.thresholds)
    is_found = {id(row): bool(found) for row, found in zip(rows, found_N, strict=True)}
    return scores(rows, lambda row: row[1] != "no", lambda row: is_found[id(row)])
