"""Finds near-duplicates among MinHash signatures: banding proposes pairs, their estimated Jaccard similarity decides.

MinHash: Broder, "On the resemblance and containment of documents" (1997). Banding: Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4. The bands determine recall, the threshold determines precision.

Shape legend: N texts, P permutations, R rows of a signature in one band, E pairs.
"""

from collections.abc import Iterator
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BAND_RECALL = 0.95
"""Least probability that a pair exactly at the threshold shares a band. For more similar pairs it is higher."""
_PAIRS_AT_ONCE = 1 << 15
_LARGE_GROUP = 32


def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Number of bands b and rows per band R: the largest R at which 1 - (1 - threshold^R)^b is at least `BAND_RECALL`.

    One row per band where the threshold is too low for that.
    """
    for rows in range(num_perm, 1, -1):
        if 1 - (1 - threshold**rows) ** (num_perm // rows) >= BAND_RECALL:
            return num_perm // rows, rows
    return num_perm, 1


def joined_pairs(signature_NP: NDArray[np.uint32], threshold: float) -> Iterator[NDArray[np.int64]]:
    """Pairs [E, 2] of signatures that share a band and agree in at least `threshold` of their slots, band by band.

    Pairs that are already connected by others are left out, which does not change the connected components.
    """
    num_texts, num_perm = signature_NP.shape
    num_bands, num_rows = bands(threshold, num_perm)
    # 0.55 * 100 is 55.00000000000001 in floating point.
    num_equal = ceil(threshold * num_perm - 1e-9)
    component_N = np.arange(num_texts)
    for band in range(num_bands):
        key_N = _band_keys(signature_NP[:, band * num_rows : (band + 1) * num_rows])
        order = np.argsort(key_N, kind="stable")
        key_N = key_N[order]
        starts = np.flatnonzero(np.r_[True, key_N[1:] != key_N[:-1]])
        sizes = np.diff(np.r_[starts, num_texts])
        found = [np.empty((0, 2), np.int64)]
        for size in np.unique(sizes[sizes > 1]):
            groups = starts[sizes == size]
            if size > _LARGE_GROUP:
                for start in groups:
                    found += _join_large(signature_NP, order[start : start + size], component_N, num_equal)
                continue
            left, right = np.triu_indices(size, k=1)
            step = max(1, _PAIRS_AT_ONCE // len(left))
            for i in range(0, len(groups), step):
                members = order[groups[i : i + step, None] + np.arange(size)]
                pairs_E2 = np.stack([members[:, left].ravel(), members[:, right].ravel()], axis=1)
                pairs_E2 = pairs_E2[component_N[pairs_E2[:, 0]] != component_N[pairs_E2[:, 1]]]
                equal_E = signature_NP[pairs_E2[:, 0]] == signature_NP[pairs_E2[:, 1]]
                found.append(pairs_E2[np.count_nonzero(equal_E, axis=1) >= num_equal])
        pairs_E2 = np.concatenate(found)
        component_N = _merge(component_N, pairs_E2)
        yield pairs_E2


def _join_large(
    signature_NP: NDArray[np.uint32], members: NDArray[np.int64], component_N: NDArray[np.int64], num_equal: int
) -> list[NDArray[np.int64]]:
    """The pairs that connect the members of one large group. Pairs that are connected already are not compared.

    A breadth-first search: each member of the growing component is the pivot once, and is compared with all members
    that are still outside. Signatures that agree in enough slots also agree in the low bytes of as many slots; these
    are compared first, ten times as fast.
    """
    found = []
    outside = members
    low_PN = np.ascontiguousarray(signature_NP[members].astype(np.uint8).T)
    while len(outside) > 1:
        entering = component_N[outside] == component_N[outside[0]]
        pivots: list[np.int64] = []
        while entering.any():
            pivots += list(outside[entering])
            # In the largest groups most texts are similar to no other. A slice then avoids a copy.
            staying = slice(1, None) if entering[0] and entering.sum() == 1 else ~entering
            outside, low_PN = outside[staying], low_PN[:, staying]
            entering = np.zeros(len(outside), bool)
            while pivots and len(outside) and not entering.any():
                pivot_P = signature_NP[pivot := pivots.pop()]
                equal_PN = low_PN == pivot_P.astype(np.uint8)[:, None]
                near = outside[np.add.reduce(equal_PN.view(np.uint8), axis=0, dtype=np.uint16) >= num_equal]
                near = near[np.count_nonzero(signature_NP[near] == pivot_P, axis=1) >= num_equal]
                if len(near):
                    found.append(np.stack([np.full(len(near), pivot), near], axis=1))
                    entering = np.isin(component_N[outside], component_N[near])
    return found


def _band_keys(rows_NR: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One number for each text's band. A collision of two different bands only costs a comparison."""
    key_N = np.zeros(len(rows_NR), np.uint64)
    for column_N in rows_NR.T:
        key_N = (key_N ^ column_N) * np.uint64(0x9E3779B97F4A7C15)
        key_N ^= key_N >> np.uint64(29)
    return key_N


def _merge(component_N: NDArray[np.int64], pairs_E2: NDArray[np.int64]) -> NDArray[np.int64]:
    """The components once the pairs are joined as well."""
    left, right = component_N[pairs_E2].T
    num = len(component_N)
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(num, num))
    merged: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return merged[component_N]


def components(signature_NP: NDArray[np.uint32], threshold: float) -> NDArray[np.int64]:
    """The component of each text [N]. Two texts have the same one if a chain of similar texts joins them."""
    return _merge(np.arange(len(signature_NP)), np.concatenate(list(joined_pairs(signature_NP, threshold))))
