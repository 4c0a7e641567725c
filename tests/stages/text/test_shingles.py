"""Shingles and normalised text, against an oracle that goes through a text character by character."""

import pytest

from stillhouse.stages.text.shingles import normalise, shingles
from tests.support.near_duplicates import CHAR_NGRAM, NGRAM, jaccard, oracle_shingles


def test_what_normalisation_takes_away() -> None:
    assert normalise(" Straße  №\u00a01\r\n\tｗｒｉｔｅ ") == "strasse no 1 write"
    assert normalise(normalise("Å\u3000ﬁn")) == normalise("A\u030a FIN") == "å fin"
    assert normalise(" \n\u3000") == ""


def test_an_edit_at_the_end_weighs_as_much_as_one_in_the_middle() -> None:
    text = "abcdefghijklmnopqrst"
    whole = shingles(text, NGRAM, CHAR_NGRAM)
    similarities = {
        round(jaccard(whole, shingles(f"{text[:i]}#{text[i + 1 :]}", NGRAM, CHAR_NGRAM)), 9) for i in range(len(text))
    }
    assert similarities == {round((24 - 5) / (24 + 5), 9)}


TEXTS = [
    "What is the capital of France?",
    "what is 2+2",
    "tell me, in a few words: which_one of these (two) is older, Rome or Athens?",
    "请用简单的语言解释一下什么是量子计算机，它和普通的计算机有什么不同",
    "東京から京都まで新幹線で行く場合の所要時間と料金を教えてください。",
    "ช่วยอธิบายวิธีทำต้มยำกุ้งแบบง่ายๆ",
    "请把 hello world 翻译成中文",
    "a",
    "",
    " \n",
    "!!! ??? ... *** +++ === --- ### @@@ ^^^ ~~~",
]


@pytest.mark.parametrize("text", TEXTS)
def test_as_the_oracle_counts_them(text: str) -> None:
    """The numbers of shingles, and the similarity to every other text."""
    ours = {other: shingles(other, NGRAM, CHAR_NGRAM) for other in TEXTS}
    exact = {other: oracle_shingles(other) for other in TEXTS}
    assert len(ours[text]) == len(exact[text]) > 0
    for other in TEXTS:
        assert jaccard(ours[text], ours[other]) == jaccard(exact[text], exact[other])
