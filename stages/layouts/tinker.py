"""Tinker 0.38.0: a `tinker.Datum` per row, for the loss `cross_entropy`."""

from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.schemas.lists import flat_lists, lists, matrix
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.layouts import Layout, Settings
from stillhouse.stages.layouts.records import Conversation, require_ids, require_numbers
from stillhouse.stages.layouts.rows import rectangle

SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("target_tokens", pa.list_(pa.list_(pa.int32()))),
        pa.field("weights", pa.list_(pa.list_(pa.float32()))),
    ]
)
SUM_TOLERANCE = 1e-4
"""By how much the weights of a position may miss 1."""


def convert(table: pa.Table, settings: Settings) -> pa.Table:
    """`input_ids` without the last token, and for each of them the tokens and weights of `cross_entropy`. Weights of a
    position sum to 1, or to 0 where the next token is not the teacher's or has no targets."""
    rows = rectangle(table, settings)
    weights = np.exp(rows.logprobs)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
    weights[~rows.is_target] = 0.0
    is_input = np.ones(rows.offsets[-1], dtype=np.bool_)
    is_input[rows.offsets[1:] - 1] = False
    offsets = rows.offsets - np.arange(len(rows.offsets))
    tokens = flat_lists(table.column("input_ids")).values.to_numpy()
    return pa.table(
        {
            "input_ids": lists(offsets, pa.array(tokens[is_input])),
            "target_tokens": matrix(offsets, rows.ids[is_input]),
            "weights": matrix(offsets, weights[is_input]),
        }
    )


def read(record: dict[str, Any], settings: Settings) -> Conversation:
    ids = record["target_tokens"].matrix(settings.width)
    weights = record["weights"].matrix(settings.width).astype(np.float64)
    if not len(record["input_ids"]) == len(ids) == len(weights):
        raise ValueError(f"{len(record['input_ids'])} tokens, {len(ids)} target_tokens, {len(weights)} weights")
    require_numbers(weights, "weights")
    require_ids(ids, settings.vocab_size, "target ids")
    is_row = np.asarray(weights.any(axis=1))
    sums = weights[is_row].sum(axis=1)
    if (weights < 0).any() or (np.abs(sums - 1) > SUM_TOLERANCE).any():
        raise ValueError(f"weights of a token from {weights.min():.4g}, sums of {sums.min():.4g} to {sums.max():.4g}")
    # The last token, which no row reads, is not stored; its row belongs to it all the same.
    input_ids = np.append(record["input_ids"], IGNORE_INDEX)
    return Conversation(input_ids, np.append(is_row, False), ids[is_row], weights[is_row])


def notes(settings: Settings, softcap: float | None) -> list[str]:
    messages = []
    if settings.is_partial:
        messages.append("Tokens that targets.keep left out have weights of 0: nothing is learned of them.")
    if settings.kind == "draw":
        return messages
    return [*messages, "The top K renormalised is biased towards them; sampled targets (targets.method) are not."]


LAYOUT = Layout(
    "Tinker 0.38.0",
    "tinker.md",
    "next-token",
    convert,
    notes,
    schema=SCHEMA,
    read_row=read,
    is_normalised=True,
    kinds=("draw", "target"),
    is_rectangular=True,
)
