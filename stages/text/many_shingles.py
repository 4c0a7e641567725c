"""The shingles of many texts at once, as numbers: what `text.shingles` gives for each.

All texts lie in one array of bytes, in which units are found and hashed by arithmetic on the whole of it. Texts in
ASCII and others are taken apart from each other.

Shape legend: N texts, H hashes, C characters, B bytes, U units, all of all texts.
"""

import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.stages.text.characters import CharacterTable, together
from stillhouse.stages.text.checksums import LONGEST, run_checksums, unit_checksums
from stillhouse.stages.text.shingles import UNIT, has_words, shingles

AT_ONCE = 1 << 17
"""Characters of the texts that are taken together, or one longer text: their arrays stay in a core's cache."""
_BEFORE = "\n" * 8
"""What stands before the first text, for `unit_checksums`."""
_OF_A_WORD, _BY_ITSELF = 1, 2
_DROPPED = np.uint8(0xFF)  # no text in UTF-8 holds it


def _kind(char: str) -> int:
    if not UNIT.match(char):
        return 0
    return _OF_A_WORD if UNIT.fullmatch(char + "a") else _BY_ITSELF


_KINDS = CharacterTable(_kind)


class Shingles(NamedTuple):
    """The shingles of many texts."""

    hashes: NDArray[np.uint32]
    """[H], text after text: the CRC-32 of what `shingles` gives, repeated ones included."""
    num_hashes: NDArray[np.int64]
    """[N]: how many of them each text has."""
    units: list[bytes]
    """[N]: the `units` of each text in UTF-8, parted by line breaks."""


class _Part(NamedTuple):
    """Hashes of some texts, in any order of the texts."""

    numbers: NDArray[np.int64]
    num_hashes: NDArray[np.int64]
    hashes: NDArray[np.uint32]


def shingles_of(readings: Sequence[str], prefixes: Sequence[int], ngram: int) -> Shingles:
    """The shingles of texts with these `reading`s, hashed after what has the checksums `prefixes`."""
    units = [b""] * len(readings)
    is_ascii = [reading.isascii() for reading in readings]
    groups = ([i for i, holds in enumerate(is_ascii) if holds == wanted] for wanted in (True, False))
    parts = [
        part
        for group in groups
        for numbers in together(group, readings, AT_ONCE)
        for part in _parts(numbers, readings, prefixes, ngram, units)
    ]
    number_N = np.concatenate([np.empty(0, np.int64), *(part.numbers for part in parts)])
    num_of = np.concatenate([np.empty(0, np.int64), *(part.num_hashes for part in parts)])
    hashes = np.concatenate([np.empty(0, np.uint32), *(part.hashes for part in parts)])
    num_hashes_N = np.empty_like(num_of)
    num_hashes_N[number_N] = num_of
    begin_N = np.cumsum(num_hashes_N) - num_hashes_N
    hash_H = np.empty_like(hashes)
    hash_H[np.repeat(begin_N[number_N] - (np.cumsum(num_of) - num_of), num_of) + np.arange(len(hashes))] = hashes
    return Shingles(hash_H, num_hashes_N, units)


