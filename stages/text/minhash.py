"""Finds near-duplicates among MinHash signatures: banding proposes pairs, their estimated Jaccard similarity decides.

MinHash: Broder, "On the resemblance and containment of documents" (1997). Banding: Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4. The bands determine recall, the threshold determines precision.

Shape legend: N texts with signatures, T texts that are compared, M of them together, P permutations, B bands, C
candidates or components, E pairs.
"""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stillhouse.stages.text.meaning import Meanings

BAND_RECALL = 0.95
"""Least probability that a pair exactly at the threshold shares a band. For more similar pairs it is higher."""
COMPARED_AT_ONCE = 1 << 19
"""Texts whose signatures are in memory together, at 1.3 kB each."""
_AT_ONCE = 1 << 15


def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Number of bands b and rows per band R: the largest R at which 1 - (1 - threshold^R)^b is at least `BAND_RECALL`.

    One row per band where the threshold is too low for that.
    """
    for rows in range(num_perm, 1, -1):
        if 1 - (1 - threshold**rows) ** (num_perm // rows) >= BAND_RECALL:
            return num_perm // rows, rows
    return num_perm, 1


def leaders(
    signature_NP: NDArray[np.uint32],
    units_T: NDArray[np.uint64],
    threshold: float,
    row_T: NDArray[np.int64] | None = None,
    meanings: Meanings | None = None,
) -> NDArray[np.int64]:
    """[T]: the text that stands for each text, which is itself where none before it does. Earlier texts come first.

    A text stands for itself unless it is like an earlier one that stands for itself; of several, the first stands for
    it. So no text is represented by one that is less than `threshold` like it, however long a chain of texts joins
    them. Alike are two texts that share a band and agree in at least `threshold` of their slots. Texts whose units are
    the same are not alike: all that tells them apart is what shingles leave out, and it means something, or they would
    have one `reading`. `units_T` are the hashes of their units. Text t has the signature `row_T[t]`, by default t.

    Signatures may be on disk (`np.memmap`). To temporary files are written 8 bytes for each of them and each band, and
    after that once more the signatures of texts that share a band. Texts that bands join directly or through others are
    compared by themselves, about `COMPARED_AT_ONCE` at a time: others cannot change their leaders. Memory: 60 to 100
    bytes for each text, and 1.3 kB for each that is compared at once. Raises OSError where the disk is full.

    With `meanings`, a text that is like no earlier leader has the first that means the same. Then all texts are
    compared together: what bands do not join, meanings may.
    """
    leader_T = np.arange(len(units_T))
    row_T = leader_T.copy() if row_T is None else row_T
    if meanings is not None:
        return _leaders(np.asarray(signature_NP[row_T]), units_T, threshold, meanings)
    component_T = _components(signature_NP, row_T, threshold)
    size_T = np.bincount(component_T)[component_T]
    batches = [*_batches(component_T, size_T == 2), *_batches(component_T, size_T > 2)]
    read = _read(signature_NP, [row_T[text_M] for text_M in batches])
    for text_M in batches:
        if size_T[text_M[0]] == 2:
            among_M = _pair_leaders(next(read), units_T[text_M], threshold, component_T[text_M])
        else:
            among_M = _leaders(next(read), units_T[text_M], threshold)
        leader_T[text_M] = text_M[among_M]
    return leader_T


def _components(signature_NP: NDArray[np.uint32], row_T: NDArray[np.int64], threshold: float) -> NDArray[np.int32]:
    """[T]: a number for all texts that shared bands join, directly or through others."""
    num_rows, num_perm = signature_NP.shape
    num_bands, width = bands(threshold, num_perm)
    component_T = np.arange(len(row_T), dtype=np.int32)
    if len(row_T) == 0:
        return component_T
    order_T = np.argsort(row_T)  # the order of the disk: keys are then read one after the other
    row_T = row_T[order_T]
    with tempfile.TemporaryFile() as file:
        # Written, not mapped: a full disk is then an error, and not the end of the process.
        for start in range(0, num_rows, _AT_ONCE):
            some_NP = np.asarray(signature_NP[start : start + _AT_ONCE])
            for band in range(num_bands):
                file.seek((band * num_rows + start) * 8)
                file.write(_band_keys(some_NP[:, band * width : (band + 1) * width]).tobytes())
        file.flush()
        for key_N in np.memmap(file, np.uint64, "r", shape=(num_bands, num_rows)):
            first_E, member_E = _shared(key_N[row_T])
            from_E, to_E = component_T[first_E], component_T[member_E]
            new_E = from_E != to_E
            if new_E.any():
                num = int(component_T.max()) + 1
                graph = coo_array((np.ones(int(new_E.sum()), np.bool_), (from_E[new_E], to_E[new_E])), shape=(num, num))
                component_T = connected_components(graph, directed=False)[1][component_T]
    found_T = np.empty_like(component_T)
    found_T[order_T] = component_T
    return found_T


def _shared(key_T: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each key that several texts have, one text beside each of the others."""
    # Most keys stand alone, already by their low bits; the others are sorted.
    num_bits = len(key_T).bit_length()
    last_L, is_shared_L = np.empty(1 << num_bits, np.int32), np.zeros(1 << num_bits, bool)
    for text_S, low_S in _low_bits(key_T, num_bits):
        last_L[low_S] = text_S
    for text_S, low_S in _low_bits(key_T, num_bits):
        is_shared_L[low_S[last_L[low_S] != text_S]] = True
    del last_L
    text_M = np.concatenate([text_S[is_shared_L[low_S]] for text_S, low_S in _low_bits(key_T, num_bits)])
    del is_shared_L
    # Sorted are numbers with the key's high bits and the text: several times as fast as finding the keys' order.
    low = np.uint64((1 << num_bits) - 1)
    packed_M = key_T[text_M] & ~low | text_M.view(np.uint64)
    packed_M.sort()
    text_M = (packed_M & low).view(np.int64)
    packed_M >>= np.uint64(num_bits)
    is_first_M = np.ones(len(packed_M), bool)
    is_first_M[1:] = packed_M[1:] != packed_M[:-1]
    # Of keys that differ in their low bits alone, few, those that are the same are put beside each other.
    key_M = key_T[text_M]
    is_mixed_M = ~is_first_M
    is_mixed_M[1:] &= key_M[1:] != key_M[:-1]
    if is_mixed_M.any():
        group_M = np.cumsum(is_first_M)
        mixed = np.flatnonzero(np.isin(group_M, group_M[is_mixed_M]))
        mixed_in_order = mixed[np.lexsort((key_M[mixed], group_M[mixed]))]
        text_M[mixed], key_M[mixed] = text_M[mixed_in_order], key_M[mixed_in_order]
        is_first_M[1:] = key_M[1:] != key_M[:-1]
    group_E = np.cumsum(is_first_M)[~is_first_M] - 1
    return text_M[np.flatnonzero(is_first_M)[group_E]], text_M[~is_first_M]


