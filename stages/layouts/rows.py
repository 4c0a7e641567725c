"""What layouts share when they write: a published table's targets as rows of positions, ragged or rectangular.

Shape legend: S supervised tokens, K targets per token, N targets of all tokens of a table, P positions of a table
(tokens of all its conversations, padding included).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.lists import flat_lists
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.schemas.targets import Kind, decode
from stillhouse.stages.layouts import Settings

EMPTY_LOGPROB = -110.0
"""Where a rectangle has nothing: e to this power is 0 in float32, and no trainer's arithmetic makes NaN of it."""
BATCH_BYTES = 256 << 20
"""How much of a table is converted at a time, in the trainer's arrays."""


class Flat(NamedTuple):
    """The targets of a table, all tokens in a row."""

    ids: npt.NDArray[np.int32]  # [N]
    logprobs: npt.NDArray[np.float32]  # [N]
    lengths: npt.NDArray[np.int64]  # [S] targets of each supervised token
    before: npt.NDArray[np.int64]  # [S] the position before each supervised token
    offsets: npt.NDArray[np.int64]  # [rows + 1] where each conversation's positions begin


class Rectangle(NamedTuple):
    """The same with a row of equal width for each position, holding the targets of the token after it; places without
    a target hold `EMPTY_LOGPROB`."""

    ids: npt.NDArray[np.int32]  # [P, width]
    logprobs: npt.NDArray[np.float32]  # [P, width]
    is_target: npt.NDArray[np.bool_]  # [P] whether the next token is the teacher's, and was not left out
    places: npt.NDArray[np.int64]  # [tokens of the table] at which position each token is
    offsets: npt.NDArray[np.int64]  # [rows + 1]


def batches(table: pa.Table, settings: Settings) -> Iterator[pa.Table]:
    """The table in slices whose conversion stays near `BATCH_BYTES`."""
    lengths = table.column("num_input_tokens").to_numpy().astype(np.int64)
    if settings.max_length:
        lengths[:] = settings.max_length
    ends = np.cumsum(lengths * 12 * max(settings.width, 1))
    start = 0
    while start < table.num_rows:
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + BATCH_BYTES, side="right")))
        yield table.slice(start, stop - start)
        start = stop


def flatten(table: pa.Table, kind: Kind) -> Flat:
    """Raises ValueError where the first token of a conversation is supervised."""
    rows = decode(table, kind)
    # Padding is -inf, and so is a token that the teacher could not write: no target either.
    kept = [row.logprobs > -np.inf for row in rows]
    labels = flat_lists(table.column("labels"))
    offsets = labels.offsets.to_numpy().astype(np.int64)
    supervised = np.flatnonzero(labels.values.to_numpy() != IGNORE_INDEX)
    if len(supervised) and np.isin(supervised, offsets[:-1]).any():
        raise ValueError("export: the first token of a conversation is supervised, so nothing predicts it")
    return Flat(
        np.concatenate([row.ids[mask] for row, mask in zip(rows, kept, strict=True)] or [np.zeros(0, np.int32)]),
        np.concatenate(
            [row.logprobs[mask].astype(np.float32) for row, mask in zip(rows, kept, strict=True)]
            or [np.zeros(0, np.float32)]
        ),
        np.concatenate([mask.sum(axis=1) for mask in kept] or [np.zeros(0, np.int64)]),
        supervised - 1,
        offsets,
    )


def rectangle(table: pa.Table, settings: Settings) -> Rectangle:
    """`flatten`, padded to `settings.width` targets per row and, where that is set, `settings.max_length` rows."""
    flat = flatten(table, settings.kind)
    lengths = np.diff(flat.offsets)
    offsets = flat.offsets
    places = np.arange(flat.offsets[-1])
    if settings.max_length:
        offsets = np.arange(len(flat.offsets), dtype=np.int64) * settings.max_length
        places = places + np.repeat(offsets[:-1] - flat.offsets[:-1], lengths)
    P = int(offsets[-1])
    logprobs = np.full((P, settings.width), EMPTY_LOGPROB, dtype=np.float32)
    is_target = np.zeros(P, dtype=np.bool_)
    rows = places[flat.before]
    is_target[rows[flat.lengths > 0] if settings.is_partial else rows] = True
    of_row = np.repeat(rows, flat.lengths)
    in_row = np.arange(len(flat.ids)) - np.repeat(np.cumsum(flat.lengths) - flat.lengths, flat.lengths)
    ids = _filled(other_ids(table, settings), flat.ids, of_row, P, settings.width)
    ids[of_row, in_row] = flat.ids
    logprobs[of_row, in_row] = flat.logprobs
    return Rectangle(ids, logprobs, is_target, places, offsets)


def other_ids(table: pa.Table, settings: Settings) -> tuple[int, ...]:
    """`Settings.other_ids`, which an export takes from the whole file; by default the target ids that are rarest in
    `table`, so many that a row has as many as it is wide that are not its own."""
    if settings.other_ids:
        return settings.other_ids
    ids, counts = np.unique(flat_lists(table.column(f"{settings.kind}_ids")).values.to_numpy(), return_counts=True)
    return tuple(ids[np.argsort(counts, kind="stable")][: 2 * max(settings.width, 1)].tolist())


def _filled(
    others: tuple[int, ...], ids: npt.NDArray[np.int32], of_row: npt.NDArray[np.int64], P: int, width: int
) -> npt.NDArray[np.int32]:
    """Ids for the empty places of P rows, [P, width], out of `others`; `ids` [N] are the targets and `of_row` [N] the
    row of each.

    A place that stays empty beside targets names none of these: losses that look at a student there find little. (With
    fewer than 2 x width others there may be no such id.)
    """
    candidates = np.array(others or (0,), dtype=np.int32)
    filled = np.tile(np.resize(candidates, width), (P, 1))
    lengths = np.bincount(of_row, minlength=P)
    partial = np.flatnonzero((lengths > 0) & (lengths < width))
    number = np.full(P, -1)
    number[partial] = np.arange(len(partial))
    order = np.argsort(candidates)
    place = np.minimum(np.searchsorted(candidates[order], ids), len(candidates) - 1)
    own = (candidates[order][place] == ids) & (number[of_row] >= 0)
    is_own = np.zeros((len(partial), len(candidates)), dtype=np.bool_)
    is_own[number[of_row[own]], order[place[own]]] = True
    not_own_first = candidates[np.argsort(is_own, axis=1, kind="stable")]
    # Targets stand at a row's front: its empty places, at the back, take the first of these.
    filled[partial] = np.take(not_own_first, np.arange(width) % len(candidates), axis=1)[:, ::-1]
    return filled
