"""Encoding and decoding of a teacher's distribution: the `target_*` and `draw_*` columns of `schemas.tables`.

This is what a training repo imports. NumPy and PyArrow only.

Shape legend: S supervised tokens, K targets per token (the most, where their number varies), D draws per token,
N targets of all S tokens together.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

TAIL_FLOOR = float(np.log(1e-7))
"""Smallest log tail mass that is stored (-16.1 nats): a float32 log-softmax knows a mass no better than 1e-7."""

Kind = Literal["target", "draw"]
"""Which columns: `target`, the most probable tokens (top-K); `draw`, an unbiased sample of the whole distribution."""


class Targets(NamedTuple):
    """Distributions of S supervised tokens; row s is the one that produced supervised token s.

    Where a token has fewer than K targets, the rest of its row has id 0 and log-probability -inf.
    """

    ids: npt.NDArray[np.int32]
    """[S, K] token ids. Top-K: most probable first. Draws: ascending."""
    logprobs: npt.NDArray[np.floating[Any]]
    """[S, K] nats. Top-K: softmax over the whole vocabulary at temperature 1 (float16). Draws: the log of count / D
    (float32)."""
    tail: npt.NDArray[np.floating[Any]]
    """[S] log of the mass outside the row, at least TAIL_FLOOR."""


class TopK(NamedTuple):
    """What is stored of the top K of S tokens: one value per target and token, all tokens in a row."""

    ids: npt.NDArray[np.int32]  # [N]
    logprobs: npt.NDArray[np.float16]  # [N]
    tail: npt.NDArray[np.float16]  # [S]
    lengths: npt.NDArray[np.int32]  # [S] targets of each token


class Draws(NamedTuple):
    """What is stored of D draws for each of S tokens: the distinct ids, ascending, and how often each was drawn."""

    ids: npt.NDArray[np.int32]  # [N]
    counts: npt.NDArray[np.int16]  # [N]
    lengths: npt.NDArray[np.int32]  # [S] distinct ids of each token


def encode_top_k(
    ids_SK: npt.NDArray[Any], logprobs_SK: npt.NDArray[Any], top_p: float = 1.0, precision: float = 0.0
) -> TopK:
    """`TopK` of the top K ids, most probable first, and their float32 log-probabilities.

    With `top_p` below 1 a token keeps only as many of its K as are needed to reach that mass, one at least. With a
    `precision` (nats) log-probabilities are rounded to multiples of it. The tail is the mass outside what is kept,
    taken before any rounding.
    """
    S, K = ids_SK.shape
    mass_SK = np.cumsum(np.exp(logprobs_SK.astype(np.float64)), axis=1)
    if top_p < 1.0 and K:
        lengths_S = np.minimum((mass_SK < top_p).sum(axis=1) + 1, K)
        kept_SK = np.arange(K) < lengths_S[:, None]
        ids, logprobs = ids_SK[kept_SK], logprobs_SK[kept_SK]
        mass_S = mass_SK[np.arange(S), lengths_S - 1]
    else:
        lengths_S = np.full(S, K)
        ids, logprobs = ids_SK.ravel(), logprobs_SK.ravel()
        mass_S = mass_SK[:, -1] if K else np.zeros(S)
    if precision:
        logprobs = np.round(logprobs / precision) * precision
    tail_S = np.log(np.maximum(1.0 - mass_S, np.exp(TAIL_FLOOR)))
    return TopK(
        np.ascontiguousarray(ids, dtype=np.int32),
        logprobs.astype(np.float16),
        tail_S.astype(np.float16),
        lengths_S.astype(np.int32),
    )


def encode_draws(draws_SD: npt.NDArray[np.int32]) -> Draws:
    """`Draws` of D token ids drawn for each token, in any order; a negative id is a draw that fell outside of what it
    was taken from, and is left out."""
    S, D = draws_SD.shape
    ordered_SD = np.sort(draws_SD, axis=1)
    is_first_SD = np.ones((S, D), dtype=np.bool_)
    is_first_SD[:, 1:] = ordered_SD[:, 1:] != ordered_SD[:, :-1]
    starts = np.flatnonzero(is_first_SD)  # ids never run on into the next token: its first draw is a start
    counts = np.diff(starts, append=S * D)
    ids = ordered_SD.ravel()[starts]
    inside = ids >= 0
    lengths_S = np.bincount(starts[inside] // D, minlength=S) if D else np.zeros(S)
    return Draws(ids[inside], counts[inside].astype(np.int16), lengths_S.astype(np.int32))


def decode(table: pa.Table, kind: Kind | None = None) -> list[Targets]:
    """`Targets` of each row of a completions table; `kind` is by default `target` where the table has it, else `draw`.

    Views into the table's buffers where every token has the same number of targets, arrays padded to the longest of the
    table otherwise. Raises ValueError when the table has no such columns or a row's lengths disagree.
    """
    if kind is None:
        kind = "target" if "target_ids" in table.column_names else "draw"
    names = [f"{kind}_ids", "target_logprobs" if kind == "target" else "draw_counts", f"{kind}_lengths"]
    names += ["target_tail"] if kind == "target" else []
    if missing := set(names) - set(table.column_names):
        raise ValueError(f"targets: the table has no column {', '.join(sorted(missing))}; read it with these columns")
    columns = {name: table.column(name).combine_chunks() for name in names}
    rows = {name: column.offsets.to_numpy() for name, column in columns.items()}
    flat = {
        name: column.values.to_numpy(zero_copy_only=True)[rows[name][0] : rows[name][-1]]
        for name, column in columns.items()
    }
    ids, lengths = flat[names[0]], flat[names[2]]
    tokens = rows[names[2]] - rows[names[2]][0]  # [rows + 1] where each row's tokens begin
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    for name, expected in [(names[0], ends[tokens]), (names[1], ends[tokens])] + [(n, tokens) for n in names[3:]]:
        offsets = rows[name] - rows[name][0]
        if wrong := np.flatnonzero(offsets != expected)[:1].tolist():
            row = max(wrong[0] - 1, 0)
            raise ValueError(
                f"targets of row {row}: {name} has {np.diff(offsets)[row]} values where {np.diff(expected)[row]} "
                "belong; this is no table of completions, or a damaged one"
            )
    K = int(lengths.max(initial=0))
    padding: np.floating[Any]
    if kind == "target":
        tail, logprobs, padding = flat["target_tail"], flat["target_logprobs"], np.float16(-np.inf)
    else:
        counts = flat["draw_counts"]
        drawn_S = np.add.reduceat(np.append(counts, 0), ends[:-1]) if len(lengths) else np.zeros(0)
        drawn_S = np.where(lengths == 0, 0, drawn_S)
        D_S = np.repeat(_draws(table), np.diff(tokens))
        logprobs = np.log(counts / np.repeat(D_S, lengths)).astype(np.float32)
        tail = np.log(np.maximum(1.0 - drawn_S / np.maximum(D_S, 1), np.exp(TAIL_FLOOR))).astype(np.float32)
        padding = np.float32(-np.inf)
    if len(ids) == K * len(lengths):
        ids_SK, logprobs_SK = ids.reshape(len(lengths), K), logprobs.reshape(len(lengths), K)
    else:
        kept_SK = np.arange(K) < lengths[:, None]
        ids_SK = np.zeros(kept_SK.shape, dtype=np.int32)
        logprobs_SK = np.full(kept_SK.shape, padding)
        ids_SK[kept_SK], logprobs_SK[kept_SK] = ids, logprobs
    return [
        Targets(ids_SK[start:end], logprobs_SK[start:end], tail[start:end])
        for start, end in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True)
    ]


def _draws(table: pa.Table) -> npt.NDArray[np.int32]:
    """[rows] D of each row."""
    if "num_draws" not in table.column_names:
        raise ValueError("targets: the table has no column num_draws; read it with these columns")
    num_draws: npt.NDArray[np.int32] = table.column("num_draws").combine_chunks().to_numpy(zero_copy_only=False)
    return num_draws
