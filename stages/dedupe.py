"""Marks prompts that repeat another one: the same text, the same text typed another way, near-duplicates by MinHash,
and where they are asked for those of the same meaning.

Duplicates can be in any two shards, so there are three steps: `Sketch` reads one shard, `assign` compares the sketches
of all shards at once, `mark` writes one shard's verdict. Sketches hold no text.

A cluster is a prompt that is kept and those that are like it: `threshold` like it, of its meaning, or one `reading`
with it. Prompts that are like each other through others only are not in one cluster. Prompts under different system
prompts are never alike.

Shape legend: N rows, T distinct readings, P permutations, D dimensions of embeddings.
"""

import tempfile
import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.schemas import tables
from stillhouse.schemas.config import DedupeConfig
from stillhouse.stages.filters.clock import Clock
from stillhouse.stages.text.many_shingles import shingles_of
from stillhouse.stages.text.meaning import Embedder, Meanings
from stillhouse.stages.text.minhash import leaders
from stillhouse.stages.text.reading import reading
from stillhouse.stages.text.readings import readings
from stillhouse.stages.text.shingles import units
from stillhouse.stages.text.signatures import Signatures

EXACT = "exact_duplicate"
"""Drop reason: a row with the same text is kept instead. White space at its ends does not count."""

NEAR = "near_duplicate"
"""Drop reason: a row with another text that is like this one is kept instead."""

SEMANTIC = "semantic_duplicate"
"""Drop reason: a row with another text, of the same meaning by its embedding, is kept instead."""

ASSIGNMENT = pa.schema([*list(tables.DEDUPED)[len(tables.PROMPTS) :], tables.DROP_REASON])
"""What `assign` decides for each row; `mark` appends it to the shard."""


_KEPT = 1 << 23
"""Bytes, half of what a process keeps of freed memory from one shard to the next."""


def sketch_schema(num_perm: int, num_dimensions: int | None = None) -> pa.Schema:
    """The columns of a sketch. It has a row for each prompt, without its text. `num_dimensions` is that of the
    embeddings, where there are any."""
    schema = pa.schema(
        [
            pa.field("prompt_id", pa.string()),
            # BLAKE2b of the user turns and the system prompt: of the texts, of what they say (`text.reading`), and of
            # the units that shingles are made of.
            pa.field("text_hash", pa.binary(16)),
            pa.field("reading_hash", pa.binary(16)),
            pa.field("units_digest", pa.binary(8)),
            # MinHash of the shingles of all user turns, each with the system prompt, [P].
            pa.field("signature", pa.list_(pa.uint32(), num_perm)),
            # Redacted or flagged by the source: other rows of its cluster are kept first.
            pa.field("demoted", pa.bool_()),
        ]
    )
    if num_dimensions is None:
        return schema
    # Of all user turns, [D] whole numbers (`text.meaning`); and the BLAKE2b of what must be the same for the same
    # meaning: the system prompt and all units with digits, in their order.
    return schema.append(pa.field("embedding", pa.list_(pa.int8(), num_dimensions))).append(
        pa.field("kin", pa.binary(8))
    )


class Sketch:
    """Turns a shard of prompts into what is compared: hashes and a MinHash signature of each row's user turns and
    system prompt."""

    def __init__(self, config: DedupeConfig) -> None:
        self.config = config
        self._signatures = Signatures(config.num_perm, config.seed)
        self._embedder = None if config.semantic is None else Embedder(config.semantic)
        self.clock = Clock()
        # Of what a shard's arrays took, glibc returns to the system what is above a bound, and gets it back page by
        # page for the next: a tenth of the time. Twice the largest block freed so far is the bound (mallopt(3)).
        np.empty(_KEPT, np.uint8)

    def __call__(self, table: pa.Table) -> pa.Table:
        """`tables.PROMPTS` in, `sketch_schema` out, row for row."""
        num_perm = self.config.num_perm
        systems = [system or "" for system in table["system_prompt"].to_pylist()]
        texts_of = table["user_turns"]
        if "answers" in table.column_names:
            # With task: score they are part of what is compared: two samples of one prompt are no duplicates.
            of_rows = zip(texts_of.to_pylist(), table["answers"].to_pylist(), strict=True)
            texts_of = pa.array([[*said, *given] for said, given in of_rows], texts_of.type)
        # One list of all texts: a list for each row costs as much as a hash of it.
        texts, num_of = pc.list_flatten(texts_of).to_pylist(), pc.list_value_length(texts_of).to_pylist()
        read = readings(texts)
        different = list(dict.fromkeys(systems))
        reading_of = dict(zip(different, readings(different), strict=True))
        raw_head = {system: _with(blake2b(digest_size=16), [system.strip().encode()]) for system in different}
        head = {system: _with(blake2b(digest_size=16), [said.encode()]) for system, said in reading_of.items()}
        units_head = {system: _with(blake2b(digest_size=8), [said.encode()]) for system, said in reading_of.items()}
        # With a prefix, prompts under different system prompts have no shingle in common.
        prefix = {system: zlib.crc32(head[system].digest()) if said else 0 for system, said in reading_of.items()}

        text_hashes = _hashes([raw_head[system] for system in systems], [text.strip() for text in texts], num_of)
        reading_hashes = _hashes([head[system] for system in systems], read, num_of)
        following = iter(read)
        joined = ["\n\n".join(islice(following, num)) for num in num_of]
        shingles = shingles_of(joined, [prefix[system] for system in systems], self.config.ngram)
        units_hashes = [
            _with(units_head[system], [found]).digest() for system, found in zip(systems, shingles.units, strict=True)
        ]
        # CRC-32 is fast and the same everywhere; its bits are mixed before they are permuted.
        signature_NP = self._signatures(shingles.hashes, shingles.num_hashes)
        demoted = pc.or_(table["redacted"].fill_null(False), table["moderation_flagged"].fill_null(False))
        columns = [
            table["prompt_id"],
            pa.array(text_hashes, pa.binary(16)),
            pa.array(reading_hashes, pa.binary(16)),
            pa.array(units_hashes, pa.binary(8)),
            pa.FixedSizeListArray.from_arrays(pa.array(signature_NP.ravel()), num_perm),
            demoted,
        ]
        if self._embedder is None:
            return pa.table(columns, schema=sketch_schema(num_perm))
        said = ["\n\n".join(of_row) for of_row in texts_of.to_pylist()]
        with self.clock.of(SEMANTIC):
            vector_ND = self._embedder(said)
        columns += [
            pa.FixedSizeListArray.from_arrays(pa.array(vector_ND.ravel()), vector_ND.shape[1]),
            pa.array([_kin(*pair) for pair in zip(systems, said, strict=True)], pa.binary(8)),
        ]
        return pa.table(columns, schema=sketch_schema(num_perm, vector_ND.shape[1]))


