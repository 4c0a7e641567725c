"""Review: marks answers that are empty, repeat themselves, are unsafe, are cut off, or that other prompts got as well.

Not a judge of quality or truth. Duplicates need a view of the whole data set, so there are three steps: `Sketch` per
shard, `assign` once over all sketches, `Review` per shard.

Shape legend: R rows of a table, M messages, A assistant turns, N tokens, D rows of all sketches.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.schemas.config import ClassifierConfig, ReviewConfig
from stillhouse.schemas.tables import DROP_REASON
from stillhouse.stages.classifiers import check_thresholds, combined, score_rows, scores_column, unsafe_rows

MAX_PERIOD = 256
"""Longest repeated piece that is looked for, in tokens: a long paragraph."""

MIN_LOOP_TOKENS = 8
"""A shorter stretch counts as none: it is punctuation or indentation, and `review.loop_tokens` cannot be lower."""

SKETCH = pa.schema([pa.field("sample_id", pa.string()), pa.field("answer_hash", pa.binary(16))])
"""`answer_hash`: null where the answer is empty, since empty answers are dropped for that and duplicate nothing."""

ASSIGNMENT = pa.schema([pa.field("sample_id", pa.string()), DROP_REASON])
"""Row by row what `assign` decided for a shard; the ids let `Review` refuse another shard's."""


class Sketch:
    """The identity of every answer: blake2b-128 of its assistant turns after NFKC, case folding and collapsing of
    white space. Completions in, `SKETCH` out, row by row."""

    def __init__(self, config: ReviewConfig) -> None:
        pass  # one way to compare answers; the argument keeps the three steps alike

    def __call__(self, table: pa.Table) -> pa.Table:
        texts, row_A = assistant_turns(table)
        turns_of: list[list[str]] = [[] for _ in range(table.num_rows)]
        for text, row in zip(texts, row_A.tolist(), strict=True):
            turns_of[row].append(" ".join(unicodedata.normalize("NFKC", text).casefold().split()))
        # No turn has a line break left, so joining by one keeps different turns different.
        hashes = [_blake2b("\n".join(turns)) if turns and all(turns) else None for turns in turns_of]
        return pa.table([table["sample_id"], pa.array(hashes, pa.binary(16))], schema=SKETCH)


def assign(sketches: Iterable[pa.Table], config: ReviewConfig) -> list[pa.Table]:
    """For each sketch an `ASSIGNMENT`: null, or `duplicate_answer` beyond the first `max_duplicates` equal answers.

    First is the smallest blake2b of the sample_id: neither the order of rows nor of shards matters, and no part of the
    source is favoured.
    """
    shards = list(sketches)
    sketch = pa.concat_tables([SKETCH.empty_table(), *shards]).combine_chunks()
    reasons = np.full(sketch.num_rows, None, dtype=object)
    reasons[_surplus(sketch, config.max_duplicates)] = "duplicate_answer"
    assignment = pa.table([sketch["sample_id"], pa.array(reasons, pa.string())], schema=ASSIGNMENT)
    ends = np.cumsum([shard.num_rows for shard in shards], dtype=np.int64)
    return [assignment.slice(end - shard.num_rows, shard.num_rows) for shard, end in zip(shards, ends, strict=True)]


class Review:
    """Adds `loop_tokens`, `response_scores` (absent when no classifier is configured) and `drop_reason`.

    Each assistant turn is judged on its own and the worst one counts. Reasons, first one wins: `empty_answer`,
    `degenerate_answer`, `unsafe_answer`, `truncated_answer`, `duplicate_answer`. Raises `ConfigError` when a
    classifier or a threshold cannot be used as configured, `ValueError` when the assignment is another shard's.
    """

    def __init__(self, config: ReviewConfig, classifiers: Sequence[ClassifierConfig]) -> None:
        self._config = config
        self._classifier = combined(classifiers)
        self._thresholds = (
            self._classifier.thresholds
            if config.thresholds is None
            else check_thresholds(config.thresholds, self._classifier.labels, "review")
        )

    def __call__(self, table: pa.Table, assignment: pa.Table) -> pa.Table:
        if not assignment["sample_id"].equals(table["sample_id"]):
            raise ValueError(
                f"review: the duplicate assignment of {assignment.num_rows} rows is not for this shard of "
                f"{table.num_rows} rows; sketch and assign again"
            )
        labels, num_rows = self._classifier.labels, table.num_rows
        texts, row_A = assistant_turns(table)
        loop_tokens_R = longest_loops(table["labels"], self._config.loop_repeats)
        scores_RL = score_rows(self._classifier, texts, row_A, num_rows)

        reasons = np.array(assignment["drop_reason"].to_pylist(), dtype=object)  # and over it, weakest reason first
        if self._config.drop_truncated:
            reasons[_truncated(table)] = "truncated_answer"
        reasons[unsafe_rows(scores_RL, labels, self._thresholds)] = "unsafe_answer"
        reasons[loop_tokens_R >= self._config.loop_tokens] = "degenerate_answer"
        reasons[_empty(texts, row_A, num_rows)] = "empty_answer"

        table = table.append_column("loop_tokens", pa.array(loop_tokens_R))
        if labels:
            table = table.append_column("response_scores", scores_column(scores_RL, labels))
        return table.append_column(DROP_REASON, pa.array(reasons, pa.string()))


def assistant_turns(table: pa.Table) -> tuple[list[str], NDArray[np.int64]]:
    """The contents of all assistant turns in order (null as empty), and the row of each [A]."""
    messages = table["messages"].combine_chunks()
    flat = pc.list_flatten(messages)
    is_assistant_M = pc.fill_null(pc.equal(pc.struct_field(flat, "role"), "assistant"), False)
    contents = pc.fill_null(pc.filter(pc.struct_field(flat, "content"), is_assistant_M), "")
    return contents.to_pylist(), pc.filter(pc.list_parent_indices(messages), is_assistant_M).to_numpy()


