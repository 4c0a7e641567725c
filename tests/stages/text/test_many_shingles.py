"""Shingles of many texts against those of each text."""

import random
import zlib
from itertools import pairwise

import numpy as np
import pytest

from stillhouse.stages.text import many_shingles
from stillhouse.stages.text.checksums import LONGEST
from stillhouse.stages.text.many_shingles import shingles_of
from stillhouse.stages.text.reading import reading
from stillhouse.stages.text.shingles import shingles, units
from tests.support.conversations import first_user_turns
from tests.support.texts import ODD_TEXTS, long_texts, texts_in_scripts

LONG_UNIT = "x" * (LONGEST + 1)
MADE = [
    *("", "two words", "\n\n", "a\n\nb", "_ _ _ _ _ _ _ _ _ _ a", "don't " * 12, "--a--b--c--d--e--f--g--h--i--j--"),
    *(
        f"{LONG_UNIT} a b c d e f g h i j k",
        f"a b c d e f g h i j k {LONG_UNIT}",
        "x" * LONGEST + " b c d e f g h i j k",
    ),
    *("\u00e9" * LONGEST + " a b c d e f g h i j", "\u00e9" * (LONGEST // 2) + " a b c d e f g h i j", "\u5199" * 30),
    "stra\u00dfe \ufb01n \u2167 \u00bd " * 5,
]


@pytest.mark.parametrize(("ngram", "at_once"), [(5, 1 << 17), (1, 300), (5, 1)])
def test_they_are_those_of_each_text(ngram: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some after a prefix, in any order."""
    monkeypatch.setattr(many_shingles, "AT_ONCE", at_once)
    odd = [text for text in ODD_TEXTS if not any(0xD800 <= ord(char) < 0xE000 for char in text)]
    texts = [reading(text) for text in first_user_turns(100) + texts_in_scripts(150) + long_texts() + odd] + MADE
    random.Random(0).shuffle(texts)
    prefixes = [zlib.crc32(b"system") if i % 3 == 0 else 0 for i in range(len(texts))]
    found = shingles_of(texts, prefixes, ngram)
    ends = np.cumsum(found.num_hashes).tolist()
    assert len(found.units) == len(ends) == len(texts)
    hashes = [found.hashes[i:j].tolist() for i, j in pairwise([0, *ends])]
    for text, prefix, ours, of_units in zip(texts, prefixes, hashes, found.units, strict=True):
        assert set(ours) == {zlib.crc32(shingle, prefix) for shingle in shingles(text, ngram)}, ascii(text[:200])
        assert of_units.decode() == "\n".join(units(text)), ascii(text[:200])


def test_no_texts() -> None:
    found = shingles_of([], [], 5)
    assert len(found.hashes) == len(found.num_hashes) == len(found.units) == 0