def assign(sketches: Iterable[pa.Table], config: DedupeConfig) -> Iterator[pa.Table]:
    """Sketches of all shards in, one `ASSIGNMENT` table per shard out, row for row, in the same order.

    The verdict on a prompt depends on the set of prompts alone, not on their order or on how they are sharded: rows
    that are not demoted come before demoted ones, and then rows are ordered by `prompt_id` (by code point). Rows of one
    reading are judged together, by the first of them. In that order, a reading that is like no earlier leader leads a
    cluster, any other belongs to the first leader that it is like, or else to the first of its meaning. The first
    `max_per_cluster` readings of a cluster, its leader among them, keep their first row. `cluster_id` is the
    `prompt_id` of the leader's first row; `cluster_size` counts all rows of the cluster, dropped ones included.

    Signatures go to a temporary file ($TMPDIR), P x 4 bytes per row, and `leaders` writes 8 bytes per row and band to
    another, then the signatures of rows that share a band. Memory: about 200 bytes per row; `sketches` may be a
    generator. Raises OSError where the disk is full.
    """
    schema = sketch_schema(config.num_perm)
    columns: dict[str, list[Any]] = {}
    with tempfile.TemporaryFile() as signatures:
        for shard, sketch in enumerate(sketches):
            if not columns:
                if config.semantic is not None and "embedding" in sketch.column_names:
                    schema = sketch_schema(config.num_perm, sketch.schema.field("embedding").type.list_size)
                columns = {name: [] for name in schema.names if name != "signature"}
            if not sketch.schema.equals(schema):
                raise ValueError(
                    f"dedupe: the sketch of shard {shard} does not have the columns of {config.num_perm} permutations; "
                    "sketch all shards with the same configuration"
                )
            columns["prompt_id"].append(sketch["prompt_id"].cast(pa.large_string()))
            for name in columns.keys() & {"text_hash", "reading_hash", "units_digest", "kin"}:
                columns[name].append(_flat(sketch[name]).view(np.uint64))
            columns["demoted"].append(sketch["demoted"].to_numpy())
            if "embedding" in columns:
                columns["embedding"].append(_flat(sketch["embedding"]))
            signatures.write(_flat(sketch["signature"]).data)
            del sketch
        signatures.flush()
        ids = columns.pop("prompt_id", [])
        sizes = [len(column) for column in ids]
        if sum(sizes) == 0:
            return iter([ASSIGNMENT.empty_table() for _ in sizes])
        id_N = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.large_string())
        id_N = id_N.combine_chunks()
        del ids
        rank_N = np.empty(len(id_N), np.int64)
        rank_N[pc.sort_indices(id_N).to_numpy()] = np.arange(len(id_N))
        order_N = np.lexsort((rank_N, np.concatenate(columns.pop("demoted"))))
        del rank_N
        reading_N, first_T = _distinct(np.concatenate(columns.pop("reading_hash")).reshape(-1, 2), order_N)
        del order_N
        units_T = np.concatenate(columns.pop("units_digest"))[first_T]
        meanings = None
        if config.semantic is not None:
            vector_TD = np.concatenate(columns.pop("embedding")).reshape(len(id_N), -1)[first_T]
            kin_T = np.concatenate(columns.pop("kin"))[first_T]
            meanings = Meanings(vector_TD, kin_T, units_T, config.semantic.threshold)
        signature_NP = np.memmap(signatures, np.uint32, "r", shape=(len(id_N), config.num_perm))
        leader_T = leaders(signature_NP, units_T, config.threshold, first_T, meanings)
        del signature_NP

    kept_T = _places(leader_T) < config.max_per_cluster
    text_N2 = np.concatenate(columns.pop("text_hash")).reshape(-1, 2)
    is_equal_N = (text_N2 == text_N2[first_T[reading_N]]).all(axis=1)
    del text_N2
    reason_N = np.where(is_equal_N & kept_T[reading_N], 1, 2).astype(np.int8)
    if meanings is not None:
        reason_N[(meanings.is_led_N & ~kept_T)[reading_N]] = 3
    reason_N[first_T[kept_T]] = 0
    cluster_N = leader_T[reading_N]
    size_N = np.bincount(cluster_N)[cluster_N]
    best_N = first_T[cluster_N]
    del is_equal_N, reading_N, leader_T, cluster_N
    reasons = pa.array([None, EXACT, NEAR, SEMANTIC], pa.string())

    def assignment(rows: slice) -> pa.Table:
        verdict = [id_N.take(pa.array(best_N[rows])), pa.array(size_N[rows]), reasons.take(pa.array(reason_N[rows]))]
        return pa.table(
            [column.cast(field.type) for column, field in zip(verdict, ASSIGNMENT, strict=True)], ASSIGNMENT
        )

    return (assignment(slice(end - size, end)) for end, size in zip(np.cumsum(sizes), sizes, strict=True))


