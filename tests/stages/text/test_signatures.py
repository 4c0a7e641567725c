"""Signatures of many texts at once against datasketch, one text at a time."""

import zlib

import numpy as np
import pytest
from datasketch import MinHash

from stillhouse.stages.text import signatures
from stillhouse.stages.text.signatures import Signatures


def one_by_one(sets: list[list[int]], num_perm: int, seed: int) -> list[list[int]]:
    out = []
    for hashes in sets:
        minhash = MinHash(num_perm=num_perm, seed=seed, scheme="affine32", hashfunc=int)
        minhash.update_batch(hashes)
        out.append(minhash.hashvalues.tolist())
    return out


@pytest.mark.parametrize("at_once", [1, 7, 1 << 15])
@pytest.mark.parametrize("num_perm", [16, 128])
def test_they_are_those_of_datasketch(at_once: int, num_perm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts without shingles, texts that go over the edge of a piece, the smallest and the largest hash."""
    monkeypatch.setattr(signatures, "_AT_ONCE", at_once)
    random = np.random.default_rng(num_perm)
    sizes = [0, 0, 1, 7, 0, 23, 1, 1, 14, 0, 2, 0]
    sets = [random.integers(0, 2**32, size).tolist() for size in sizes] + [[0, 2**32 - 1], [zlib.crc32(b"")]]
    flat = np.array([value for hashes in sets for value in hashes], np.uint32)
    found = Signatures(num_perm, 7)(flat, np.array([len(hashes) for hashes in sets]))
    assert found.tolist() == one_by_one(sets, num_perm, 7)


def test_nothing_gives_nothing() -> None:
    assert Signatures(16, 1)(np.empty(0, np.uint32), np.empty(0, np.int64)).shape == (0, 16)
    assert Signatures(16, 1)(np.empty(0, np.uint32), np.zeros(2, np.int64)).tolist() == [[2**32 - 1] * 16] * 2
