"""Runs of words: as long in every script, the same wherever they stand."""

import numpy as np
import pytest

from stillhouse.stages.text.ngrams import Words


@pytest.mark.parametrize(
    ("character", "space", "shortest"),
    [
        ("word", " ", 8),
        ("слово", " ", 8),
        ("사과", " ", 8),
        ("字", "", 14),
        ("か", "", 20),
        ("ก", "", 40),
        ("क", " ", 40),
    ],
)
def test_a_run_of_eight_words_in_every_script(character: str, space: str, shortest: int) -> None:
    for num, runs in ((shortest - 1, 0), (shortest, 1), (shortest + 4, 5)):
        assert len(Words(space.join([character] * num)).runs(8).hashes) == runs


def test_a_run_is_the_same_wherever_it_stands() -> None:
    words = [f"entry{i}" for i in range(30)]
    alone = Words(" ".join(words[10:18])).runs(8).hashes
    inside = Words(" ".join(words)).runs(8)
    assert np.flatnonzero(inside.hashes == alone[0]).tolist() == [10]
    assert inside.starts[10] == 50
    assert len(np.unique(inside.hashes)) == 23
    assert Words(" ".join(reversed(words[10:18]))).runs(8).hashes[0] != alone[0]
