"""Marks prompts that repeat another one: equal after normalisation, or near-duplicates by MinHash and banding.

Duplicates can be in any two shards, so there are three steps: `Sketch` reads one shard, `assign` compares the sketches
of all shards at once, `mark` writes one shard's verdict. Sketches hold no text.

Clusters are connected components: two members of one cluster can be less similar than `threshold` if a chain of prompts
joins them.

Shape legend: N rows or distinct texts, P permutations.
"""

import hashlib
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasketch import MinHash
from numpy.typing import NDArray

from stillhouse.schemas import tables
from stillhouse.schemas.config import DedupeConfig
from stillhouse.stages.text.minhash import components
from stillhouse.stages.text.shingles import normalise, shingles

EXACT = "exact_duplicate"
"""Drop reason: a row with the same normalised text is kept instead."""

NEAR = "near_duplicate"
"""Drop reason: a row with another text of the same cluster is kept instead."""

ASSIGNMENT = pa.schema([*list(tables.DEDUPED)[len(tables.PROMPTS) :], tables.DROP_REASON])
"""What `assign` decides for each row; `mark` appends it to the shard."""


# Not left to datasketch's default: stored signatures must stay comparable, and those of two schemes are not.
_SCHEME = "affine32"
_SHINGLES_AT_ONCE = 4096


def sketch_schema(num_perm: int) -> pa.Schema:
    """The columns of a sketch. It has a row for each prompt, without its text."""
    return pa.schema(
        [
            pa.field("prompt_id", pa.string()),
            # BLAKE2b of the normalised user turns, 128 bits.
            pa.field("text_hash", pa.binary(16)),
            # MinHash of the shingles of all user turns, [P]; all bits are set where there is no shingle.
            pa.field("signature", pa.list_(pa.uint32(), num_perm)),
            # Redacted or flagged by the source: other rows of its cluster are kept first.
            pa.field("demoted", pa.bool_()),
        ]
    )


class Sketch:
    """Turns a shard of prompts into what is compared: a hash and a MinHash signature of each row's user turns."""

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
            # Normalised text holds no line break, so ["a b"] and ["a", "b"] stay different conversations.
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
        items = list(shingles(text, self.config.ngram, self.config.char_ngram))
        for start in range(0, len(items), _SHINGLES_AT_ONCE):
            self.minhash.update_batch(items[start : start + _SHINGLES_AT_ONCE])
        signature_P: NDArray[np.uint32] = self.minhash.hashvalues
        return signature_P


def assign(sketches: Iterable[pa.Table], config: DedupeConfig) -> list[pa.Table]:
    """Sketches of all shards in, one `ASSIGNMENT` table per shard out, row for row, in the same order.

    The verdict on a prompt depends on the set of prompts alone, not on their order or on how they are sharded. Within
    a cluster, rows that are not demoted come before demoted ones, and then rows are ordered by `prompt_id` (by code
    point). The first `max_per_cluster` distinct texts in that order keep their first row. `cluster_id` is the
    `prompt_id` of the cluster's first row; `cluster_size` counts all of its rows, dropped ones included.

    Memory: P x 4 bytes per row, plus about 200 bytes per row. `sketches` may be a generator.
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
    cluster_N = components(_gather(signatures, first_N, config.num_perm), config.threshold)[text_N]

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
    """Append a shard's assignment to it: `tables.PROMPTS` in, `tables.marked(tables.DEDUPED)` out."""
    if table.num_rows != assignment.num_rows:
        raise ValueError(
            f"dedupe: the shard has {table.num_rows} rows and its assignment {assignment.num_rows}; "
            "delete the assignments and run dedupe again"
        )
    columns = [*table.columns, *(assignment[name] for name in ASSIGNMENT.names)]
    return pa.table(columns, schema=tables.marked(tables.DEDUPED))


def _distinct(hash_N2: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the distinct texts by their hashes, which does not depend on the order of rows. Returns the number of each
    row's text, and for each text one of its rows."""
    order = np.lexsort(hash_N2.T)
    sorted_N2 = hash_N2[order]
    new = np.r_[True, (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)]
    text_N = np.empty(len(order), np.int64)
    text_N[order] = np.cumsum(new) - 1
    return text_N, order[new]


def _gather(signatures: list[pa.ChunkedArray], rows: NDArray[np.int64], num_perm: int) -> NDArray[np.uint32]:
    """The signatures [N, P] of `rows`, which are counted over all shards. Empties the list on the way, so that the
    signatures are never in memory twice."""
    out_NP = np.empty((len(rows), num_perm), np.uint32)
    position = np.argsort(rows, kind="stable")
    rows = rows[position]
    end = sum(len(column) for column in signatures)
    while signatures:
        column = signatures.pop()
        # Otherwise Arrow keeps the freed memory for itself.
        pa.default_memory_pool().release_unused()
        start = end - len(column)
        low, high = np.searchsorted(rows, [start, end])
        out_NP[position[low:high]] = _flat(column).reshape(-1, num_perm)[rows[low:high] - start]
        end = start
    return out_NP


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    """The values of a column of fixed-size lists or binaries as one flat array; of binaries, their bytes."""
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy()  # type: ignore[no-any-return]
    width = array.type.byte_width
    return np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
