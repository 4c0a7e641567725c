"""verl 0.9.1: what its distillation losses take, under verl's own names."""

from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.schemas.lists import flat_lists, lists, matrix
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.layouts import Layout, Settings
from stillhouse.stages.layouts.records import Conversation, require_ids, rows_read
from stillhouse.stages.layouts.rows import EMPTY_LOGPROB, rectangle

SCHEMA = pa.schema(
    [
        pa.field("prompts", pa.list_(pa.int32())),
        pa.field("responses", pa.list_(pa.int32())),
        pa.field("response_mask", pa.list_(pa.int8())),
        pa.field("teacher_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("teacher_logprobs", pa.list_(pa.list_(pa.float32()))),
    ]
)


def convert(table: pa.Table, settings: Settings) -> pa.Table:
    """`prompts`, `responses`, `response_mask`, and the teacher's rows over both (the last one empty, as it has no next
    token)."""
    rows = rectangle(table, settings)
    labels, ids = flat_lists(table.column("labels")), flat_lists(table.column("input_ids"))
    is_ours = labels.values.to_numpy() != IGNORE_INDEX
    starts, ends = rows.offsets[:-1], rows.offsets[1:]
    # Each conversation's first supervised token is where its response begins.
    first = np.flatnonzero(is_ours)[np.searchsorted(np.flatnonzero(is_ours), starts)]
    positions = np.arange(rows.offsets[-1])
    in_response = positions >= np.repeat(first, ends - starts)
    tokens = ids.values.to_numpy()
    responses = np.concatenate([[0], np.cumsum(ends - first)])
    return pa.table(
        {
            "prompts": lists(np.concatenate([[0], np.cumsum(first - starts)]), pa.array(tokens[~in_response])),
            "responses": lists(responses, pa.array(tokens[in_response])),
            "response_mask": lists(responses, pa.array(is_ours[in_response].astype(np.int8))),
            "teacher_ids": matrix(rows.offsets, rows.ids),
            "teacher_logprobs": matrix(rows.offsets, rows.logprobs),
        }
    )


def read(record: dict[str, Any], settings: Settings) -> Conversation:
    input_ids = np.concatenate([record["prompts"], record["responses"]])
    ids = record["teacher_ids"].matrix(settings.width)
    logprobs = record["teacher_logprobs"].matrix(settings.width).astype(np.float64)
    if not len(input_ids) == len(ids) == len(logprobs) or len(record["response_mask"]) != len(record["responses"]):
        raise ValueError(f"{len(input_ids)} tokens and {len(ids)} rows")
    require_ids(ids, settings.vocab_size, "target ids")
    mask = record["response_mask"]
    if not np.isin(mask, (0, 1)).all() or not mask[:1].all():
        raise ValueError("response_mask is not made of 0 and 1, beginning with 1")
    is_ours = np.append(np.zeros(len(record["prompts"]), dtype=np.bool_), mask > 0)
    is_row = np.append(is_ours[1:], False)
    if settings.is_partial:
        is_row &= (logprobs > EMPTY_LOGPROB).any(axis=1)
    return Conversation(input_ids, is_row, ids[is_row], rows_read(logprobs, is_row, "teacher_logprobs"))


def notes(settings: Settings, softcap: float | None) -> list[str]:
    left_out = (
        "Tokens that targets.keep left out are in response_mask, for losses on text, with an empty row: "
        "forward_kl_topk gives 0 there, and its mean over response_mask counts them."
    )
    return [
        *([left_out] if settings.is_partial else []),
        "forward_kl_topk has no term for the mass outside the K, and sets negative losses, of students that put "
        "more on the K than the teacher, to 0.",
        "Set log_prob_min_clamp: null. Its default of -10 raises every smaller probability to 4.5e-5, those of a "
        "row's empty places (sampled targets, targets.top_p) included.",
        "Set loss_max_clamp: null. Its default of 10 takes the gradient from tokens that cost more than 10 nats, for a "
        "student of random weights from most of them.",
    ]


LAYOUT = Layout(
    "verl 0.9.1",
    "verl.md",
    "next-token",
    convert,
    notes,
    schema=SCHEMA,
    read_row=read,
    is_rectangular=True,
)