def _parts(
    numbers: list[int], readings: Sequence[str], prefixes: Sequence[int], ngram: int, units: list[bytes]
) -> Iterator[_Part]:
    """The shingles of the texts with these numbers; their units go to `units`."""
    texts = [readings[i] for i in numbers]
    is_ascii = texts[0].isascii()
    data_B, kind_B, is_start_B, begin_N = _characters(texts) if is_ascii else _wide_characters(texts)
    is_kept_B = kind_B != 0
    begin_U = np.flatnonzero(is_start_B)
    first_N = np.searchsorted(begin_U, begin_N)
    after_N = np.r_[first_N[1:], len(begin_U)]

    # The units, each with a line break before it: in place of what stands there, or put in beside a symbol.
    is_beside_U = is_kept_B[begin_U - 1]
    parted_B = data_B | (~is_kept_B * _DROPPED)
    parted_B[begin_U[~is_beside_U] - 1] = ord("\n")
    parted_B = np.insert(parted_B, begin_U[is_beside_U], ord("\n"))
    parted = parted_B.tobytes().replace(bytes([_DROPPED]), b"")
    bounds = np.r_[np.flatnonzero(np.frombuffer(parted, np.uint8) == ord("\n")), len(parted)]
    length_U = np.diff(bounds) - 1
    for i, start, end in zip(numbers, bounds[first_N].tolist(), bounds[after_N].tolist(), strict=True):
        units[i] = parted[start + 1 : end]

    if is_ascii:
        num_words_U = np.r_[0, np.cumsum(kind_B[begin_U] == _OF_A_WORD)]
        has_words_N = num_words_U[after_N] - num_words_U[first_N] >= 2 * ngram
    else:
        has_words_N = np.array([has_words(text, 2 * ngram) for text in texts])
    is_long_N = has_words_N.copy()
    is_long_N[np.searchsorted(first_N, np.flatnonzero(length_U > LONGEST), side="right") - 1] = False

    crc_U = unit_checksums(data_B, begin_U + length_U, length_U)
    prefix_N = np.array([prefixes[i] for i in numbers], np.uint32)
    prefix_U = np.repeat(prefix_N, after_N - first_N) if prefix_N.any() else None
    run_G = run_checksums(crc_U, np.minimum(length_U, LONGEST), ngram, prefix_U)
    first_M, num_M = first_N[is_long_N], np.maximum(after_N - first_N - ngram + 1, 0)[is_long_N]
    chosen = np.repeat(first_M - (np.cumsum(num_M) - num_M), num_M) + np.arange(num_M.sum())
    number_N = np.array(numbers)
    yield _Part(number_N[is_long_N], num_M, run_G.take(chosen))

    few = number_N[~has_words_N]
    of_few = np.array([zlib.crc32(readings[i].encode(), prefixes[i]) for i in few.tolist()], np.uint32)
    yield _Part(few, np.ones(len(few), np.int64), of_few)
    for i in number_N[has_words_N & ~is_long_N].tolist():
        found = list(map(zlib.crc32, shingles(readings[i], ngram), repeat(prefixes[i])))
        yield _Part(np.array([i]), np.array([len(found)]), np.array(found, np.uint32))


_Characters = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int64]]


def _characters(texts: list[str]) -> _Characters:
    """All texts, folded as `units` are, with line breaks on each side of each; the kinds of their bytes; which of these
    begin a unit; where each text begins."""
    data = (_BEFORE + "\n".join(texts) + "\n").encode("ascii").lower()
    kind_B = np.frombuffer(data.translate(_KINDS.of_ascii), np.uint8)
    return np.frombuffer(data, np.uint8), kind_B, _starts(kind_B), _begins(texts)


def _wide_characters(texts: list[str]) -> _Characters:
    """The same of texts that are not in ASCII."""
    folded = [unicodedata.normalize("NFKC", text).casefold() for text in texts]
    joined = _BEFORE + "\n".join(folded) + "\n"
    code_C = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    kind_C = _KINDS.take(code_C).astype(np.uint8)
    data_B = np.frombuffer(joined.encode(), np.uint8)
    is_first_B = (data_B & 0xC0) != 0x80  # of a character
    place_C = np.flatnonzero(is_first_B)
    kind_B = np.repeat(kind_C, np.diff(place_C, append=len(data_B)))
    return data_B, kind_B, _starts(kind_B) & is_first_B, place_C[_begins(folded)]


def _starts(kind: NDArray[np.uint8]) -> NDArray[np.bool_]:
    is_word = kind == _OF_A_WORD
    starts: NDArray[np.bool_] = kind == _BY_ITSELF
    starts[1:] |= is_word[1:] & ~is_word[:-1]
    return starts


def _begins(texts: list[str]) -> NDArray[np.int64]:
    length_N = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    begin_N: NDArray[np.int64] = np.cumsum(length_N) - length_N + len(_BEFORE)
    return begin_N
