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

LOWEST_LOGPROB = -500.0
"""Smaller log-probabilities, such as those of masked tokens, are stored as this one where there is a precision; or as
32,767 steps of it below 0, where that is larger: int16 has no larger gap."""

Kind = Literal["target", "draw"]
"""Which columns: `target`, the most probable tokens (top-K); `draw`, an unbiased sample of the whole distribution."""


class Targets(NamedTuple):
    """Distributions of S supervised tokens; row s is the one that produced supervised token s.

    Where a token has fewer than K targets, the rest of its row has id 0 and log-probability -inf. A token that was left
    out (`targets.keep`) has none: its whole row is that, and its tail 0.
    """

    ids: npt.NDArray[np.int32]
    """[S, K] token ids. Top-K: most probable first. Draws: ascending."""
    logprobs: npt.NDArray[np.floating[Any]]
    """[S, K] nats. Top-K: softmax over the whole vocabulary at temperature 1. Draws: the log of count / D. float32;
    float16 from shards that store it (of before format 2)."""
    tail: npt.NDArray[np.floating[Any]]
    """[S] log of the mass outside the row, at least TAIL_FLOOR."""


class TopK(NamedTuple):
    """What is stored of the top K of S tokens: one value per target and token, all tokens in a row.

    Log-probabilities and tails have float16's precision. Parquet has the same values as float32, which more readers
    know and which compresses better. Of `logprobs` and `gaps` there is one: log-probabilities, or by how many steps of
    `target_precision` nats a target is below the one before it in its token (the first one: below 0).
    """

    ids: npt.NDArray[np.int32]  # [N]
    logprobs: npt.NDArray[np.float16] | None  # [N]
    gaps: npt.NDArray[np.int16] | None  # [N]
    tail: npt.NDArray[np.float16]  # [S]
    lengths: npt.NDArray[np.int32]  # [S] targets of each token


class Draws(NamedTuple):
    """What is stored of D draws for each of S tokens: the distinct ids, ascending, and how often each was drawn."""

    ids: npt.NDArray[np.int32]  # [N]
    counts: npt.NDArray[np.int16]  # [N]
    lengths: npt.NDArray[np.int32]  # [S] distinct ids of each token


def encode_top_k(
    ids_SK: npt.NDArray[Any],
    logprobs_SK: npt.NDArray[Any],
    top_p: float = 1.0,
    precision: float = 0.0,
    asked_S: npt.NDArray[np.bool_] | None = None,
) -> TopK:
    """`TopK` of the top K ids, most probable first, and their float32 log-probabilities.

    With `top_p` below 1 a token keeps only as many of its K as are needed to reach that mass, one at least. With a
    `precision` (nats) log-probabilities are rounded to multiples of it and stored as gaps: what is rounded is the
    value, so errors do not add up. The tail is the mass outside what is kept, taken before any rounding.

    With `asked_S` the other tokens keep no target, and all of their mass is outside: their tail is 0.
    """
    S, K = ids_SK.shape
    mass_SK = np.cumsum(np.exp(logprobs_SK.astype(np.float64)), axis=1)
    lengths_S = np.full(S, K)
    kept_SK: Any = slice(None)  # a mask would copy
    mass_S = mass_SK[:, -1] if K else np.zeros(S)
    if top_p < 1.0 and K:
        lengths_S = np.minimum((mass_SK < top_p).sum(axis=1) + 1, K)
        kept_SK = np.arange(K) < lengths_S[:, None]
        mass_S = mass_SK[np.arange(S), lengths_S - 1]
    if asked_S is not None:
        lengths_S, mass_S = np.where(asked_S, lengths_S, 0), np.where(asked_S, mass_S, 0.0)
        kept_SK = np.arange(K) < lengths_S[:, None]
    logprobs = gaps = None
    if precision:
        lowest = max(LOWEST_LOGPROB, -np.iinfo(np.int16).max * precision)
        steps_SK = np.round(np.maximum(logprobs_SK, lowest) / -precision).astype(np.int32)
        gaps = np.diff(steps_SK, axis=1, prepend=0)[kept_SK].ravel().astype(np.int16)
    else:
        logprobs = logprobs_SK[kept_SK].ravel().astype(np.float16)
    tail_S = np.log(np.maximum(1.0 - mass_S, np.exp(TAIL_FLOOR)))
    ids = np.ascontiguousarray(ids_SK[kept_SK].ravel(), dtype=np.int32)
    return TopK(ids, logprobs, gaps, tail_S.astype(np.float16), lengths_S.astype(np.int32))


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
    value = "draw_counts" if kind == "draw" else "target_gaps" if "target_gaps" in table.column_names else None
    names = [f"{kind}_ids", value or "target_logprobs", f"{kind}_lengths"]
    names += ["target_tail"] if kind == "target" else []
    if missing := set(names) - set(table.column_names):
        raise ValueError(f"targets: the table has no column {', '.join(sorted(missing))}; read it with these columns")
    columns = {name: table.column(name).combine_chunks() for name in names}
    rows = {name: column.offsets.to_numpy() for name, column in columns.items()}
    flat = {
        name: column.values.to_numpy(zero_copy_only=True)[rows[name][0] : rows[name][-1]]
        for name, column in columns.items()
    }
    ids, values, lengths = flat[names[0]], flat[names[1]], flat[names[2]]
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
    kept_SK = None if len(ids) == K * len(lengths) else np.arange(K) < lengths[:, None]
    ids_SK, values_SK = _rows(ids, kept_SK, len(lengths)), _rows(values, kept_SK, len(lengths))
    logprobs_SK: npt.NDArray[Any]
    if kind == "draw":
        D_S = np.repeat(_constants(table, "num_draws"), np.diff(tokens))
        with np.errstate(divide="ignore"):  # padding has a count of 0
            logprobs_SK = np.log(values_SK / D_S[:, None]).astype(np.float32)
        missing_S = 1.0 - values_SK.sum(axis=1) / np.maximum(D_S, 1)
        tail_S = np.log(np.maximum(missing_S, np.exp(TAIL_FLOOR))).astype(np.float32)
    else:
        tail_S = flat["target_tail"]
        if value is None:
            logprobs_SK = values_SK
        else:
            step_S = np.repeat(_constants(table, "target_precision"), np.diff(tokens)).astype(np.float32)
            logprobs_SK = np.cumsum(values_SK, axis=1, dtype=np.int32) * -step_S[:, None]
        if kept_SK is not None:
            logprobs_SK[~kept_SK] = -np.inf
    return [
        Targets(ids_SK[start:end], logprobs_SK[start:end], tail_S[start:end])
        for start, end in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True)
    ]


def _rows(flat: npt.NDArray[Any], kept_SK: npt.NDArray[np.bool_] | None, num_tokens: int) -> npt.NDArray[Any]:
    """[S, K] of N values: a view where all tokens have as many, else padded with zeros."""
    if kept_SK is None:
        return flat.reshape(num_tokens, -1) if num_tokens else flat.reshape(0, 0)
    padded_SK = np.zeros(kept_SK.shape, dtype=flat.dtype)
    padded_SK[kept_SK] = flat
    return padded_SK


def _constants(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """[rows] what each row was encoded with."""
    if name not in table.column_names:
        raise ValueError(f"targets: the table has no column {name}; read it with these columns")
    values: npt.NDArray[Any] = table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
    return values
