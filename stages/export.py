"""What trainers take: the published table in the layout that a training repo's own loader and loss expect.

Each layout was checked against its trainer's code at the version named there (`make test-trainers`). All but `openai`
are next-token: row j holds the distribution of token j + 1, while the published table has a row for each supervised
token (own-token). Tables are converted whole; `pipeline.export` does files.

Shape legend: T tokens of a conversation, S supervised tokens, K targets per token, N targets of all tokens of a table,
P positions of a table (tokens of all its conversations, padding included).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.targets import Kind, decode

IGNORE = -100
EMPTY_LOGPROB = -110.0
"""Where a rectangle has nothing: e to this power is 0 in float32, and no trainer's arithmetic makes NaN of it."""
BATCH_BYTES = 256 << 20
"""How much of a table is converted at a time, in the trainer's arrays."""


@dataclass(frozen=True)
class Settings:
    """What an export is made with beside the dataset: everything that decides its bytes."""

    kind: Kind
    vocab_size: int
    width: int = 0
    """Targets of each row where a trainer wants rectangles: the most that any token has."""
    max_length: int = 0
    """Tokens of each row where a trainer wants equal lengths; longer conversations are left out, and counted."""


@dataclass(frozen=True)
class Layout:
    trainer: str
    """At the version that it was checked with."""
    alignment: Literal["next-token", "none"]
    convert: Callable[[pa.Table, Settings], pa.Table]
    kinds: tuple[Kind, ...] = ("target", "draw")
    """Which columns it can be made of; the first one that a dataset has is the default."""
    is_rectangular: bool = False
    """Each row of targets is as long as the others."""
    has_equal_lengths: bool = False
    """Each conversation is as long as the others."""
    is_jsonl: bool = False


class _Flat(NamedTuple):
    """The targets of a table, all tokens in a row."""

    ids: npt.NDArray[np.int32]  # [N]
    logprobs: npt.NDArray[np.float32]  # [N]
    lengths: npt.NDArray[np.int64]  # [S] targets of each supervised token
    before: npt.NDArray[np.int64]  # [S] the position before each supervised token
    offsets: npt.NDArray[np.int64]  # [rows + 1] where each conversation's positions begin


class _Rectangle(NamedTuple):
    """The same as one row for each position, that of the token after it; empty rows hold `EMPTY_LOGPROB`."""

    ids: npt.NDArray[np.int32]  # [P, width]
    logprobs: npt.NDArray[np.float32]  # [P, width]
    is_target: npt.NDArray[np.bool_]  # [P] whether the next token is the teacher's
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


def axolotl(table: pa.Table, settings: Settings) -> pa.Table:
    """Rows of `axolotl.integrations.kd`: a list for each position, empty where the next token is not the teacher's.

    Its collator pads the lists and masks what it has padded. `labels` are not shifted: its loss does that.
    """
    flat = _flatten(table, settings.kind)
    lengths_P = np.zeros(flat.offsets[-1], dtype=np.int64)
    lengths_P[flat.before] = flat.lengths
    inner = np.concatenate([[0], np.cumsum(lengths_P)])

    def nested(values: npt.NDArray[Any]) -> pa.Array:
        return _lists(flat.offsets, _lists(inner, pa.array(values)))

    return pa.table(
        {
            "input_ids": _flat_lists(table, "input_ids"),
            "attention_mask": _lists(flat.offsets, pa.array(np.ones(flat.offsets[-1], dtype=np.int8))),
            "labels": _flat_lists(table, "labels"),
            "target_token_ids": nested(flat.ids),
            "target_logprobs": nested(flat.logprobs),
            "target_mask": nested(np.ones(len(flat.ids), dtype=np.int8)),
        }
    )


def distillkit(table: pa.Table, settings: Settings) -> pa.Table:
    """DistillKit's raw layout: rectangles, every conversation padded to `max_length` (its `prepacked: true`)."""
    columns, rectangle = _distillkit(table, settings)
    return pa.table(
        columns
        | {
            "token_ids": _matrix(rectangle.offsets, rectangle.ids),
            "top_values": _matrix(rectangle.offsets, rectangle.logprobs),
        }
    )


def distillkit_compressed(table: pa.Table, settings: Settings) -> pa.Table:
    """DistillKit's compressed layout, by the part of its codec that adds no error of its own: all K values exact in
    float16 (`compression_config`), ids packed into as many bits as the vocabulary needs."""
    columns, rectangle = _distillkit(table, settings)
    bits = num_id_bits(settings.vocab_size)
    P, K = rectangle.ids.shape
    id_bits = (rectangle.ids[:, :, None] >> np.arange(bits - 1, -1, -1, dtype=np.int32)) & 1
    packed = np.packbits(id_bits.astype(np.uint8).reshape(P, K * bits), axis=1)
    return pa.table(
        columns
        | {
            "compressed_logprobs": _matrix(
                rectangle.offsets, rectangle.logprobs.astype("<f2").view(np.uint8).reshape(P, 2 * K)
            ),
            "bytepacked_indices": _matrix(rectangle.offsets, packed),
        }
    )


