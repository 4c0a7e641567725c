"""CRC-32 of many words and runs of words at once.

But for its beginning and its end, CRC-32 is linear in its bits. So a text's checksum is the sum, without carry, of
what each byte adds by itself, and that depends on the byte and on how many follow it. And the checksum of two texts,
one after the other, follows from theirs and the second one's length: the first is moved on by so many zero bytes, and
the second is added (`crc32_combine` of zlib). So a word's checksum is computed once, however many runs it is part of.

Shape legend: B bytes, U units of all texts, G runs.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

LONGEST = 64
"""Bytes of the longest unit that is taken."""
_POLYNOMIAL = 0xEDB88320
_PIECE = 2
"""Units that a run grows by at a time, while it lacks as many."""


def _shifts(num: int) -> NDArray[np.uint32]:
    """[num, 4, 256]: what becomes of each byte of a checksum after 0, 1, 2, ... zero bytes."""
    table_256 = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table_256 = np.where(table_256 & 1, (table_256 >> 1) ^ np.uint32(_POLYNOMIAL), table_256 >> 1)
    shifts = np.empty((num, 4, 256), np.uint32)
    shifts[0] = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for length in range(1, len(shifts)):
        before = shifts[length - 1]
        shifts[length] = table_256[before & 0xFF] ^ (before >> 8)
    return shifts


_SHIFTS = _shifts(_PIECE * (LONGEST + 1) + 1)
_MOVES = [_SHIFTS[:, k].ravel() for k in range(4)]
_SPACES = np.array([zlib.crc32(b" " + bytes(length)) for length in range(LONGEST + 1)], np.uint32)
_ZEROS = np.array([zlib.crc32(bytes(length)) for length in range(LONGEST + 1)], np.uint32)
_SPACES ^= _ZEROS
_LAST = np.array([2**64 - 2 ** (8 * (8 - length)) for length in range(9)], np.uint64)
"""What to keep of eight bytes of which the last 0, 1, ... count."""
_PAIR = np.arange(1 << 16)
# What two bytes add that 0, 2, ... 14 bytes follow.
_PAIRS = [_SHIFTS[i + 2, 0][_PAIR & 255] ^ _SHIFTS[i + 1, 0][_PAIR >> 8] for i in range(0, 16, 2)]


def unit_checksums(
    data_B: NDArray[np.uint8], end_U: NDArray[np.int64], length_U: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """The CRC-32 of each unit, from where it ends in `data_B` and how many bytes it has. Eight bytes stand before the
    first."""
    words = np.frombuffer(data_B.tobytes() + bytes(16 - len(data_B) % 8), np.uint64)
    sum_U = _sums(_eight(words, end_U - 8), length_U, 0)
    longer = np.flatnonzero(length_U > 8)
    sum_U[longer] ^= _sums(_eight(words, end_U[longer] - 16), length_U[longer] - 8, 8)
    crc_U: NDArray[np.uint32] = sum_U ^ _ZEROS.take(np.minimum(length_U, LONGEST))
    data = data_B.tobytes()
    for i in np.flatnonzero(length_U > 16).tolist():  # few
        crc_U[i] = zlib.crc32(data[end_U[i] - length_U[i] : end_U[i]])
    return crc_U


def _eight(words: NDArray[np.uint64], place_U: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The eight bytes at each place, of bytes that are given as eights of them."""
    word_U, bits_U = place_U >> 3, ((place_U & 7) << 3).view(np.uint64)
    # Of no bits, a shift by all 64 leaves nothing.
    eight_U: NDArray[np.uint64] = words.take(word_U) >> bits_U
    eight_U |= words.take(word_U + 1) << (np.uint64(64) - bits_U)
    return eight_U


def _sums(eight_U: NDArray[np.uint64], length_U: NDArray[np.int64], num_after: int) -> NDArray[np.uint32]:
    """What the last `length_U` of eight bytes add that 0 or 8 bytes follow."""
    pair_U4 = (eight_U & _LAST.take(length_U, mode="clip")).view(np.uint16).reshape(-1, 4)  # little-endian
    tables = _PAIRS[num_after // 2 : num_after // 2 + 4]
    sum_U: NDArray[np.uint32] = tables[0].take(pair_U4[:, 3])
    for k in range(1, 4):
        sum_U ^= tables[k].take(pair_U4[:, 3 - k])
    return sum_U


def run_checksums(
    crc_U: NDArray[np.uint32], length_U: NDArray[np.int64], ngram: int, prefix_U: NDArray[np.uint32] | None = None
) -> NDArray[np.uint32]:
    """The CRC-32 [G] of each run of `ngram` units with spaces between them, from those of the units alone, which have
    up to `LONGEST` bytes. G is U - ngram + 1, or 0. A run that begins with unit u follows what has the checksum
    `prefix_U[u]`."""
    if len(crc_U) < ngram:
        return np.empty(0, np.uint32)
    # A unit, or two, with the space before it.
    spaced = (_SPACES.take(length_U) ^ crc_U, length_U + 1)
    pieces = {1: spaced, _PIECE: _joined(spaced, spaced, 1)}
    run, num = crc_U if prefix_U is None else moved(prefix_U, length_U) ^ crc_U, 1
    while num < ngram:
        size = _PIECE if ngram - num >= _PIECE else 1
        run = _joined((run, length_U), pieces[size], num)[0]
        num += size
    return run


def _joined(
    left: tuple[NDArray[np.uint32], NDArray[np.int64]], right: tuple[NDArray[np.uint32], NDArray[np.int64]], num: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Checksums and lengths of what stands at i in `left` and i + num in `right`, one after the other."""
    num_joined = len(right[0]) - num
    crc, length = right[0][num:], right[1][num:]
    return moved(left[0][:num_joined], length) ^ crc, left[1][:num_joined] + length


def moved(crc: NDArray[np.uint32], length: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Checksums moved on by `length` zero bytes, at most `LONGEST`, or those of a piece of a run."""
    place_4U = crc.view(np.uint8).reshape(-1, 4).T.astype(np.int64, order="C")  # little-endian
    place_4U += length << 8
    result: NDArray[np.uint32] = _MOVES[0].take(place_4U[0])
    for k in range(1, 4):
        result ^= _MOVES[k].take(place_4U[k])
    return result
