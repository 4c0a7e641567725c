"""A text as a set of shingles, fit for short prompts and for scripts without spaces; one text, or many at once.

Shape legend: N texts, U units of all texts, H hashes of all texts.
"""

import re
import unicodedata
import zlib
from array import array
from itertools import islice, repeat

import numpy as np
from numpy.typing import NDArray

from stillhouse.stages.text.checksums import LONGEST, run_checksums
from stillhouse.stages.text.reading import ENDS, UNSPACED

_WORD = re.compile(rf"[^\W{UNSPACED}]+|[{UNSPACED}]")
_UNIT = re.compile(rf"[^\W{UNSPACED}]+|[^\s{ENDS}]")


def units(text: str) -> list[str]:
    """The text in NFKC and case-folded, as words (runs of word characters), characters of scripts written without
    spaces, and symbols; without white space and sentence punctuation. It finds texts that are alike."""
    return _UNIT.findall(unicodedata.normalize("NFKC", text).casefold())


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
    return num_words == 0 or any(i == num_words for i, _ in enumerate(_WORD.finditer(text), start=1))


class Shingles:
    """The hashes of the shingles of many texts: the CRC-32 of what `shingles` gives, repeated ones included. The
    checksums of runs are computed from those of their units, of all texts at once."""

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram
        self._num_texts = 0
        self._crc, self._length = array("I"), array("I")  # of the units of long texts
        self._ends: list[int] = []
        self._long: list[tuple[int, str, int]] = []  # these texts: number, reading, prefix
        self._other = array("I")  # hashes of the other texts
        self._num_other: list[tuple[int, int]] = []

    def add(self, reading: str, prefix: int = 0) -> str:
        """Takes the text with this `reading`, whose shingles are hashed after what has the checksum `prefix`. Returns
        its `units`, parted by line breaks."""
        found = "\n".join(units(reading))
        if prefix or not has_words(reading, 2 * self._ngram):
            self._add_other(self._num_texts, reading, prefix)
        else:
            pieces = found.encode().split(b"\n")
            self._crc.extend(map(zlib.crc32, pieces))
            self._length.extend(map(len, pieces))
            self._ends.append(len(self._crc))
            self._long.append((self._num_texts, reading, prefix))
        self._num_texts += 1
        return found

    def hashes(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """[H], text after text, and how many each has [N]."""
        crc_U, length_U = np.array(self._crc, np.uint32), np.array(self._length, np.uint32)
        ends = np.array(self._ends, np.int64)
        long_H, num_runs = run_checksums(crc_U, np.minimum(length_U, LONGEST), ends, self._ngram)
        too_long = {int(np.searchsorted(ends, unit, side="right")) for unit in np.flatnonzero(length_U > LONGEST)}
        for i in sorted(too_long):
            self._add_other(*self._long[i])
        num_N = np.zeros(self._num_texts, np.int64)
        of_long = np.array([number for number, _, _ in self._long], np.int64)
        of_other = np.array([number for number, _ in self._num_other], np.int64)
        is_right = np.ones(len(of_long), bool)
        is_right[sorted(too_long)] = False
        num_N[of_long] = num_runs
        num_N[of_other] = [num for _, num in self._num_other]
        kept = np.repeat(is_right, num_runs)
        owner = np.concatenate([np.repeat(of_long, num_runs)[kept], np.repeat(of_other, num_N[of_other])])
        hash_H = np.concatenate([long_H[kept], np.array(self._other, np.uint32)])
        return hash_H[np.argsort(owner, kind="stable")], num_N

    def _add_other(self, number: int, reading: str, prefix: int) -> None:
        before = len(self._other)
        self._other.extend(map(zlib.crc32, shingles(reading, self._ngram), repeat(prefix)))
        self._num_other.append((number, len(self._other) - before))
