"""Shingles of a reading, against an oracle that goes through it character by character."""

import pytest

from stillhouse.stages.text.shingles import has_words, shingles, units
from tests.support.near_duplicates import NGRAM, jaccard, oracle_shingles


def test_units() -> None:
    assert units(" Straße  №\u00a01,5?\r\n\tｗｒｉｔｅ(A) ") == ["strasse", "no", "1", "5", "write", "(", "a", ")"]
    assert units("A\u030a FIN") == units("Å ﬁn") == ["å", "fin"]
    assert units("写诗。ok") == ["写", "诗", "ok"]
    assert units(" \n\u3000?!") == []


TEXTS = [
    "what is the capital of France",
    "what is 2+2",
    "tell me, in a few words: which_one of these (two) is older, Rome or Athens?",
    "请用简单的语言解释一下什么是量子计算机，它和普通的计算机有什么不同",
    "東京から京都まで新幹線で行く場合の所要時間と料金を教えてください。",
    "ช่วยอธิบายวิธีทำต้มยำกุ้งแบบง่ายๆ",
    "请把 hello world 翻译成中文",
    "a",
    "",
    "!!! ??? ... *** +++ === --- ### @@@ ^^^ ~~~",
]


@pytest.mark.parametrize("text", TEXTS)
def test_as_the_oracle_counts_them(text: str) -> None:
    """The numbers of shingles, and the similarity to every other text."""
    ours = {other: shingles(other, NGRAM) for other in TEXTS}
    exact = {other: oracle_shingles(other) for other in TEXTS}
    assert len(ours[text]) == len(exact[text]) > 0
    for other in TEXTS:
        assert jaccard(ours[text], ours[other]) == jaccard(exact[text], exact[other])


def test_nine_words_are_one_shingle_and_ten_are_six() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    assert [len(shingles(" ".join(words[:n]), NGRAM)) for n in (9, 10)] == [1, 6]
    assert [len(shingles("一二三四五六七八九十"[:n], NGRAM)) for n in (9, 10)] == [1, 6]


def test_words_are_counted_in_every_script() -> None:
    for text, num in [("two words", 2), ("中文 ok", 3), ("?! ...", 0), ("", 0), ("a_b c-d", 3)]:
        assert has_words(text, num)
        assert not has_words(text, num + 1)
