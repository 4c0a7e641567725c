"""How well language, code and task are told, against what people marked: floors by language.

The lines were written for these tests before any of the three was tried on them. They are short, as prompts are, and
easy: no estimate for a data set.
"""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from stillhouse.stages.kinds.code import code_share, without_code
from stillhouse.stages.kinds.language import Languages
from stillhouse.stages.kinds.lengths import length
from stillhouse.stages.kinds.tasks import TASKS, task

FOLDER = Path(__file__).parent / "labelled"
Counts = dict[str, list[int]]


def lines(name: str) -> list[list[str]]:
    rows = (FOLDER / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    return [row.replace("\\n", "\n").split("\t") for row in rows]


@pytest.fixture(scope="module")
def languages() -> Languages:
    return Languages(0.5)


def test_code_is_told_from_prose() -> None:
    wrong = [(said, text) for said, text in lines("code") if (code_share(text) > 0) != (said == "yes")]
    assert wrong == []
    assert {said for said, _ in lines("code")} == {"yes", "no"}


def table(found: Counts) -> str:
    """As docs/curation.md has it."""
    return "\n".join(
        f"{name} {right}/{right + wrong} {right}/{right + missed}" for name, (right, wrong, missed) in found.items()
    )


def test_languages_are_found_or_left_open(languages: Languages) -> None:
    """Right, wrong and not found by language; two lines that quote another language longer than they are, are wrong."""
    found: Counts = defaultdict(lambda: [0, 0, 0])
    for said, text in lines("language"):
        code, score = languages.find(text)
        assert (code is None) == (score == 0.0)
        if code == said:
            found[said][0] += 1
            continue
        if code is not None:
            found[code][1] += 1
        if said != "-":
            found[said][2] += 1
    print(table(found))
    assert len(found) == 24
    right, _wrong, missed = (sum(counts[place] for counts in found.values()) for place in range(3))
    assert right + missed == 221
    assert {name: counts[1] for name, counts in found.items() if counts[1]} == {"en": 2}
    assert right / (right + missed) >= 0.93
    weak = {name for name, counts in found.items() if counts[0] < 0.75 * (counts[0] + counts[2])}
    assert weak <= {"uk", "hi"}, "7 of 10 and 5 of 8"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(x):\n    return x\n", None),
        ("Was macht dieser Code hier?\n```python\nfor item in the_list_of_words:\n    print(item)\n```", "de"),
        ("Schau dir https://www.example.com/the/best/english/words/you/can/read an und erzähl mir davon", "de"),
        ("Was genau steht da? https://example.com/the/house/of/the/old/man/and/the/sea/written/by/him", "de"),
        ("帮我用Python写一个快速排序算法", "zh"),
        ("日本語で東京の歴史を説明してください", "ja"),
        ("天気", None),
        ("مرحبا كيف حالك اليوم يا صديقي", "ar"),
        ("", None),
        ("\ud7ff\0 \u200b", None),
    ],
)  # fmt: skip
def test_what_is_no_language_does_not_count(languages: Languages, text: str, code: str | None) -> None:
    assert languages.find(text)[0] == code


def test_less_certain_languages_are_none() -> None:
    text = "Skriv en kort dikt om havet"
    assert Languages(0.95).find(text) == (None, 0.0)
    assert Languages(0.0).find(text)[0] in {"sv", "da"}


def test_tasks_are_told_by_what_is_asked() -> None:
    rows = lines("tasks")
    wrong = [(said, task(text), text) for _, said, text in rows if task(text) != said]
    by_language = Counter(language for language, _, _ in rows)
    assert len(by_language) == 10
    assert {said for _, said, _ in rows} == set(TASKS)
    assert len(wrong) <= 2, wrong
    assert task("") == "other"
    assert task("x" * 10**6) == "other"
    assert task("def f():\n    return 1") == "code"
    long = "Here is what I wrote. " * 100
    assert task(f"{long}\nNow summarize it") == "summarize"
    assert task(f"{long} summarize {long}") != "summarize", "only the ends are read"


def test_the_share_of_code_is_that_of_its_characters() -> None:
    assert code_share("print('hello world')") == 1.0
    assert code_share("```\n" + "x" * 50 + "\n```\n" + "y" * 50) == pytest.approx(0.5)
    assert code_share("What does this line of my notes from yesterday mean?\nx = 5") == 0.0
    assert code_share("") == code_share(" \n") == 0.0
    assert without_code("Was macht das?\n```\nfor x in y:\n```\nprint(1)\nDanke").split() == [
        "Was", "macht", "das?", "Danke"
    ]  # fmt: skip


def test_lines_that_are_no_code_take_no_time() -> None:
    import time

    hostile = [
        "a" * 499,
        "(" * 499,
        "x=" * 249,
        " " * 498 + "x",
        "<a " * 166,
        "a.b" * 166 + "(",
        "select " * 70,
        '"' * 499,
    ]
    started = time.process_time()
    for text in hostile:
        code_share("\n".join([text] * 200))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("characters", "step"),
    [(0, "0-64"), (64, "0-64"), (65, "65-256"), (1024, "257-1024"), (4096, "1025-4096"), (4097, "4097-")],
)  # fmt: skip
def test_steps_of_length(characters: int, step: str) -> None:
    assert length(["a" * (characters // 2), "b" * (characters - characters // 2)]) == step
