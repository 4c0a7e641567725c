"""Checksums of runs and shingles of many texts against zlib, one by one."""

import random
import zlib

import numpy as np
import pytest

from stillhouse.stages.text import checksums
from stillhouse.stages.text.checksums import LONGEST, run_checksums
from stillhouse.stages.text.reading import reading
from stillhouse.stages.text.shingles import Shingles, shingles, units
from tests.support.conversations import first_user_turns


@pytest.mark.parametrize("ngram", [1, 2, 5, 9])
def test_runs_are_those_of_zlib(ngram: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts without units, shorter than a run, over the edge of a piece; units of 1 byte and of the most."""
    monkeypatch.setattr(checksums, "_AT_ONCE", 7)
    rng = random.Random(ngram)
    texts = [[rng.randbytes(rng.choice((1, 4, LONGEST))) for _ in range(num)] for num in (0, 3, 12, 1, 0, 9, 40, 0)]
    flat = [unit for text in texts for unit in text]
    crc_U = np.array([zlib.crc32(unit) for unit in flat], np.uint32)
    length_U = np.array([len(unit) for unit in flat], np.uint32)
    run_G, num = run_checksums(crc_U, length_U, np.cumsum([len(text) for text in texts]), ngram)
    expected = [
        [zlib.crc32(b" ".join(text[i : i + ngram])) for i in range(max(len(text) - ngram + 1, 0))] for text in texts
    ]
    assert num.tolist() == [len(of_text) for of_text in expected]
    assert run_G.tolist() == [value for of_text in expected for value in of_text]


def test_shingles_of_many_texts_are_those_of_each() -> None:
    """Real ones; short ones, some after a prefix, some with a unit that is too long, in any order."""
    long_unit = "x" * (LONGEST + 1)
    made = [
        "",
        "two words",
        f"{long_unit} " + "a b c d e f g h i j k",
        "é" * LONGEST + " a b c d e f g h i j",
        "写" * 30,
    ]
    texts = [reading(text) for text in first_user_turns(300) + made]
    random.Random(0).shuffle(texts)
    together = Shingles(5)
    prefixes = [zlib.crc32(b"system") if i % 3 == 0 else 0 for i in range(len(texts))]
    for text, prefix in zip(texts, prefixes, strict=True):
        assert together.add(text, prefix) == "\n".join(units(text))
    hash_H, num_N = together.hashes()
    found = np.split(hash_H, np.cumsum(num_N)[:-1])
    for text, prefix, hashes in zip(texts, prefixes, found, strict=True):
        assert set(hashes.tolist()) == {zlib.crc32(shingle, prefix) for shingle in shingles(text, 5)}


def test_no_texts() -> None:
    hash_H, num_N = Shingles(5).hashes()
    assert len(hash_H) == len(num_N) == 0
