"""A text as a set of shingles, fit for short prompts and for scripts without spaces."""

import re
import unicodedata

# Letters of scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, Han, kana, bopomofo.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u30ff\u3105-\u312f"
    r"\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
    r"\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[^\W{_UNSPACED}]+|[{_UNSPACED}]")
_UNIT = re.compile(rf"[^\W{_UNSPACED}]+|\S")
# Stands for what is before the first and after the last character. A text that holds a NUL itself may at worst share a
# shingle with another text's edge.
_EDGE = "\0"


def normalise(text: str) -> str:
    """The text in NFKC, case-folded, stripped, each run of white space one space. Two texts are equal if these are."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str, ngram: int, char_ngram: int) -> set[bytes]:
    """The set whose Jaccard similarity makes two texts near-duplicates.

    A unit is a word (a run of word characters), a character of a script written without spaces, or a symbol. A text of
    at least `2 * ngram` words gives all runs of `ngram` units. A shorter text is padded with `char_ngram - 1` edge
    characters on both sides and gives all runs of `char_ngram` characters, so that a change of its last character
    weighs as much as one in its middle. Symbols are not words: one full stop more or less must not move a text from one
    kind of shingle to the other.
    """
    text = normalise(text)
    if _num_words_at_least(text, 2 * ngram):
        units = _UNIT.findall(text)
        windows = zip(*(units[i:] for i in range(ngram)), strict=False)
        return {" ".join(window).encode() for window in windows}
    n = char_ngram
    edge = _EDGE * (n - 1)
    padded = edge + text + edge
    return {padded[i : i + n].encode() for i in range(len(padded) - n + 1)}


def _num_words_at_least(text: str, num_words: int) -> bool:
    return any(i == num_words for i, _ in enumerate(_WORD.finditer(text), start=1))
