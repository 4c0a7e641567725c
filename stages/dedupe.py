"""Marks prompts that repeat another one: equal after normalisation, or near-duplicates by MinHash and banding.

Dedupe must see the whole data set, so it is three steps instead of one: `Sketch` reads one shard, `assign` reads the
sketches of all shards at once, `mark` writes one shard's verdict. Sketches hold no text.

MinHash: Broder, "On the resemblance and containment of documents" (1997). Banding: Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4. Candidates are confirmed by the similarity their signatures estimate, so
that bands decide recall and `threshold` decides precision. Clusters are connected components: two members of one
cluster can be less similar than `threshold`, joined by a chain of prompts between them.

Shape legend: N rows or distinct texts, P permutations, R rows of a signature in one band, E pairs.
"""

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasketch import MinHash
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stillhouse.schemas import tables
from stillhouse.schemas.config import DedupeConfig

EXACT = "exact_duplicate"
"""Drop reason: the normalised text equals that of a row that is kept."""

NEAR = "near_duplicate"
"""Drop reason: another text of the same cluster is kept instead."""

ASSIGNMENT = pa.schema([*list(tables.DEDUPED)[len(tables.PROMPTS) :], tables.DROP_REASON])
"""What `assign` decides for each row; `mark` appends it to the shard."""

BAND_RECALL = 0.95
"""Least probability that a pair exactly at the threshold shares a band; more similar pairs are likelier."""

# Letters of scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, Han, kana, bopomofo.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u30ff\u3105-\u312f"
    r"\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
    r"\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[^\W{_UNSPACED}]+|[{_UNSPACED}]")
_UNIT = re.compile(rf"[^\W{_UNSPACED}]+|\S")

# Stands for the text's edges; normalisation never produces a NUL next to a letter that was typed, and if the source
# holds one, a single shingle is confused with another.
_EDGE = "\0"

# The scheme is named because signatures of two schemes do not compare, and because its values are what is stored.
_SCHEME = "affine32"
_SHINGLES_AT_ONCE = 4096
_PAIRS_AT_ONCE = 1 << 15
_LARGE_GROUP = 32


def sketch_schema(num_perm: int) -> pa.Schema:
    """What `Sketch` returns: row-aligned with the prompts, without their text."""
    return pa.schema(
        [
            pa.field("prompt_id", pa.string()),
            # BLAKE2b of the normalised user turns, 128 bits.
            pa.field("text_hash", pa.binary(16)),
            # MinHash of the shingles of all user turns, [P]; all ones where there is no shingle.
            pa.field("signature", pa.list_(pa.uint32(), num_perm)),
            # Redacted or flagged by the source: not the one to keep when the cluster has another.
            pa.field("demoted", pa.bool_()),
        ]
    )


