"""A text as a set of shingles, fit for short prompts and for scripts without spaces."""

import re
import unicodedata
from functools import cache
from itertools import islice

from stillhouse.stages.text.reading import ENDS, UNSPACED

UNIT = re.compile(rf"[^\W{UNSPACED}]+|[^\s{ENDS}]")


def units(text: str) -> list[str]:
    """The text in NFKC and case-folded, as words (runs of word characters), characters of scripts written without
    spaces, and symbols; without white space and sentence punctuation. It finds texts that are alike."""
    return UNIT.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(reading: str, ngram: int) -> set[bytes]:
    """The set whose Jaccard similarity makes two texts near-duplicates; of a text's `reading`.

    A text of at least `2 * ngram` words gives all runs of `ngram` units. A shorter text is one shingle: it is like
    nothing but itself, because what differs in it is rarely a detail (12 or 13, Austria or Australia).
    """
    if not has_words(reading, 2 * ngram):
        return {reading.encode()}
    # Encoded in one go: no unit holds a space.
    pieces = " ".join(units(reading)).encode().split(b" ")
    return set(map(b" ".join, zip(*(islice(pieces, i, None) for i in range(ngram)), strict=False)))


def has_words(text: str, num_words: int) -> bool:
    """Whether the text has at least so many words; each character of a script without spaces counts as one."""
    return _words(num_words).match(text) is not None


@cache
def _words(num: int) -> re.Pattern[str]:
    """So many words with anything between them; what matched once is not tried in another way."""
    return re.compile(rf"(?:[^\w{UNSPACED}]*+(?:[^\W{UNSPACED}]++|[{UNSPACED}])){{{num}}}")
