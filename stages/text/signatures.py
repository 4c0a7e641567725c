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
"""Hashes that are permuted together: they and their permutation stay in a core's cache."""


class Signatures:
    """Signatures of `num_perm` permutations, drawn by datasketch from `seed`."""

    def __init__(self, num_perm: int, seed: int) -> None:
        self._factor_P, self._addend_P = MinHash(num_perm=num_perm, seed=seed, scheme=_SCHEME).permutations

    def __call__(self, hash_H: NDArray[np.uint32], num_hashes_N: NDArray[np.int64]) -> NDArray[np.uint32]:
        """[N, P] from the hashes of all texts, one text after the other, and how many each has. A text without any has
        the largest value everywhere, as in datasketch."""
        signature_PN = np.full((len(self._factor_P), len(num_hashes_N)), 0xFFFFFFFF, np.uint32)
        text_M = np.flatnonzero(num_hashes_N)
        end_M = np.cumsum(num_hashes_N[text_M])
        begin_M = end_M - num_hashes_N[text_M]
        for start in range(0, len(hash_H), _AT_ONCE):
            mixed = _mixed(hash_H[start : start + _AT_ONCE])
            permuted = np.empty_like(mixed)
            # The texts with hashes in this piece; the first and the last may have more outside of it.
            low = int(np.searchsorted(end_M, start, side="right"))
            high = int(np.searchsorted(begin_M, start + len(mixed)))
            offsets = np.maximum(begin_M[low:high] - start, 0)
            least_PM = np.empty((len(self._factor_P), high - low), np.uint32)
            for factor, addend, least_M in zip(self._factor_P, self._addend_P, least_PM, strict=True):
                np.multiply(mixed, factor, out=permuted)
                np.add(permuted, addend, out=permuted)
                np.minimum.reduceat(permuted, offsets, out=least_M)
            texts = text_M[low:high]
            signature_PN[:, texts] = np.minimum(signature_PN[:, texts], least_PM)
        return np.ascontiguousarray(signature_PN.T)


def _mixed(hash_H: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's 32-bit finalizer (fmix32): it spreads what CRC-32 leaves structured."""
    mixed_H = hash_H ^ (hash_H >> np.uint32(16))
    mixed_H *= np.uint32(0x85EBCA6B)
    mixed_H ^= mixed_H >> np.uint32(13)
    mixed_H *= np.uint32(0xC2B2AE35)
    mixed_H ^= mixed_H >> np.uint32(16)
    return mixed_H
