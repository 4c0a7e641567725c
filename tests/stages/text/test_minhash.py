"""Bands, pairs and components of MinHash signatures, against all pairs compared.

Shape legend: N texts, P permutations, E pairs.
"""

import time

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from stillhouse.stages.text import minhash


def test_bands_lose_nothing_at_the_threshold() -> None:
    assert minhash.bands(0.8, 128) == (18, 7)
    assert minhash.bands(1.0, 128) == (1, 128)
    assert minhash.bands(0.01, 16) == (16, 1)
    for threshold in (0.5, 0.7, 0.9):
        num_bands, num_rows = minhash.bands(threshold, 256)
        assert num_bands * num_rows <= 256
        assert 1 - (1 - threshold**num_rows) ** num_bands >= 0.95
        assert 1 - (1 - threshold ** (num_rows + 1)) ** (256 // (num_rows + 1)) < 0.95


def brute_force_components(signature_NP: np.ndarray, threshold: float) -> np.ndarray:
    """Components of all pairs that share a band and agree in `threshold` of the slots."""
    num_bands, num_rows = minhash.bands(threshold, signature_NP.shape[1])
    equal_NNP = signature_NP[:, None, :] == signature_NP[None, :, :]
    shared = equal_NNP[:, :, : num_bands * num_rows].reshape(*equal_NNP.shape[:2], num_bands, num_rows)
    graph = shared.all(axis=3).any(axis=2) & (equal_NNP.mean(axis=2) >= threshold)
    return connected_components(csr_array(graph), directed=False)[1]


@pytest.mark.parametrize("keep", [0.83, 0.88, 0.92, 0.97])
def test_groups_of_any_size_connect_what_all_pairs_connect(keep: float) -> None:
    """Families whose members agree at about keep squared: bands full of unlike, half alike and alike texts."""
    rng = np.random.default_rng(int(keep * 100))
    families = []
    for size in (300, 60, 33, 32, 5, 2, 1):
        own_NP = rng.integers(0, 2**32, (size, 64), dtype=np.uint32)
        families.append(np.where(rng.random((size, 64)) < keep, own_NP[0], own_NP))
    signature_NP = rng.permutation(np.concatenate(families))
    edges = np.concatenate(list(minhash.joined_pairs(signature_NP, 0.75)))
    num = len(signature_NP)
    ones = np.ones(len(edges), bool)
    found = connected_components(csr_array((ones, (edges[:, 0], edges[:, 1])), shape=(num, num)), directed=False)[1]
    expected = brute_force_components(signature_NP, 0.75)
    np.testing.assert_array_equal(found[:, None] == found[None, :], expected[:, None] == expected[None, :])


def test_exactly_at_the_threshold_is_joined() -> None:
    signature_NP = np.arange(200, dtype=np.uint32).reshape(2, 100)
    signature_NP[1, :55] = signature_NP[0, :55]
    assert sum(len(pairs) for pairs in minhash.joined_pairs(signature_NP, 0.55)) == 1
    signature_NP[1, 0] = 1000
    assert sum(len(pairs) for pairs in minhash.joined_pairs(signature_NP, 0.55)) == 0


def test_a_large_family_that_is_not_similar_enough_takes_seconds() -> None:
    """The worst case: one band holds thousands of texts that all have to be compared, and none is joined."""
    rng = np.random.default_rng(0)
    own_NP = rng.integers(0, 2**32, (5000, 128), dtype=np.uint32)
    signature_NP = np.where(rng.random((5000, 128)) < 0.8, own_NP[0], own_NP)
    started = time.monotonic()
    pairs = np.concatenate(list(minhash.joined_pairs(signature_NP, 0.8)))
    assert time.monotonic() - started < 20
    equal_E = (signature_NP[pairs[:, 0]] == signature_NP[pairs[:, 1]]).mean(axis=1)
    assert equal_E.min() >= 0.8
