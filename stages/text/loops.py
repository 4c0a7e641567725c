"""Finds answers that repeat one piece again and again.

Shape legend: R rows of a table, A assistant turns, N tokens.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.schemas.tables import IGNORE_INDEX

MAX_PERIOD = 256
"""The longest piece whose repetition is found, in tokens: a long paragraph."""
MIN_LOOP_TOKENS = 8
"""A shorter stretch is punctuation or indentation, not a loop. `review.loop_tokens` cannot be lower."""


def longest_loops(labels: pa.ChunkedArray, min_repeats: int) -> NDArray[np.int32]:
    """[R]: the length in tokens of the row's longest loop; 0 where there is none.

    A loop is a stretch of one answer that consists of one piece, repeated at least `min_repeats` times; it may end
    inside a piece. For a piece of p tokens, every token of the stretch after the first p equals the token p before it.
    Pieces have up to `MAX_PERIOD` tokens, loops at least `MIN_LOOP_TOKENS`. Token ids are compared, so that all scripts
    and languages are treated alike. `labels` is the column of that name; an answer is a run of tokens other than -100.
    """
    lists = labels.combine_chunks()
    row_N = pc.list_parent_indices(lists).to_numpy()
    token_N = pc.list_flatten(lists).to_numpy()
    written_N = token_N != IGNORE_INDEX
    starts_N = written_N.copy()
    starts_N[1:] &= ~written_N[:-1] | (row_N[1:] != row_N[:-1])
    answer_N = np.cumsum(starts_N)[written_N] - 1
    token_N, row_A = token_N[written_N], row_N[starts_N]
    num_tokens_A = np.bincount(answer_N, minlength=len(row_A))

    # Longest answer first, so that for every p the answers with room for min_repeats pieces of p tokens come first.
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
        # An answer's first p tokens are not in `again`, so no run of positions continues into the next answer.
        first = np.flatnonzero(np.diff(again, prepend=-2) != 1)
        stretch = np.diff(first, append=len(again)) + p
        is_loop = stretch >= max(min_repeats * p, MIN_LOOP_TOKENS)
        np.maximum.at(loop_tokens_A, answer[again[first[is_loop]]], stretch[is_loop].astype(np.int32))

    loop_tokens_R = np.zeros(len(lists), np.int32)
    np.maximum.at(loop_tokens_R, row_A, loop_tokens_A)
    return loop_tokens_R
