"""Bands and leaders of MinHash signatures, against all pairs compared one after the other.

Shape legend: N texts, P permutations.
"""

import time
from pathlib import Path

import numpy as np
import pytest

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


def leaders(signature_NP: np.ndarray, threshold: float, units: np.ndarray | None = None) -> np.ndarray:
    units_N = np.arange(len(signature_NP)) if units is None else units
    return minhash.leaders(signature_NP, units_N.astype(np.uint64), threshold)


def brute_force(signature_NP: np.ndarray, threshold: float, units_N: np.ndarray) -> list[int]:
    num_texts, num_perm = signature_NP.shape
    num_bands, num_rows = minhash.bands(threshold, num_perm)
    found: list[int] = []
    for i in range(num_texts):
        for j in range(i):
            equal_P = signature_NP[i] == signature_NP[j]
            share = any(equal_P[b * num_rows : (b + 1) * num_rows].all() for b in range(num_bands))
            if found[j] == j and share and equal_P.mean() >= threshold and units_N[i] != units_N[j]:
                found.append(j)
                break
        else:
            found.append(i)
    return found


@pytest.mark.parametrize("keep", [0.83, 0.88, 0.92, 0.97])
@pytest.mark.parametrize("num_perm", [64, 60])
def test_each_text_has_the_first_leader_that_it_is_like(keep: float, num_perm: int) -> None:
    """Families whose members agree at about keep squared: bands full of unlike, half alike and alike texts."""
    rng = np.random.default_rng(int(keep * 100))
    families = []
    for size in (150, 60, 5, 2, 1):
        own_NP = rng.integers(0, 2**32, (size, num_perm), dtype=np.uint32)
        families.append(np.where(rng.random((size, num_perm)) < keep, own_NP[0], own_NP))
    signature_NP = rng.permutation(np.concatenate(families))
    units_N = rng.integers(0, 50, len(signature_NP))  # a few alike ones have the same units
    found = leaders(signature_NP, 0.75, units_N)
    assert found.tolist() == brute_force(signature_NP, 0.75, units_N)
    assert keep > 0.9 or 2 < len(set(found.tolist())) < len(signature_NP)


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
def test_the_same_on_disk_in_any_order_and_in_pieces(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many families beside texts that are alone, of which pieces are compared, with rows in another order."""
    monkeypatch.setattr(minhash, "COMPARED_AT_ONCE", at_once)
    monkeypatch.setattr(minhash, "_AT_ONCE", 64)
    rng = np.random.default_rng(7)
    families = [rng.integers(0, 2**32, (200, 60), dtype=np.uint32)]
    for size in (2,) * 20 + (3,) * 10 + (30, 80):
        own_NP = rng.integers(0, 2**32, (size, 60), dtype=np.uint32)
        families.append(np.where(rng.random((size, 60)) < 0.88, own_NP[0], own_NP))
    signature_NP = rng.permutation(np.concatenate(families))
    signature_NP.tofile(tmp_path / "signatures")
    on_disk_NP = np.memmap(tmp_path / "signatures", np.uint32, "r").reshape(-1, 60)
    row_T = rng.permutation(len(signature_NP))[:300]
    units_T = rng.integers(0, 100, 300).astype(np.uint64)
    found = minhash.leaders(on_disk_NP, units_T, 0.75, row_T)
    assert found.tolist() == brute_force(signature_NP[row_T], 0.75, units_T)
    assert 100 < len(set(found.tolist())) < 290


def test_pieces_hold_whole_components() -> None:
    component_T = np.array([0, 1, 2, 0, 1, 3, 3, 3, 3, 2, 4, 5, 5], np.int32)
    is_chosen_T = component_T != 4
    for most, wanted in ((1, 5), (4, 4), (100, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(minhash, "COMPARED_AT_ONCE", most)
            pieces = [piece.tolist() for piece in minhash._batches(component_T, is_chosen_T)]
        assert len(pieces) == wanted
        assert all(piece == sorted(piece) for piece in pieces)
        assert sorted(text for piece in pieces for text in piece) == [text for text in range(13) if text != 10]
        numbers = [set(component_T[piece].tolist()) for piece in pieces]
        assert sum(map(len, numbers)) == 5


def test_keys_are_told_apart_by_all_of_their_bits() -> None:
    """By chance many of a hundred million have the same high bits; families that these join are compared at once."""
    rng = np.random.default_rng(3)
    high_T, low_T = rng.integers(0, 8, 300, dtype=np.uint64), rng.integers(0, 6, 300, dtype=np.uint64)
    for key_T in (
        high_T << np.uint64(60) | low_T,
        high_T << np.uint64(60),
        low_T,
        rng.permutation(300).astype(np.uint64),
    ):
        first_E, member_E = minhash._shared(key_T)
        assert len(first_E) == 300 - len(set(key_T.tolist()))
        assert (key_T[first_E] == key_T[member_E]).all()
        assert len({*member_E.tolist()}) == len(member_E)


def test_a_chain_is_broken_where_its_ends_are_unlike() -> None:
    """Each agrees with the next in 90 of 100 slots, with the one after it in 80, and so on."""
    signature_NP = np.tile(np.arange(100, dtype=np.uint32), (10, 1))
    for i in range(10):
        signature_NP[i, : i * 10] += 1000
    assert leaders(signature_NP, 0.8).tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    # Both ends come first: what is in the middle goes to the first of those that it is like.
    assert leaders(signature_NP[[0, 4, 2, 1, 3]], 0.8).tolist() == [0, 1, 0, 0, 1]


def test_texts_of_the_same_units_are_never_alike() -> None:
    signature_NP = np.tile(np.arange(100, dtype=np.uint32), (4, 1))
    assert leaders(signature_NP, 0.8, np.array([7, 7, 8, 7])).tolist() == [0, 1, 0, 3]


def test_exactly_at_the_threshold_is_alike() -> None:
    signature_NP = np.arange(200, dtype=np.uint32).reshape(2, 100)
    signature_NP[1, :55] = signature_NP[0, :55]
    assert leaders(signature_NP, 0.55).tolist() == [0, 0]
    signature_NP[1, 0] = 1000
    assert leaders(signature_NP, 0.55).tolist() == [0, 1]


def test_at_1_nothing_is_alike_but_what_has_one_reading() -> None:
    """Signatures of long texts with another word are often the same; equal readings are one text here."""
    signature_NP = np.tile(np.arange(128, dtype=np.uint32), (3, 1))
    assert leaders(signature_NP, 1.0).tolist() == [0, 1, 2]
    assert leaders(signature_NP, 0.99).tolist() == [0, 0, 0]


def test_low_bytes_alone_do_not_make_texts_alike() -> None:
    signature_NP = np.tile(np.arange(128, dtype=np.uint32), (2, 1))
    signature_NP[1, 20:] += 256  # two bands and all low bytes are equal
    assert leaders(signature_NP, 0.8).tolist() == [0, 1]


def test_the_most_permutations_that_can_be_configured() -> None:
    signature_NP = np.tile(np.arange(1024, dtype=np.uint32), (2, 1))
    assert leaders(signature_NP, 0.8).tolist() == [0, 0]


def test_a_large_family_that_is_not_similar_enough_takes_seconds() -> None:
    """The worst case: one band holds thousands of texts that all have to be compared, and few are alike."""
    rng = np.random.default_rng(0)
    own_NP = rng.integers(0, 2**32, (5000, 128), dtype=np.uint32)
    signature_NP = np.where(rng.random((5000, 128)) < 0.8, own_NP[0], own_NP)
    started = time.monotonic()
    leader_N = leaders(signature_NP, 0.8)
    assert time.monotonic() - started < 20
    assert (signature_NP == signature_NP[leader_N]).mean(axis=1).min() >= 0.8
