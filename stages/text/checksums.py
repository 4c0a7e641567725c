"""CRC-32 of many runs of words at once, from those of the words.

The CRC-32 of two texts, one after the other, follows from theirs and the second one's length: the first is moved on by
so many zero bytes, which is linear in its bits, and the second is added without carry (`crc32_combine` of zlib). So a
word's checksum is computed once, however many runs it is part of.

Shape legend: U units of all texts, G runs.
"""

import numpy as np
from numpy.typing import NDArray

LONGEST = 64
"""Bytes of the longest unit that `run_checksums` takes."""
_POLYNOMIAL = 0xEDB88320
_AT_ONCE = 1 << 15
"""Runs that are computed together: they and the tables stay in a core's cache."""


def _shifts() -> NDArray[np.uint32]:
    """[LONGEST + 2, 4, 256]: what becomes of each byte of a checksum after so many zero bytes."""
    table_256 = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table_256 = np.where(table_256 & 1, (table_256 >> 1) ^ np.uint32(_POLYNOMIAL), table_256 >> 1)
    shifts = np.empty((LONGEST + 2, 4, 256), np.uint32)
    shifts[0] = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for length in range(1, len(shifts)):
        before = shifts[length - 1]
        shifts[length] = table_256[before & 0xFF] ^ (before >> 8)
    return shifts


_SHIFTS = _shifts().ravel()
_SPACE = np.uint32(0xE96CCF45)  # zlib.crc32(b" ")


def run_checksums(
    crc_U: NDArray[np.uint32], length_U: NDArray[np.uint32], ends: NDArray[np.int64], ngram: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The CRC-32 [G] of each run of `ngram` units with spaces between them, text after text, and how many each text
    has. `crc_U` and `length_U` are of the units alone, of up to `LONGEST` bytes; `ends` says where each text ends."""
    num_runs = np.maximum(np.diff(ends, prepend=0) - ngram + 1, 0)
    begin = ends - np.diff(ends, prepend=0)
    first_G = np.repeat(begin - (np.cumsum(num_runs) - num_runs), num_runs) + np.arange(num_runs.sum())
    # With the space before it, a unit is one byte longer.
    base_U = length_U.astype(np.int64) << 10
    spaced_U = _moved(np.full(len(crc_U), _SPACE), base_U) ^ crc_U
    base_U += 1 << 10
    run_G = np.empty(len(first_G), np.uint32)
    for start in range(0, len(first_G), _AT_ONCE):
        first = first_G[start : start + _AT_ONCE]
        run = crc_U[first]
        for i in range(1, ngram):
            run = _moved(run, base_U[first + i]) ^ spaced_U[first + i]
        run_G[start : start + len(first)] = run
    return run_G, num_runs


def _moved(crc: NDArray[np.uint32], base: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Checksums moved on by zero bytes; `base` is where the table for their number begins."""
    byte_of = crc.view(np.uint8).reshape(-1, 4)  # little-endian, as every machine that we run on
    moved: NDArray[np.uint32] = _SHIFTS[base + byte_of[:, 0]]
    for k in range(1, 4):
        moved ^= _SHIFTS[base + (byte_of[:, k] + np.int64(256 * k))]
    return moved