def num_id_bits(vocab_size: int) -> int:
    """Bits of an id in DistillKit's packing: the logarithm of the vocabulary's size, rounded up."""
    return (vocab_size - 1).bit_length()


def compression_config(settings: Settings) -> dict[str, Any]:
    """DistillKit's `logprob_compressor` for `distillkit_compressed`."""
    return {
        "d": settings.vocab_size,
        "k": settings.width,
        "exact_k": settings.width,
        "exact_dtype": "float16",
        "residual_bins": [],
        "delta_encoding": False,
        "normalize_t": True,
    }


def verl(table: pa.Table, settings: Settings) -> pa.Table:
    """Under verl's own names, what its distillation losses take: `prompts`, `responses`, `response_mask`, and the
    teacher's rows over both (the last one empty, as it has no next token)."""
    rectangle = _rectangle(table, settings)
    labels, ids = _flat_lists(table, "labels"), _flat_lists(table, "input_ids")
    is_ours = labels.values.to_numpy() != IGNORE
    starts, ends = rectangle.offsets[:-1], rectangle.offsets[1:]
    # Each conversation's first supervised token is where its response begins.
    first = np.flatnonzero(is_ours)[np.searchsorted(np.flatnonzero(is_ours), starts)]
    positions = np.arange(rectangle.offsets[-1])
    in_response = positions >= np.repeat(first, ends - starts)
    tokens = ids.values.to_numpy()
    responses = np.concatenate([[0], np.cumsum(ends - first)])
    return pa.table(
        {
            "prompts": _lists(np.concatenate([[0], np.cumsum(first - starts)]), pa.array(tokens[~in_response])),
            "responses": _lists(responses, pa.array(tokens[in_response])),
            "response_mask": _lists(responses, pa.array(is_ours[in_response].astype(np.int8))),
            "teacher_ids": _matrix(rectangle.offsets, rectangle.ids),
            "teacher_logprobs": _matrix(rectangle.offsets, rectangle.logprobs),
        }
    )


def tinker(table: pa.Table, settings: Settings) -> pa.Table:
    """A `tinker.Datum` per row: `input_ids` without the last token, and for each of them the tokens and weights of
    `cross_entropy`. Weights of a position sum to 1, or to 0 where the next token is not the teacher's."""
    rectangle = _rectangle(table, settings)
    weights = np.exp(rectangle.logprobs)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
    weights[~rectangle.is_target] = 0.0
    is_input = np.ones(rectangle.offsets[-1], dtype=np.bool_)
    is_input[rectangle.offsets[1:] - 1] = False
    offsets = rectangle.offsets - np.arange(len(rectangle.offsets))
    tokens = _flat_lists(table, "input_ids").values.to_numpy()
    return pa.table(
        {
            "input_ids": _lists(offsets, pa.array(tokens[is_input])),
            "target_tokens": _matrix(offsets, rectangle.ids[is_input]),
            "weights": _matrix(offsets, weights[is_input]),
        }
    )


def openai(table: pa.Table, settings: Settings) -> pa.Table:
    """The text alone: `messages`, as lines of JSON."""
    return table.select(["messages"])


LAYOUTS = {
    "axolotl": Layout("axolotl 0.19.0", "next-token", axolotl),
    "distillkit": Layout("DistillKit a61c2e7d", "next-token", distillkit, is_rectangular=True, has_equal_lengths=True),
    "distillkit-compressed": Layout(
        "DistillKit a61c2e7d", "next-token", distillkit_compressed, is_rectangular=True, has_equal_lengths=True
    ),
    "verl": Layout("verl 0.9.1", "next-token", verl, is_rectangular=True),
    "tinker": Layout("Tinker 0.38.0", "next-token", tinker, kinds=("draw", "target"), is_rectangular=True),
    "openai": Layout("fine-tuning on text (OpenAI's JSONL)", "none", openai, is_jsonl=True),
}
"""By the name that `stillhouse export --to` takes."""


def notes(name: str, settings: Settings, softcap: float | None) -> list[str]:
    """Where this trainer would train on this dataset other than one expects."""
    found = []
    if name == "axolotl":
        if softcap:
            found.append(
                f"The teacher caps its logits at {softcap:g} (final_logit_softcapping), and so will a student of its "
                "family. axolotl's fused loss does not: it would train another model than the one that is used. Take "
                "another trainer for such a student."
            )
        if settings.kind == "target":
            found.append(
                "axolotl has no term for the mass outside the K. With kd_normalize_topk: false a student learns to put "
                "nothing there; with true it learns the K in proportion, and nothing of the rest."
            )
        else:
            found.append("Sampled targets want kd_normalize_topk: false; true would compare the drawn tokens alone.")
        found.append("Leave kd_temperature at 1: log-probabilities of some tokens cannot be brought to another one.")
    if name.startswith("distillkit"):
        found.append(
            "Set missing_probability_handling: zero. symmetric_uniform gives infinity or NaN as soon as the K of one "
            "token hold all but 6e-8 of a student's or teacher's mass, which float32 cannot tell from all."
        )
        if settings.kind == "target":
            found.append(
                "zero renormalises the top K: identical models differ by minus the logarithm of the K's mass, and a "
                "student learns to put nothing outside of them. Sampled targets are not biased that way."
            )
        if softcap:
            found.append(
                f"The teacher caps its logits at {softcap:g}; DistillKit takes the student's logits from its forward "
                "pass, which caps them too."
            )
    if name == "verl":
        found += [
            "forward_kl_topk has no term for the mass outside the K, and sets negative losses, of students that put "
            "more on the K than the teacher, to 0.",
            "Set log_prob_min_clamp: null. Its default of -10 raises every smaller probability to 4.5e-5, those of a "
            "row's empty places (sampled targets, targets.top_p) included.",
        ]
    if name == "tinker" and settings.kind == "target":
        found.append("The top K renormalised is biased towards them; sampled targets (targets.method) are not.")
    return found