def normalise(text: str) -> str:
    """NFKC, casefolded, every run of white space one space, stripped. What 'equal text' means in this stage."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str, config: DedupeConfig) -> set[bytes]:
    """The set whose Jaccard similarity `threshold` is about.

    A unit is a word (a run of word characters), a character of a script written without spaces, or a symbol. A text of
    at least `2 * ngram` words gives all runs of `ngram` units. A shorter one gives all runs of `char_ngram` characters
    of the text between two edges of `char_ngram - 1` characters, so that a change of its last character weighs as much
    as one in its middle. Symbols do not count towards the `2 * ngram`: a full stop more or less must not move a text
    from one kind of shingle to the other.
    """
    text = normalise(text)
    if _num_words_at_least(text, 2 * config.ngram):
        units = _UNIT.findall(text)
        windows = zip(*(units[i:] for i in range(config.ngram)), strict=False)
        return {" ".join(window).encode() for window in windows}
    n = config.char_ngram
    edge = _EDGE * (n - 1)
    padded = edge + text + edge
    return {padded[i : i + n].encode() for i in range(len(padded) - n + 1)}


def _num_words_at_least(text: str, num_words: int) -> bool:
    return any(i == num_words for i, _ in enumerate(_WORD.finditer(text), start=1))


class Sketch:
    """One shard of prompts to what dedupe compares: hash and MinHash signature of the user turns of each row."""

    def __init__(self, config: DedupeConfig) -> None:
        self.config = config
        # CRC-32 is fast and the same everywhere; datasketch mixes its bits before it permutes them.
        self.minhash = MinHash(num_perm=config.num_perm, seed=config.seed, scheme=_SCHEME, hashfunc=zlib.crc32)

    def __call__(self, table: pa.Table) -> pa.Table:
        """`tables.PROMPTS` in, `sketch_schema(num_perm)` out, row for row."""
        num_rows, num_perm = table.num_rows, self.config.num_perm
        signature_NP = np.empty((num_rows, num_perm), np.uint32)
        text_hashes = []
        for i, turns in enumerate(table["user_turns"].to_pylist()):
            # Normalised text has no line break: ["a b"] and ["a", "b"] stay different conversations.
            text = "\n".join(normalise(turn) for turn in turns)
            text_hashes.append(hashlib.blake2b(text.encode(), digest_size=16).digest())
            signature_NP[i] = self._signature(text)
        demoted = pc.or_(table["redacted"].fill_null(False), table["moderation_flagged"].fill_null(False))
        return pa.table(
            [
                table["prompt_id"],
                pa.array(text_hashes, pa.binary(16)),
                pa.FixedSizeListArray.from_arrays(pa.array(signature_NP.ravel()), num_perm),
                demoted,
            ],
            schema=sketch_schema(num_perm),
        )

    def _signature(self, text: str) -> NDArray[np.uint32]:
        self.minhash.clear()
        items = list(shingles(text, self.config))
        for start in range(0, len(items), _SHINGLES_AT_ONCE):
            self.minhash.update_batch(items[start : start + _SHINGLES_AT_ONCE])
        signature_P: NDArray[np.uint32] = self.minhash.hashvalues
        return signature_P


def assign(sketches: Iterable[pa.Table], config: DedupeConfig) -> list[pa.Table]:
    """Sketches of all shards in, one `ASSIGNMENT` table per shard out, row for row, in the same order.

    The verdict on a prompt depends on the set of prompts alone, not on their order or on how they are sharded. Within
    a cluster, rows that are not demoted come first, then the smallest `prompt_id` (by code point); the first
    `max_per_cluster` distinct texts in that order keep their first row. `cluster_id` is the first row's; `cluster_size`
    counts all rows, dropped ones included.

    Memory: P x 4 bytes per row, plus about 200 bytes per row; `sketches` may be a generator.
    """
    schema = sketch_schema(config.num_perm)
    ids, hashes, demoted, signatures = [], [], [], []
    for shard, sketch in enumerate(sketches):
        if not sketch.schema.equals(schema):
            raise ValueError(
                f"dedupe: the sketch of shard {shard} does not have the columns of {config.num_perm} permutations; "
                "sketch all shards with the same configuration"
            )
        ids.append(sketch["prompt_id"].cast(pa.large_string()))
        hashes.append(_flat(sketch["text_hash"]).view(np.uint64).reshape(-1, 2))
        demoted.append(sketch["demoted"].to_numpy())
        signatures.append(sketch["signature"])
        del sketch
    sizes = [len(column) for column in ids]
    if sum(sizes) == 0:
        return [ASSIGNMENT.empty_table() for _ in sizes]

    id_N = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.large_string()).combine_chunks()
    del ids
    text_N, first_N = _distinct(np.concatenate(hashes))
    del hashes
    cluster_N = _components(_gather(signatures, first_N, config.num_perm), config.threshold)[text_N]

    by_id = pc.sort_indices(id_N).to_numpy()
    rank_N = np.empty(len(by_id), np.int64)
    rank_N[by_id] = np.arange(len(by_id))
    order = np.lexsort((rank_N, np.concatenate(demoted), cluster_N))

    cluster, text = cluster_N[order], text_N[order]
    starts = np.flatnonzero(np.r_[True, cluster[1:] != cluster[:-1]])
    counts = np.diff(np.r_[starts, len(order)])
    # `order` puts a text's best row first, so the first row of each text, counted within its cluster, ranks the text.
    leads = np.zeros(len(order), bool)
    leads[np.unique(text, return_index=True)[1]] = True
    text_rank = np.cumsum(leads) - 1
    text_rank -= np.repeat(text_rank[starts], counts)
    text_kept = np.zeros(len(first_N), bool)
    text_kept[text[leads & (text_rank < config.max_per_cluster)]] = True

    reason = np.full(len(order), 2, np.int8)
    reason[text_kept[text]] = 1
    reason[leads & text_kept[text]] = 0
    reason_N, size_N, best_N = np.empty_like(reason), np.empty(len(order), np.int32), np.empty(len(order), np.int64)
    reason_N[order] = reason
    size_N[order] = np.repeat(counts, counts)
    best_N[order] = np.repeat(order[starts], counts)

    reasons = pa.array([None, EXACT, NEAR], pa.string())
    assignments = []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        rows = slice(end - size, end)
        columns = [id_N.take(pa.array(best_N[rows])), pa.array(size_N[rows]), reasons.take(pa.array(reason_N[rows]))]
        assignments.append(
            pa.table([column.cast(field.type) for column, field in zip(columns, ASSIGNMENT, strict=True)], ASSIGNMENT)
        )
    return assignments


def mark(table: pa.Table, assignment: pa.Table) -> pa.Table:
    """`tables.PROMPTS` and its shard of what `assign` returned, to `tables.marked(tables.DEDUPED)`."""
    if table.num_rows != assignment.num_rows:
        raise ValueError(
            f"dedupe: the shard has {table.num_rows} rows and its assignment {assignment.num_rows}; "
            "delete the assignments and run dedupe again"
        )
    columns = [*table.columns, *(assignment[name] for name in ASSIGNMENT.names)]
    return pa.table(columns, schema=tables.marked(tables.DEDUPED))


def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Number of bands b and rows per band R: the largest R at which 1 - (1 - threshold^R)^b is at least `BAND_RECALL`.

    A threshold too low for that gets one row per band.
    """
    for rows in range(num_perm, 1, -1):
        if 1 - (1 - threshold**rows) ** (num_perm // rows) >= BAND_RECALL:
            return num_perm // rows, rows
    return num_perm, 1


def joined_pairs(signature_NP: NDArray[np.uint32], threshold: float) -> Iterator[NDArray[np.int64]]:
    """Pairs [E, 2] of signatures that share a band and agree in at least `threshold` of their slots, band by band.

    Not all such pairs: those of texts that are already connected are left out. The connected components are the same.
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
    """The pairs that connect one large group, found without looking at pairs that are connected already.

    Breadth-first: every member of the growing component is once the pivot, compared with all that is left outside.
    Whoever agrees in enough slots also does in their low bytes, which are ten times as fast to compare.
    """
    found = []
    outside = members
    low_PN = np.ascontiguousarray(signature_NP[members].astype(np.uint8).T)
    while len(outside) > 1:
        entering = component_N[outside] == component_N[outside[0]]
        pivots: list[np.int64] = []
        while entering.any():
            pivots += list(outside[entering])
            # A text like no other, the most frequent kind by far where groups are largest: no copy.
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
    """One number per band; two bands with the same number by accident only cost a comparison."""
    key_N = np.zeros(len(rows_NR), np.uint64)
    for column_N in rows_NR.T:
        key_N = (key_N ^ column_N) * np.uint64(0x9E3779B97F4A7C15)
        key_N ^= key_N >> np.uint64(29)
    return key_N


def _merge(component_N: NDArray[np.int64], pairs_E2: NDArray[np.int64]) -> NDArray[np.int64]:
    """Components after the pairs are joined."""
    left, right = component_N[pairs_E2].T
    num = len(component_N)
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(num, num))
    merged: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return merged[component_N]


def _components(signature_NP: NDArray[np.uint32], threshold: float) -> NDArray[np.int64]:
    return _merge(np.arange(len(signature_NP)), np.concatenate(list(joined_pairs(signature_NP, threshold))))


def _distinct(hash_N2: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of each row's text (texts are numbered by hash, so independently of the rows' order), and a row of each
    text."""
    order = np.lexsort(hash_N2.T)
    sorted_N2 = hash_N2[order]
    new = np.r_[True, (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)]
    text_N = np.empty(len(order), np.int64)
    text_N[order] = np.cumsum(new) - 1
    return text_N, order[new]


def _gather(signatures: list[pa.ChunkedArray], rows: NDArray[np.int64], num_perm: int) -> NDArray[np.uint32]:
    """The signatures of `rows` (counted over all shards), [N, P]. Empties the list as it goes: at no time are all
    signatures in memory twice."""
    out_NP = np.empty((len(rows), num_perm), np.uint32)
    position = np.argsort(rows, kind="stable")
    rows = rows[position]
    end = sum(len(column) for column in signatures)
    while signatures:
        column = signatures.pop()
        # Arrow keeps freed memory for later otherwise.
        pa.default_memory_pool().release_unused()
        start = end - len(column)
        low, high = np.searchsorted(rows, [start, end])
        out_NP[position[low:high]] = _flat(column).reshape(-1, num_perm)[rows[low:high] - start]
        end = start
    return out_NP


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    """The values of a column of fixed-size lists or binaries as one flat array (binaries as bytes)."""
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy()  # type: ignore[no-any-return]
    width = array.type.byte_width
    return np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