def mark(table: pa.Table, assignment: pa.Table) -> pa.Table:
    """Append a shard's assignment to it: `tables.PROMPTS` in, `tables.marked(tables.DEDUPED)` out, with
    `prompt_personal` in both where it is counted."""
    if table.num_rows != assignment.num_rows:
        raise ValueError(
            f"dedupe: the shard has {table.num_rows} rows and its assignment {assignment.num_rows}; "
            "delete the assignments and run dedupe again"
        )
    columns = [*table.columns, *(assignment[name] for name in ASSIGNMENT.names)]
    return pa.table(columns, schema=pa.schema([*table.schema, *ASSIGNMENT]))


def _distinct(hash_N2: NDArray[np.uint64], order_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the distinct hashes by their first row in `order_N`. Returns the number of each row's hash, and each
    hash's first row."""
    # Positions in `order_N`, by hash; those of one hash stay in order.
    at_N = np.lexsort([column_N[order_N] for column_N in hash_N2.T])
    by_hash = order_N[at_N]
    is_new_N = np.zeros(len(at_N), bool)
    is_new_N[0] = True
    for column_N in hash_N2.T:
        sorted_N = column_N[by_hash]
        is_new_N[1:] |= sorted_N[1:] != sorted_N[:-1]
    first_at_T = at_N[is_new_N]
    del at_N, sorted_N
    by_place = np.argsort(first_at_T)
    first_T = order_N[first_at_T[by_place]]
    number_T = np.empty_like(by_place)
    number_T[by_place] = np.arange(len(by_place))
    del first_at_T, by_place
    number_N = np.empty(len(by_hash), np.int64)
    number_N[by_hash] = number_T[np.cumsum(is_new_N) - 1]
    return number_N, first_T


def _places(leader_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """[T]: the place of each text among those of its leader, from 0."""
    order = np.argsort(leader_T, kind="stable")
    place_T = np.empty_like(order)
    place_T[order] = np.arange(len(order)) - np.searchsorted(leader_T[order], leader_T[order])
    return place_T


def _kin(system: str, said: str) -> bytes:
    """The hash of what two prompts must have in common to be of one meaning, whatever their embeddings say."""
    numbers = [unit for unit in units(said) if any(char.isdigit() for char in unit)]
    return _with(blake2b(digest_size=8), [reading(system).encode(), "\n".join(numbers).encode()]).digest()


def _hashes(heads: list[blake2b], texts: list[str], num_of: list[int]) -> list[bytes]:
    """Of each row: of what its head has taken and its texts, of which it has `num_of`."""
    following = map(str.encode, texts)
    return [_with(head, islice(following, num)).digest() for head, num in zip(heads, num_of, strict=True)]


def _with(begun: blake2b, texts: Iterable[bytes]) -> blake2b:
    """The hash of what `begun` has taken and of the texts, each with its length before it, so that ["ab"] and ["a",
    "b"] differ."""
    hashed = begun.copy()  # costs less than to begin anew
    for text in texts:
        hashed.update(len(text).to_bytes(8, "little"))
        hashed.update(text)
    return hashed


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    """The values of a column of fixed-size lists or binaries as one flat array; of binaries, their bytes."""
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy()  # type: ignore[no-any-return]
    width = array.type.byte_width
    return np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