def _low_bits(key_T: NDArray[np.uint64], num_bits: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All texts and the low bits of their keys, some at a time."""
    for start in range(0, len(key_T), _AT_ONCE):
        low_S = (key_T[start : start + _AT_ONCE] & np.uint64((1 << num_bits) - 1)).view(np.int64)
        yield np.arange(start, start + len(low_S)), low_S


def _pair_leaders(
    signature_NP: NDArray[np.uint32], units_N: NDArray[np.uint64], threshold: float, component_N: NDArray[np.int32]
) -> NDArray[np.int64]:
    """`_leaders` of components of two texts, which most components are: of all of them at once."""
    leader_N = np.arange(len(units_N))
    num_equal = _least_equal(threshold, signature_NP.shape[1])
    first_C, second_C = np.argsort(component_N, kind="stable").reshape(-1, 2).T
    for start in range(0, len(first_C), _AT_ONCE):
        first, second = first_C[start : start + _AT_ONCE], second_C[start : start + _AT_ONCE]
        is_like = np.count_nonzero(signature_NP[first] == signature_NP[second], axis=1) >= num_equal
        is_like &= units_N[first] != units_N[second]
        leader_N[second[is_like]] = first[is_like]
    return leader_N


def _least_equal(threshold: float, num_perm: int) -> int:
    """In how many slots two texts agree that are at least `threshold` alike; at 1 in more than there are, because that
    all agree is an estimate: of long texts with another word they do."""
    if threshold >= 1:
        return num_perm + 1
    return ceil(threshold * num_perm - 1e-9)  # 0.55 * 100 is 55.00000000000001 in floating point


def _batches(component_T: NDArray[np.int32], is_chosen_T: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """The chosen texts, in order; of each component all, and as many components as hold `COMPARED_AT_ONCE` texts, or a
    single larger one."""
    text_M = np.flatnonzero(is_chosen_T)
    text_M = text_M[np.argsort(component_T[text_M], kind="stable")]
    end_C = np.flatnonzero(np.diff(component_T[text_M], append=-1)) + 1
    begin = 0
    while begin < len(text_M):
        most = np.searchsorted(end_C, begin + COMPARED_AT_ONCE, side="right") - 1
        end = int(end_C[max(most, np.searchsorted(end_C, begin, side="right"))])
        yield np.sort(text_M[begin:end])
        begin = end


def _read(signature_NP: NDArray[np.uint32], batches: list[NDArray[np.int64]]) -> Iterator[NDArray[np.uint32]]:
    """The signatures [M, P] of each batch of rows.

    They are read once, in the order of the disk, and written batch after batch to a temporary file. Each batch alone
    would be read from all over the disk: at 100,000,000 rows, as good as all of it for each of 50 batches.
    """
    if not batches:
        return
    row_C = np.concatenate(batches)
    batch_C = np.repeat(np.arange(len(batches), dtype=np.int32), [len(rows) for rows in batches])
    place_B = np.cumsum([0] + [len(rows) for rows in batches])
    order_C = np.argsort(row_C)
    num_perm = signature_NP.shape[1]
    with tempfile.TemporaryFile() as file:
        written_B = place_B.copy()
        for start in range(0, len(order_C), 4 * _AT_ONCE):
            some_S = order_C[start : start + 4 * _AT_ONCE]
            some_S = some_S[np.argsort(batch_C[some_S], kind="stable")]
            signature_SP = np.asarray(signature_NP[row_C[some_S]])
            end_B = np.searchsorted(batch_C[some_S], np.arange(len(batches)), side="right").tolist()
            for batch, (begin, end) in enumerate(pairwise([0, *end_B])):
                if begin < end:
                    file.seek(int(written_B[batch]) * num_perm * 4)
                    file.write(signature_SP[begin:end].data)
                    written_B[batch] += end - begin
        del row_C, batch_C, order_C
        for rows, place in zip(batches, place_B.tolist(), strict=False):
            file.seek(place * num_perm * 4)
            order_M, signature_MP = np.argsort(rows), np.empty((len(rows), num_perm), np.uint32)
            for start in range(0, len(rows), _AT_ONCE):
                some_S = order_M[start : start + _AT_ONCE]
                signature_SP = np.frombuffer(file.read(len(some_S) * num_perm * 4), np.uint32)
                signature_MP[some_S] = signature_SP.reshape(-1, num_perm)
            yield signature_MP
            del signature_MP  # before the next one is read


def _leaders(
    signature_NP: NDArray[np.uint32],
    units_N: NDArray[np.uint64],
    threshold: float,
    meanings: Meanings | None = None,
) -> NDArray[np.int64]:
    """`leaders` of texts in memory, all of them compared.

    Texts are taken in order. One that nobody stands for is compared with the texts after it that share a band with it
    and have no leader yet.
    """
    num_texts, num_perm = signature_NP.shape
    num_equal = _least_equal(threshold, num_perm)
    member_M, begin_NB, end_NB = _band_groups(signature_NP, threshold)
    # Signatures that agree in enough slots also agree in the low bytes of as many, which are compared first.
    low_NP = np.zeros((num_texts, ceil(num_perm / 8) * 8), np.uint8)
    low_NP[:, :num_perm] = signature_NP
    num_padding = low_NP.shape[1] - num_perm
    leader_N = np.arange(num_texts)
    alone_N = np.ones(num_texts, bool)  # without a leader
    shares_band_N = np.asarray((begin_NB < end_NB).any(axis=1))
    for text in np.flatnonzero(shares_band_N if meanings is None else alone_N).tolist():
        if not alone_N[text]:
            continue
        if meanings is not None:
            if (leader := meanings.leader_of(text, alone_N)) is not None:
                leader_N[text], alone_N[text] = leader, False
                continue
            meanings.add(text)
            if not shares_band_N[text]:
                continue
        begin_B, end_B = begin_NB[text], end_NB[text]
        groups = [member_M[b:e] for b, e in zip(begin_B.tolist(), end_B.tolist(), strict=True) if b < e]
        candidate_C = np.concatenate([group[alone_N[group]] for group in groups])
        if len(groups) > 1:
            candidate_C = np.unique(candidate_C)
        for start in range(0, len(candidate_C), _AT_ONCE):
            near_C = candidate_C[start : start + _AT_ONCE]
            near_C = near_C[_count_equal(low_NP[near_C], low_NP[text]) >= num_equal + num_padding]
            if len(near_C):
                near_C = near_C[np.count_nonzero(signature_NP[near_C] == signature_NP[text], axis=1) >= num_equal]
                near_C = near_C[units_N[near_C] != units_N[text]]
                leader_N[near_C] = text
                alone_N[near_C] = False
    return leader_N


def _band_groups(
    signature_NP: NDArray[np.uint32], threshold: float
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """The texts that share a band, group by group in one array, and for each text and band [N, B] where in it the texts
    after this one begin and end."""
    num_texts, num_perm = signature_NP.shape
    num_bands, num_rows = bands(threshold, num_perm)
    begin_NB, end_NB = np.zeros((num_texts, num_bands), np.int32), np.zeros((num_texts, num_bands), np.int32)
    members, num_members = [np.empty(0, np.int32)], 0
    for band in range(num_bands):
        key_N = _band_keys(signature_NP[:, band * num_rows : (band + 1) * num_rows])
        order = np.argsort(key_N, kind="stable").astype(np.int32)
        key_N = key_N[order]
        start_G = np.flatnonzero(np.r_[True, key_N[1:] != key_N[:-1]])
        size_G = np.diff(np.r_[start_G, num_texts])
        shared = np.repeat(size_G > 1, size_G)
        member_M, size_G = order[shared], size_G[size_G > 1]
        begin_NB[member_M, band] = num_members + np.arange(1, len(member_M) + 1)
        end_NB[member_M, band] = num_members + np.repeat(np.cumsum(size_G), size_G)
        members.append(member_M)
        num_members += len(member_M)
    return np.concatenate(members), begin_NB, end_NB


def _count_equal(low_CP: NDArray[np.uint8], low_P: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[C]: in how many bytes each row is equal. P is a multiple of 8: eight bytes are added at a time."""
    lane_C8 = np.zeros(len(low_CP), np.uint64)
    for column_C in (low_CP == low_P).view(np.uint64).T:
        lane_C8 += column_C
    count_C: NDArray[np.int64] = lane_C8.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)
    return count_C


def _band_keys(rows_NR: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One number for each text's band. A collision of two different bands only costs a comparison."""
    key_N = np.zeros(len(rows_NR), np.uint64)
    for column_N in rows_NR.T:
        key_N = (key_N ^ column_N) * np.uint64(0x9E3779B97F4A7C15)
        key_N ^= key_N >> np.uint64(29)
    return key_N
