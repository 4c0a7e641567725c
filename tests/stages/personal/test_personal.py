"""How much personal information is found, in lines that were marked by hand; and what masks make of it.

The numbers in them are published examples: of ISO 13616, of card issuers, of python-stdnum's pages.
"""

import time
from collections import Counter
from typing import Any

import pytest

from stillhouse.schemas.config import PersonalConfig
from stillhouse.stages.personal import Find, Finder
from tests.stages.personal.labelled import labelled_lines

FLOORS = {
    "credential": (1.0, 0.9),
    "email": (1.0, 1.0),
    "iban": (1.0, 1.0),
    "national_id": (1.0, 0.65),
    "card": (1.0, 1.0),
    "ip": (0.83, 1.0),
    "mac": (0.88, 1.0),
    "street": (1.0, 0.25),
    "phone": (1.0, 0.95),
}
"""Precision and recall of each kind, as docs/curation.md has them."""


BY_LANGUAGE = {
    "English": (25, 1, 4), "German": (18, 0, 4), "French": (16, 1, 2), "Spanish": (16, 0, 3), "Portuguese": (17, 0, 2),
    "Chinese": (15, 0, 2), "Japanese": (14, 1, 2), "Russian": (16, 0, 3),
}  # fmt: skip
"""Found and right, found and wrong, not found, as docs/curation.md has them."""


def measured(finder: Finder) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By kind: found where it is, found where it is not, not found. A find counts if it is exact."""
    hits, wrong, missed = Counter[str](), Counter[str](), Counter[str]()
    for line in labelled_lines():
        found: set[Any] = {tuple(find) for find in finder.find(line.text, line.language)}
        hits.update(kind for _, _, kind in found & line.finds)
        wrong.update(kind for _, _, kind in found - line.finds)
        missed.update(kind for _, _, kind in line.finds - found)
    return hits, wrong, missed


def test_precision_and_recall() -> None:
    lines = labelled_lines()
    assert len(lines) >= 300
    assert len({line.language for line in lines}) == 8
    assert sum(not line.finds for line in lines) >= 150  # hard negatives
    hits, wrong, missed = measured(Finder(PersonalConfig()))
    for kind, (precision, recall) in FLOORS.items():
        assert hits[kind] / (hits[kind] + wrong[kind]) >= precision, kind
        assert hits[kind] / (hits[kind] + missed[kind]) >= recall, kind
    assert hits.total() / (hits.total() + wrong.total()) >= 0.975
    assert hits.total() / (hits.total() + missed.total()) >= 0.86


def test_every_language_keeps_its_precision_and_recall() -> None:
    finder, counts = Finder(PersonalConfig()), {language: [0, 0, 0] for language in BY_LANGUAGE}
    for line in labelled_lines():
        found: set[Any] = {tuple(find) for find in finder.find(line.text, line.language)}
        for place, finds in enumerate((found & line.finds, found - line.finds, line.finds - found)):
            counts[line.language][place] += len(finds)
    print({language: f"{a}/{a + b} {a}/{a + c}" for language, (a, b, c) in counts.items()})
    for language, (right, wrong, missed) in BY_LANGUAGE.items():
        assert counts[language][0] >= right, language
        assert counts[language][1] <= wrong, language
        assert counts[language][2] <= missed, language


def found(text: str, language: str | None = None, **config: Any) -> list[tuple[str, str]]:
    return [(find.kind, text[find.start : find.end]) for find in Finder(PersonalConfig(**config)).find(text, language)]


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("iban", "GB29 NWBK 6016 1331 9268 19"),
        ("card", "4242 4242 4242 4242"),
        ("national_id", "390.533.447-05"),
        ("national_id", "11010519491231002X"),
    ],
)
def test_a_wrong_check_digit_is_no_number(kind: str, number: str) -> None:
    assert found(f"see {number}, ok") == [(kind, number)]
    place = next(i for i, letter in enumerate(number) if i > 6 and letter.isdigit())
    other = number[:place] + str((int(number[place]) + 1) % 10) + number[place + 1 :]
    assert found(f"see {other}, ok") == []


def test_language_decides_how_telephones_are_written() -> None:
    text = "06 12 34 56 78 and +49 30 12345678"
    assert found(text, "French") == [("phone", "06 12 34 56 78"), ("phone", "+49 30 12345678")]
    assert found(text, "fr-FR") == found(text, "French")
    for language in (None, "unknown", "English"):
        assert found(text, language) == [("phone", "+49 30 12345678")]


def test_kinds_and_placeholders() -> None:
    text = "NAME_1: a@web.de, 85.214.132.117; not MY_NAME_1"
    assert found(text, kinds=["ip"]) == [("ip", "85.214.132.117")]
    assert found(text, kinds=["ip"], placeholders="keep") == [("placeholder", "NAME_1"), ("ip", "85.214.132.117")]


def test_finds_are_not_within_others() -> None:
    text = "mail 415-555-2671@web.de or 4242 4242 4242 4242"
    assert [kind for kind, _ in found(text, "English")] == ["email", "card"]


def test_masks_tell_same_from_other() -> None:
    finder = Finder(PersonalConfig(placeholders="keep"))
    texts = ["a@web.de, b@web.de and a@web.de", "NAME_1 is b@web.de, call +49 30 12345678"]
    masked, counts = finder.masked(texts, "English")
    assert masked == ["EMAIL_1, EMAIL_2 and EMAIL_1", "NAME_1 is EMAIL_2, call PHONE_1"]
    assert {kind: n for kind, n in counts.items() if n} == {"email": 4, "phone": 1, "placeholder": 1}
    assert finder.masked(masked, "English")[0] == masked


def test_a_masked_line_holds_nothing_more() -> None:
    finder = Finder(PersonalConfig())
    for line in labelled_lines():
        (masked,), counts = finder.masked([line.text], line.language)
        assert finder.find(masked, line.language) == [], masked
        assert sum(counts.values()) == len(finder.find(line.text, line.language))


def test_a_private_key_is_masked_as_a_whole() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabc/+=\n-----END RSA PRIVATE KEY-----"
    assert found(f"is\n{key}\nfine?") == [("credential", key)]


@pytest.mark.parametrize("text", ["12 34 56 78 ", "a.", "://a", "AB12 CDEF ", "1.2.3.4.", "eyJhbGciOiJIUzI1NiIs"])
def test_time_is_linear(text: str) -> None:
    """A hundred thousand letters take a second or two; a pattern that goes back and forth takes minutes."""
    start = time.process_time()
    found(text * (100_000 // len(text)) + "@1", "English")
    assert time.process_time() - start < 10


def test_find_is_a_place() -> None:
    assert Finder(PersonalConfig()).find("a@web.de", None) == [Find(0, 8, "email")]
