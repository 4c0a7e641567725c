"""Loops in token ids, against the definition read off token by token."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas.config import ReviewConfig
from stillhouse.stages.text.loops import longest_loops
from tests.support.answers import tokens


def loops(*rows: Sequence[int], min_repeats: int = 4) -> list[int]:
    return longest_loops(pa.chunked_array([pa.array(rows, pa.list_(pa.int32()))]), min_repeats).tolist()


def plain_loop(answer: Sequence[int], min_repeats: int) -> int:
    """The definition, read off token by token."""
    longest = 0
    for p in range(1, len(answer)):
        run = 0
        for i in range(p, len(answer)):
            run = run + 1 if answer[i] == answer[i - p] else 0
            if run + p >= max(min_repeats * p, 8):
                longest = max(longest, run + p)
    return longest


@pytest.mark.parametrize("period", [1, 3, 40, 256])
def test_loops_of_a_period(period: int) -> None:
    before, after = list(range(1000, 1050)), list(range(2000, 2050))
    piece = list(range(period))
    for repeats, rest in ((4, 0), (9, 0), (9, period // 2)):
        loop = piece * repeats + piece[:rest]
        expected = len(loop) if len(loop) >= 8 else 0
        assert loops(tokens([*before, *loop, *after]), tokens(loop), tokens([*before, *loop])) == [expected] * 3
    # One token short of four copies, and four copies of which one differs.
    assert loops(tokens([*before, *(piece * 4)[:-1], *after])) == [0]
    assert loops(tokens([*piece * 2, 9999, *piece * 2])) == [0]
    assert loops(tokens(piece * 4), min_repeats=5) == [0]


def test_longer_periods_are_not_looked_for() -> None:
    assert loops(tokens(list(range(257)) * 5)) == [0]


def test_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    answers = [rng.integers(0, rng.integers(1, 5), rng.integers(0, 60)).tolist() for _ in range(300)]
    expected = [plain_loop(answer, 3) for answer in answers]
    assert loops(*map(tokens, answers), min_repeats=3) == expected
    assert 50 < np.count_nonzero(expected) < 250
    # All of them in rows of three turns, the longest counts.
    triples = [answers[i : i + 3] for i in range(0, 300, 3)]
    maxima = [max(expected[i : i + 3]) for i in range(0, 300, 3)]
    assert loops(*(tokens(*triple) for triple in triples), min_repeats=3) == maxima


def test_a_loop_ends_with_its_answer() -> None:
    half = [5] * 40
    assert loops(tokens(half, half)) == [40], "two turns"
    assert loops(half, half, [], half[:3]) == [40, 40, 0, 0], "rows of nothing but answer"
    assert loops([-100] * 300) == [0], "a prompt is not an answer"


def test_the_shortest_loop() -> None:
    assert loops(tokens([1] * 7), tokens([1] * 8)) == [0, 8]


NEAR_LOOPS = {
    "numbered list": "\n".join(f"{i}. Check that item number {i} is there and tick it." for i in range(1, 40)),
    "table": "| name | count | share |\n| --- | --- | --- |\n"
    + "\n".join(f"| row {chr(97 + i)} | {i * i} | {i / 7:.2f} |" for i in range(26)),
    "code": "\n".join(f"    if x == {i}:\n        return values[{i * 3 % 26}]" for i in range(30)),
    "rule": "Heading\n" + "=" * 40 + "\n\nText under it.",
    "refrain": "\n\n".join(f"{'abcdefgh'[i] * 5} verse {i}\nla la la la\nsing it again" for i in range(8)),
}


@pytest.mark.parametrize("name", NEAR_LOOPS)
def test_near_loops_are_no_loops(name: str) -> None:
    # One token per character is the hardest case: the pieces that do repeat are longest.
    answer = [ord(character) for character in NEAR_LOOPS[name]]
    [loop_tokens] = loops(tokens(answer))
    assert loop_tokens < ReviewConfig().loop_tokens
    assert loops(tokens([ord(c) for c in "and again and again" * 20])) == [380]