def _flatten(table: pa.Table, kind: Kind) -> _Flat:
    rows = decode(table, kind)
    # Padding is -inf, and so is a token that the teacher could not write: no target either.
    kept = [row.logprobs > -np.inf for row in rows]
    labels = _flat_lists(table, "labels")
    offsets = labels.offsets.to_numpy().astype(np.int64)
    supervised = np.flatnonzero(labels.values.to_numpy() != IGNORE)
    if len(supervised) and np.isin(supervised, offsets[:-1]).any():
        raise ValueError("export: the first token of a conversation is supervised, so nothing predicts it")
    return _Flat(
        np.concatenate([row.ids[mask] for row, mask in zip(rows, kept, strict=True)] or [np.zeros(0, np.int32)]),
        np.concatenate(
            [row.logprobs[mask].astype(np.float32) for row, mask in zip(rows, kept, strict=True)]
            or [np.zeros(0, np.float32)]
        ),
        np.concatenate([mask.sum(axis=1) for mask in kept] or [np.zeros(0, np.int64)]),
        supervised - 1,
        offsets,
    )


def _rectangle(table: pa.Table, settings: Settings) -> _Rectangle:
    flat = _flatten(table, settings.kind)
    lengths = np.diff(flat.offsets)
    offsets = flat.offsets
    places = np.arange(flat.offsets[-1])
    if settings.max_length:
        offsets = np.arange(len(flat.offsets), dtype=np.int64) * settings.max_length
        places = places + np.repeat(offsets[:-1] - flat.offsets[:-1], lengths)
    P = int(offsets[-1])
    # Empty places name the vocabulary's last tokens: losses that look at a student there find next to nothing.
    ids = np.tile(np.arange(settings.vocab_size - settings.width, settings.vocab_size, dtype=np.int32), (P, 1))
    logprobs = np.full((P, settings.width), EMPTY_LOGPROB, dtype=np.float32)
    is_target = np.zeros(P, dtype=np.bool_)
    rows = places[flat.before]
    is_target[rows] = True
    of_row = np.repeat(rows, flat.lengths)
    in_row = np.arange(len(flat.ids)) - np.repeat(np.cumsum(flat.lengths) - flat.lengths, flat.lengths)
    ids[of_row, in_row] = flat.ids
    logprobs[of_row, in_row] = flat.logprobs
    return _Rectangle(ids, logprobs, is_target, places, offsets)


def _distillkit(table: pa.Table, settings: Settings) -> tuple[dict[str, pa.Array], _Rectangle]:
    """The columns that both of DistillKit's layouts have.

    Its loss masks row j by `labels[j]`, and takes cross-entropy from the model, which shifts the same labels. Both are
    right where an answer's labels begin one token early, at the prompt's last one, and end one token early.
    """
    rectangle = _rectangle(table, settings)
    P = int(rectangle.offsets[-1])
    input_ids = np.zeros(P, dtype=np.int32)
    input_ids[rectangle.places] = _flat_lists(table, "input_ids").values.to_numpy()
    attention_mask = np.zeros(P, dtype=np.int8)
    attention_mask[rectangle.places] = 1
    labels = np.where(rectangle.is_target, input_ids, IGNORE).astype(np.int32)
    columns = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {name: _lists(rectangle.offsets, pa.array(values)) for name, values in columns.items()}, rectangle


def _flat_lists(table: pa.Table, name: str) -> pa.Array:
    """A column of lists with offsets from 0 and values without a rest."""
    column = table.column(name).combine_chunks()
    offsets = column.offsets.to_numpy()
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    return _lists((offsets - offsets[0]).astype(np.int64), values)


def _lists(offsets: npt.NDArray[np.int64], values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _matrix(offsets: npt.NDArray[np.int64], values_PK: npt.NDArray[Any]) -> pa.Array:
    """list<list<...>>: a list of rows for each conversation."""
    P, K = values_PK.shape
    return _lists(offsets, _lists(np.arange(P + 1, dtype=np.int64) * K, pa.array(values_PK.ravel())))
