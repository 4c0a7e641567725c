"""MinHash signatures of many texts at once, bit for bit those of datasketch's scheme affine32.

The scheme (datasketch 2.0, `MinHash`): a 32-bit hash goes through MurmurHash3's finalizer once; permutation p maps it
to a_p * h + b_p mod 2^32; a signature is the least value of each permutation over the text's hashes. One text at a time
is mostly overhead where texts are short, so here the hashes of all of them are one array.

Shape legend: N texts, H hashes of all texts, P permutations.
"""

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

_SCHEME = "affine32"
"""Not left to datasketch's default: stored signatures must stay comparable, and those of two schemes are not."""
_AT_ONCE = 1 << 15
"""Hashes that are permuted together, or those of one longer text: they and their permutation stay in a core's cache."""


class Signatures:
    """Signatures of `num_perm` permutations, drawn by datasketch from `seed`."""

    def __init__(self, num_perm: int, seed: int) -> None:
        self._factor_P, self._addend_P = MinHash(num_perm=num_perm, seed=seed, scheme=_SCHEME).permutations

    def __call__(self, hash_H: NDArray[np.uint32], num_hashes_N: NDArray[np.int64]) -> NDArray[np.uint32]:
        """[N, P] from the hashes of all texts, one text after the other, and how many each has. A text without any has
        the largest value everywhere, as in datasketch."""
        signature_NP = np.full((len(num_hashes_N), len(self._factor_P)), 0xFFFFFFFF, np.uint32)
        text_M = np.flatnonzero(num_hashes_N)
        end_M = np.cumsum(num_hashes_N[text_M])
        begin_M = end_M - num_hashes_N[text_M]
        low = 0
        while low < len(text_M):
            start = begin_M[low]
            high = max(int(np.searchsorted(end_M, start + _AT_ONCE, side="right")), low + 1)
            mixed = _mixed(hash_H[start : end_M[high - 1]])
            permuted, offsets = np.empty_like(mixed), begin_M[low:high] - start
            least_PM = np.empty((len(self._factor_P), high - low), np.uint32)
            for factor, addend, least_M in zip(self._factor_P, self._addend_P, least_PM, strict=True):
                np.multiply(mixed, factor, out=permuted)
                np.add(permuted, addend, out=permuted)
                np.minimum.reduceat(permuted, offsets, out=least_M)
            signature_NP[text_M[low:high]] = least_PM.T
            low = high
        return signature_NP


def _mixed(hash_H: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's 32-bit finalizer (fmix32): it spreads what CRC-32 leaves structured."""
    mixed_H = hash_H ^ (hash_H >> np.uint32(16))
    mixed_H *= np.uint32(0x85EBCA6B)
    mixed_H ^= mixed_H >> np.uint32(13)
    mixed_H *= np.uint32(0xC2B2AE35)
    mixed_H ^= mixed_H >> np.uint32(16)
    return mixed_H
