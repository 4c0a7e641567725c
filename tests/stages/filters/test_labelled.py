"""How well the filters of what texts say find what people marked: precision and recall by language, as floors.

The sets were written for these tests, not taken from answers of models: figures are about kinds of sentences, not about
their share in a data set.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.filters import labelled as judged
from stillhouse.schemas.config import DecontaminationConfig, IdentityConfig, JailbreaksConfig, ProfanityCheckConfig
from stillhouse.stages.filters import Combined, combined, refusals
from stillhouse.stages.filters.contamination import Contamination
from stillhouse.stages.filters.identity import Identity
from stillhouse.stages.filters.low_information import is_low
from tests.support import labelled
from tests.support.data import ROOT
from tests.support.labelled import FOLDER, Scores, scores


def lines(name: str) -> list[list[str]]:
    return labelled.lines(FOLDER / f"{name}.tsv")


def identity() -> Scores:
    judge = Identity(IdentityConfig(own=["Gemma", "Google DeepMind"]))
    return scores(lines("identity"), lambda row: row[1] == "yes", lambda row: judge.is_mistaken(row[2], row[3]))


def of_kind(kind: str) -> Scores:
    return scores(lines("refusals"), lambda row: row[1] == kind, lambda row: refusals.kind(row[2]) == kind)


def low_information() -> Scores:
    return scores(lines("low_information"), lambda row: row[1] == "yes", lambda row: is_low(row[2]))


SETS: dict[str, Callable[[], Scores]] = {
    "mistaken_identity": identity,
    "refusal": lambda: of_kind("refusal"),
    "hedge": lambda: of_kind("hedge"),
    "low_information": low_information,
}


def items_found(name: str) -> Scores:
    """Of lines that hold an item whole, in capitals, most of it, or in other words; and of lines that only look like
    it."""
    rows, sets = lines(name), [{"name": "x", "path": "/x", "columns": ["text"]}]
    items = [(f"x/{number}", row[2]) for number, row in enumerate(rows) if row[1] == "item"]
    matches = (
        DecontaminationConfig.model_validate({"evaluations": sets})
        if name == "contamination"
        else JailbreaksConfig.model_validate({"templates": sets})
    )
    index = Contamination(matches, items, name)
    asked = [row for row in rows if row[1] != "item"]
    return scores(asked, lambda row: row[1] == "yes", lambda row: index.find(row[2])[0] >= matches.threshold)


@pytest.mark.parametrize(("name", "languages"), [("contamination", 10), ("jailbreak", 6)])
def test_items_are_found_unless_they_are_told_in_other_words(name: str, languages: int) -> None:
    found = items_found(name)
    assert len(found) == languages
    assert set(found.values()) == {(3, 0, 1)}, "three of four ways, and nothing else"


def profanity(threshold: float) -> Combined:
    return combined([ProfanityCheckConfig(name="profanity-check", thresholds={"profanity": threshold})])


def test_profanity_is_told_in_english_alone() -> None:
    """A word with another meaning is taken too: a breeder's."""
    found = labelled.classified(profanity(0.9), lines("profanity"))
    assert found.pop("en") == (14, 1, 0)
    assert set(found.values()) == {(0, 0, 3)}
    assert len(found) == 6


def test_profanity_is_not_all_that_is_unsafe() -> None:
    """Requests pass, and so do threats and insults without a swear word."""
    found = labelled.classified(profanity(0.9), lines("unsafe"))
    assert len(found) == 11
    assert found.pop("en") == (3, 0, 3)
    assert set(found.values()) == {(0, 0, 3)}


@pytest.mark.parametrize("name", SETS)
def test_every_language_keeps_its_precision_and_recall(name: str) -> None:
    found = SETS[name]()
    print({language: f"{a}/{a + b} {a}/{a + c}" for language, (a, b, c) in found.items()})
    assert len(found) >= 8
    for language, (_right, wrong, missed) in found.items():
        assert wrong == 0, (language, "precision")
        assert missed == 0, (language, "recall")


def test_the_sets_are_as_large_as_the_page_says() -> None:
    total = sum(len(lines(path.stem)) for path in FOLDER.glob("*.tsv"))
    assert total >= 200
    assert f"{total} lines" in (ROOT / "docs/curation.md").read_text()


def test_the_classifiers_of_a_configuration_are_judged(raw_config: dict[str, Any], tmp_path: Path) -> None:
    """By the command that measures those whose weights a user has."""
    raw_config["screen"] = {"classifiers": [{"name": "profanity-check"}]}
    (tmp_path / "c.yaml").write_text(json.dumps(raw_config))
    told = judged(tmp_path / "c.yaml", FOLDER / "profanity.tsv")["profanity"]
    assert told["by language"] == {"en": "14/15; 14/14"} | dict.fromkeys(
        ("es", "pt", "fr", "de", "ru", "zh"), "0/0; 0/3"
    )
    assert told["taken"] == {"yes": "14/32", "no": "1/28"}
