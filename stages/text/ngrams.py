"""Runs of words as numbers, alike in case, punctuation, width and script: what finds a text inside of another.

A run is as long in every script: it begins at a unit and goes on until it holds as much text as `ngram` words do. A
word counts `WORD`, a character of a script without spaces what it holds of one. So do letters of Indian scripts, whose
words `units` parts at each vowel sign.

Shape legend: U units of a text, G runs.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.stages.text.reading import ENDS
from stillhouse.stages.text.shingles import units

WORD = 5
"""What a word counts."""
_SENTENCE_END = re.compile(rf"(?:[{ENDS}](?=\s)|[\u3002\uff01\uff1f\n])+")
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Runs(NamedTuple):
    """The runs of a text, in order."""

    hashes: NDArray[np.uint64]  # [G]
    starts: NDArray[np.int32]  # [G] where a run begins: what all units before it count
    lengths: NDArray[np.int32]  # [G] what its units count


class Words:
    """The words of a text, read once: its runs, and what its sentences and lines are."""

    def __init__(self, text: str) -> None:
        self._pieces = [
            [[_weighed(unit) for unit in _words(part)] for part in _SENTENCE_END.split(line)]
            for line in text.splitlines()
        ]
        self._units = [unit for line in self._pieces for part in line for unit in part]
        self.total = sum(unit.weight for unit in self._units)
        """What all units count."""

    def runs(self, ngram: int) -> Runs:
        """All runs of `ngram` words; none of a text that is shorter. Two of them are equal where their words are."""
        num_units, length = len(self._units), ngram * WORD
        ends_U = np.zeros(num_units + 1, np.int64)
        np.cumsum(np.fromiter((unit.weight for unit in self._units), np.int64, num_units), out=ends_U[1:])
        num_runs = int(np.searchsorted(ends_U, self.total - length, side="right")) if self.total >= length else 0
        starts_G = ends_U[:num_runs]
        end_G = np.searchsorted(ends_U, starts_G + length, side="left")
        hash_U = np.fromiter((unit.hash for unit in self._units), np.uint64, num_units)
        return Runs(
            _hashes(hash_U, np.arange(num_runs), end_G),
            starts_G.astype(np.int32),
            (ends_U[end_G] - starts_G).astype(np.int32),
        )

    def whole(self) -> int:
        """A hash of all letters. Where words are parted does not matter."""
        return _hash_of(self._units)

    def sentences(self, least: int, most: int) -> Iterator[int]:
        """A hash as that of `whole` for the text, each of its lines and each of its sentences, of those whose units
        count `least` to `most`."""
        parts = [self._units]
        for line in self._pieces:
            parts.append([unit for part in line for unit in part])
            parts += line if len(line) > 1 else []
        for part in parts:
            # The cheap test first: most lines are shorter or longer than what is looked for.
            if len(part) <= most and least <= sum(unit.weight for unit in part) <= most:
                yield _hash_of(part)


class _Unit(NamedTuple):
    text: str
    weight: int
    hash: int


def _words(text: str) -> list[str]:
    """The units that say something: without quotes, brackets, signs and marks of emphasis."""
    found = units(text)
    return [unit for unit in found if unit[0].isalnum() or unicodedata.category(unit[0])[0] == "M"]


@functools.lru_cache(1 << 18)
def _weighed(unit: str) -> _Unit:
    first, weight = ord(unit[0]), WORD
    if 0x0900 <= first < 0x10A0 or 0x1780 <= first < 0x1800:  # of India, Thai, Lao, Myanmar, Khmer
        weight = len(unit)
    elif first >= 0x2E80 and len(unit) == 1 and not 0xAC00 <= first < 0xD7B0:
        weight = 2 if 0x3041 <= first <= 0x31FF else 3  # kana, Han
    return _Unit(unit, weight, _hash(unit))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def _hash_of(found: list[_Unit]) -> int:
    return _hash("".join([unit.text for unit in found]))


def _hashes(hash_U: NDArray[np.uint64], begin_G: NDArray[np.int64], end_G: NDArray[np.int64]) -> NDArray[np.uint64]:
    """[G]: a polynomial of the units from `begin_G` to `end_G`, the same wherever they stand. Modulo 2^64, in which the
    base has an inverse."""
    powers_U = np.full(len(hash_U) + 1, _BASE, np.uint64)
    inverses_U = np.full(len(hash_U) + 1, _INVERSE, np.uint64)
    powers_U[0] = inverses_U[0] = 1
    powers_U, inverses_U = np.multiply.accumulate(powers_U), np.multiply.accumulate(inverses_U)
    sums_U = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hash_U * powers_U[:-1], dtype=np.uint64)])
    mixed_G: NDArray[np.uint64] = (sums_U[end_G] - sums_U[begin_G]) * inverses_U[begin_G]
    mixed_G = (mixed_G ^ (mixed_G >> np.uint64(30))) * _MIX[0]
    mixed_G = (mixed_G ^ (mixed_G >> np.uint64(27))) * _MIX[1]
    return mixed_G ^ (mixed_G >> np.uint64(31))