def longest_loops(labels: pa.ChunkedArray, min_repeats: int) -> NDArray[np.int32]:
    """[R]: tokens of the longest stretch of one answer that is a piece said at least `min_repeats` times; 0 if none.

    `labels` is the column of that name: an answer is a run of tokens that are not -100. A stretch has period p when
    each of its tokens but the first p equals the one p before it; it may end inside a piece. Pieces have up to
    `MAX_PERIOD` tokens, stretches at least `MIN_LOOP_TOKENS`. On token ids, so scripts and languages are alike.
    """
    lists = labels.combine_chunks()
    row_N = pc.list_parent_indices(lists).to_numpy()
    token_N = pc.list_flatten(lists).to_numpy()
    written_N = token_N != -100
    starts_N = written_N.copy()
    starts_N[1:] &= ~written_N[:-1] | (row_N[1:] != row_N[:-1])
    answer_N = np.cumsum(starts_N)[written_N] - 1
    token_N, row_A = token_N[written_N], row_N[starts_N]
    num_tokens_A = np.bincount(answer_N, minlength=len(row_A))

    # Longest answer first: those with room for min_repeats pieces of p tokens are then the first ones, at every p.
    order_A = np.argsort(-num_tokens_A, kind="stable")
    rank_A = np.empty_like(order_A)
    rank_A[order_A] = np.arange(len(order_A))
    order_N = np.argsort(rank_A[answer_N], kind="stable")
    token_N, answer_N = token_N[order_N], answer_N[order_N]
    end_A = np.cumsum(num_tokens_A[order_A])

    loop_tokens_A = np.zeros(len(row_A), np.int32)
    for p in range(1, MAX_PERIOD + 1):
        num_answers = np.searchsorted(-num_tokens_A[order_A], -min_repeats * p, side="right")
        if num_answers == 0:
            break
        token, answer = token_N[: end_A[num_answers - 1]], answer_N[: end_A[num_answers - 1]]
        again = np.flatnonzero(token[p:] == token[:-p]) + p  # positions that equal the one p before them
        again = again[answer[again] == answer[again - p]]
        # The first p tokens of an answer are not in `again`, so no run of positions goes on into the next answer.
        first = np.flatnonzero(np.diff(again, prepend=-2) != 1)
        stretch = np.diff(first, append=len(again)) + p
        is_loop = stretch >= max(min_repeats * p, MIN_LOOP_TOKENS)
        np.maximum.at(loop_tokens_A, answer[again[first[is_loop]]], stretch[is_loop].astype(np.int32))

    loop_tokens_R = np.zeros(len(lists), np.int32)
    np.maximum.at(loop_tokens_R, row_A, loop_tokens_A)
    return loop_tokens_R


def _empty(texts: Sequence[str], row_A: NDArray[np.int64], num_rows: int) -> NDArray[np.bool_]:
    """[R]: whether an assistant turn is blank, or there is none."""
    is_empty_R: NDArray[np.bool_] = np.bincount(row_A, minlength=num_rows) == 0
    is_empty_R[row_A[np.array([not text.strip() for text in texts], bool)]] = True
    return is_empty_R


def _truncated(table: pa.Table) -> NDArray[np.bool_]:
    """[R]: whether an assistant turn ended by length."""
    finish_reasons = table["finish_reasons"].combine_chunks()
    by_length = pc.fill_null(pc.equal(pc.list_flatten(finish_reasons), "length"), False)
    is_truncated_R = np.zeros(table.num_rows, bool)
    is_truncated_R[pc.filter(pc.list_parent_indices(finish_reasons), by_length).to_numpy()] = True
    return is_truncated_R


def _surplus(sketch: pa.Table, max_duplicates: int) -> NDArray[np.int64]:
    """Row numbers of the answers beyond the first `max_duplicates` of each hash, of a table in one chunk."""
    row_D = np.flatnonzero(pc.is_valid(sketch["answer_hash"]).to_numpy())
    high_D, low_D = _halves(sketch["answer_hash"].take(pa.array(row_D)))
    order_D = np.lexsort((low_D, high_D))
    row_D, high_D, low_D = row_D[order_D], high_D[order_D], low_D[order_D]
    is_first_D = np.ones(len(row_D), bool)
    is_first_D[1:] = (high_D[1:] != high_D[:-1]) | (low_D[1:] != low_D[:-1])
    group_D = np.cumsum(is_first_D) - 1
    # Only the ids in groups that are too large are hashed: the rest is kept whatever its place.
    crowded_D = np.bincount(group_D, minlength=1)[group_D] > max_duplicates
    row_D, group_D = row_D[crowded_D], group_D[crowded_D]
    sample_ids = sketch["sample_id"].take(pa.array(row_D)).to_pylist()
    high_D, low_D = _halves(pa.chunked_array([[_blake2b(sample_id) for sample_id in sample_ids]], pa.binary(16)))
    order_D = np.lexsort((low_D, high_D, group_D))
    row_D, group_D = row_D[order_D], group_D[order_D]
    place_D = np.arange(len(group_D)) - np.searchsorted(group_D, group_D)
    surplus_D: NDArray[np.int64] = row_D[place_D >= max_duplicates]
    return surplus_D


def _halves(hashes: pa.ChunkedArray) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """16-byte hashes without nulls as two big-endian integers, which sort as the bytes do."""
    halves_D2 = np.frombuffer(b"".join(hashes.to_pylist()), ">u8").reshape(-1, 2).astype(np.uint64)
    return halves_D2[:, 0], halves_D2[:, 1]


def _blake2b(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
