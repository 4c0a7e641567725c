"""DistillKit a61c2e7d: rectangles, every conversation padded to `max_length` (its `prepacked: true`). Raw, and by the
part of its compression that adds no error of its own: all K values exact in float16, ids packed into as many bits as
the vocabulary needs."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from stillhouse.schemas.lists import flat_lists, lists, matrix
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.layouts import Layout, Settings
from stillhouse.stages.layouts.records import Conversation, require_ids, require_labels, rows_read
from stillhouse.stages.layouts.rows import Rectangle, rectangle

TOKENS = [
    pa.field("input_ids", pa.list_(pa.int32())),
    pa.field("attention_mask", pa.list_(pa.int8())),
    pa.field("labels", pa.list_(pa.int32())),
]
RAW_SCHEMA = pa.schema(
    [
        *TOKENS,
        pa.field("token_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("top_values", pa.list_(pa.list_(pa.float32()))),
    ]
)
COMPRESSED_SCHEMA = pa.schema(
    [
        *TOKENS,
        pa.field("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
        pa.field("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
    ]
)


def convert_raw(table: pa.Table, settings: Settings) -> pa.Table:
    columns, rows = _columns(table, settings)
    return pa.table(
        columns
        | {
            "token_ids": matrix(rows.offsets, rows.ids),
            "top_values": matrix(rows.offsets, rows.logprobs),
        }
    )


def convert_compressed(table: pa.Table, settings: Settings) -> pa.Table:
    columns, rows = _columns(table, settings)
    bits = num_id_bits(settings.vocab_size)
    P, K = rows.ids.shape
    id_bits = (rows.ids[:, :, None] >> np.arange(bits - 1, -1, -1, dtype=np.int32)) & 1
    packed = np.packbits(id_bits.astype(np.uint8).reshape(P, K * bits), axis=1)
    return pa.table(
        columns
        | {
            "compressed_logprobs": matrix(rows.offsets, rows.logprobs.astype("<f2").view(np.uint8).reshape(P, 2 * K)),
            "bytepacked_indices": matrix(rows.offsets, packed),
        }
    )


def num_id_bits(vocab_size: int) -> int:
    """Bits of an id in DistillKit's packing: the logarithm of the vocabulary's size, rounded up."""
    return (vocab_size - 1).bit_length()


def compression_config(settings: Settings) -> dict[str, Any]:
    """DistillKit's `logprob_compressor` for the compressed layout."""
    return {
        "d": settings.vocab_size,
        "k": settings.width,
        "exact_k": settings.width,
        "exact_dtype": "float16",
        "residual_bins": [],
        "delta_encoding": False,
        "normalize_t": True,
    }


def files(settings: Settings) -> dict[str, bytes]:
    return {"compression_config.yaml": yaml.safe_dump(compression_config(settings)).encode()}


def _columns(table: pa.Table, settings: Settings) -> tuple[dict[str, pa.Array], Rectangle]:
    """What both layouts share, and the rectangle.

    DistillKit's loss masks row j by `labels[j]`, and takes cross-entropy from the model, which shifts the same labels.
    Both are right where an answer's labels begin one token early, at the prompt's last one, and end one token early.
    Labels are only where there are targets: the loss would compare a student with an empty row.
    """
    rows = rectangle(table, settings)
    P = int(rows.offsets[-1])
    input_ids = np.zeros(P, dtype=np.int32)
    input_ids[rows.places] = flat_lists(table.column("input_ids")).values.to_numpy()
    attention_mask = np.zeros(P, dtype=np.int8)
    attention_mask[rows.places] = 1
    labels = np.where(rows.is_target, input_ids, IGNORE_INDEX).astype(np.int32)
    columns = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {name: lists(rows.offsets, pa.array(values)) for name, values in columns.items()}, rows


def read_raw(record: dict[str, Any], settings: Settings) -> Conversation:
    ids = record["token_ids"].matrix(settings.width)
    return _conversation(record, settings, ids, record["top_values"].matrix(settings.width).astype(np.float64))


def read_compressed(record: dict[str, Any], settings: Settings) -> Conversation:
    width = settings.width
    logprobs = np.ascontiguousarray(record["compressed_logprobs"].matrix(2 * width)).view("<f2").astype(np.float64)
    bits = num_id_bits(settings.vocab_size)
    packed = record["bytepacked_indices"].matrix((width * bits + 7) // 8)
    unpacked = np.unpackbits(packed, axis=1)[:, : width * bits].reshape(len(packed), width, bits)
    ids = unpacked.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
    return _conversation(record, settings, ids, logprobs)


def _conversation(
    record: dict[str, Any], settings: Settings, ids: npt.NDArray[Any], logprobs: npt.NDArray[np.float64]
) -> Conversation:
    input_ids, labels = record["input_ids"], record["labels"]
    if not len(input_ids) == len(labels) == len(ids) == len(logprobs) == settings.max_length:
        raise ValueError(f"{len(input_ids)} tokens, {len(ids)} rows, where all have {settings.max_length}")
    mask, T = record["attention_mask"], int(record["attention_mask"].sum())
    if len(mask) != len(input_ids) or not np.array_equal(mask, np.arange(len(mask)) < T):
        raise ValueError("attention_mask is not 1 on the conversation and 0 behind it")
    if input_ids[T:].any() or (labels[T:] != IGNORE_INDEX).any():
        raise ValueError(f"tokens or labels stand behind the {T} tokens of attention_mask")
    require_labels(labels, input_ids)
    require_ids(ids, settings.vocab_size, "target ids")
    is_row: npt.NDArray[np.bool_] = np.asarray(labels >= 0)
    return Conversation(input_ids, is_row, ids[is_row], rows_read(logprobs, is_row, "log-probabilities"), T)


def notes(settings: Settings, softcap: float | None) -> list[str]:
    messages = [
        "Set missing_probability_handling: zero. symmetric_uniform gives infinity or NaN as soon as the K of one "
        "token hold all but 6e-8 of a student's or teacher's mass, which float32 cannot tell from all."
    ]
    if settings.kind == "target":
        messages.append(
            "zero renormalises the top K: identical models differ by minus the logarithm of the K's mass, and a "
            "student learns to put nothing outside of them. Sampled targets are not biased that way."
        )
    if settings.is_partial:
        messages.append(
            "Tokens that targets.keep left out have no labels here: DistillKit reads one mask for distributions and "
            "text, so it learns nothing of them."
        )
    if softcap:
        messages.append(
            f"The teacher caps its logits at {softcap:g}; DistillKit takes the student's logits from its forward "
            "pass, which caps them too."
        )
    return messages


RAW = Layout(
    "DistillKit a61c2e7d",
    "distillkit.md",
    "next-token",
    convert_raw,
    notes,
    schema=RAW_SCHEMA,
    read_row=read_raw,
    is_rectangular=True,
    has_equal_lengths=True,
)
COMPRESSED = Layout(
    "DistillKit a61c2e7d",
    "distillkit.md",
    "next-token",
    convert_compressed,
    notes,
    schema=COMPRESSED_SCHEMA,
    read_row=read_compressed,
    files=files,
    is_rectangular=True,
    has_equal_lengths=True,
)
