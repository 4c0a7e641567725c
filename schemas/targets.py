"""Encoding and decoding of a teacher's distribution: the `target_*` columns of `schemas.tables.COMPLETIONS`.

This is what a training repo imports. NumPy and PyArrow only.

Shape legend: S supervised tokens, K targets kept per token.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

TAIL_FLOOR = float(np.log(1e-7))
"""Smallest log tail mass that is stored (-16.1 nats): a float32 log-softmax knows a mass no better than 1e-7."""


class Targets(NamedTuple):
    """Distributions of S supervised tokens; row s is the one that produced supervised token s."""

    ids: npt.NDArray[np.int32]
    """[S, K] token ids, most probable first."""
    logprobs: npt.NDArray[np.float16]
    """[S, K] log-probabilities in nats: softmax over the whole vocabulary at temperature 1."""
    tail: npt.NDArray[np.float16]
    """[S] log of the mass outside the K, at least TAIL_FLOOR."""


def encode(ids_SK: npt.NDArray[Any], logprobs_SK: npt.NDArray[Any]) -> Targets:
    """`Targets` of the top K ids and their float32 log-probabilities.

    The tail's mass is taken before the log-probabilities are rounded to float16.
    """
    mass_S = np.exp(logprobs_SK.astype(np.float64)).sum(axis=1)
    tail_S = np.log(np.maximum(1.0 - mass_S, np.exp(TAIL_FLOOR)))
    return Targets(
        np.ascontiguousarray(ids_SK, dtype=np.int32), logprobs_SK.astype(np.float16), tail_S.astype(np.float16)
    )


def decode(table: pa.Table) -> list[Targets]:
    """`Targets` of each row of a completions table (columns target_ids, target_logprobs, target_tail).

    Zero-copy views into the table's buffers. Raises ValueError when a row's lengths disagree.
    """
    columns = [table.column(name).combine_chunks() for name in ("target_ids", "target_logprobs", "target_tail")]
    offsets = [column.offsets.to_numpy() for column in columns]
    values = [column.values.to_numpy(zero_copy_only=True) for column in columns]
    rows = []
    for row in range(table.num_rows):
        ids, logprobs, tail = (v[o[row] : o[row + 1]] for v, o in zip(values, offsets, strict=True))
        S = len(tail)
        K = len(ids) // S if S else 0
        if not len(ids) == len(logprobs) == S * K:
            raise ValueError(
                f"targets of row {row}: {len(ids)} ids and {len(logprobs)} log-probabilities for {S} tokens; "
                "this is no table of completions, or a damaged one"
            )
        rows.append(Targets(ids.reshape(S, K), logprobs.reshape(S, K), tail))
    return rows
