"""axolotl 0.19.0 (`axolotl.integrations.kd`): a list of targets for each position, which its collator pads."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.lists import flat_lists, lists
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.layouts import Layout, Settings
from stillhouse.stages.layouts.records import Conversation, Ragged
from stillhouse.stages.layouts.rows import flatten


def convert(table: pa.Table, settings: Settings) -> pa.Table:
    """A list for each position, empty where the next token is not the teacher's.

    axolotl's collator pads the lists and masks what it has padded. `labels` are not shifted: its loss does that.
    """
    flat = flatten(table, settings.kind)
    lengths_P = np.zeros(flat.offsets[-1], dtype=np.int64)
    lengths_P[flat.before] = flat.lengths
    inner = np.concatenate([[0], np.cumsum(lengths_P)])

    def nested(values: npt.NDArray[Any]) -> pa.Array:
        return lists(flat.offsets, lists(inner, pa.array(values)))

    return pa.table(
        {
            "input_ids": flat_lists(table.column("input_ids")),
            "attention_mask": lists(flat.offsets, pa.array(np.ones(flat.offsets[-1], dtype=np.int8))),
            "labels": flat_lists(table.column("labels")),
            "target_token_ids": nested(flat.ids),
            "target_logprobs": nested(flat.logprobs),
            "target_mask": nested(np.ones(len(flat.ids), dtype=np.int8)),
        }
    )


def read(record: dict[str, Any], settings: Settings) -> Conversation:
    """A row as axolotl reads it; the mask must mark the positions before the labels."""
    ids, logprobs, mask = (record[f"target_{name}"] for name in ("token_ids", "logprobs", "mask"))
    T = len(record["input_ids"])
    if not T == len(record["labels"]) == len(record["attention_mask"]) == len(ids.lengths):
        raise ValueError("columns of different lengths")
    if (ids.lengths != logprobs.lengths).any() or (ids.lengths != mask.lengths).any():
        raise ValueError("rows of different numbers of ids, log-probabilities and marks")
    probs_TK = Ragged(logprobs.lengths, np.exp(logprobs.values.astype(np.float64)) * (mask.values > 0)).padded()
    is_row = np.asarray(probs_TK.any(axis=1))
    if not np.array_equal(is_row, np.append(record["labels"][1:] != IGNORE_INDEX, False)):
        raise ValueError("the mask marks other positions than those before the labels")
    return Conversation(record["input_ids"], is_row, ids.padded()[is_row], probs_TK[is_row])


def notes(settings: Settings, softcap: float | None) -> list[str]:
    messages = []
    if softcap:
        messages.append(
            f"The teacher caps its logits at {softcap:g} (final_logit_softcapping), and so will a student of its "
            "family. axolotl's fused loss does not: it would train another model than the one that is used. Take "
            "another trainer for such a student."
        )
    if settings.kind == "target":
        messages.append(
            "axolotl has no term for the mass outside the K. With kd_normalize_topk: false a student learns to put "
            "nothing there; with true it learns the K in proportion, and nothing of the rest."
        )
    else:
        messages.append("Sampled targets want kd_normalize_topk: false; true would compare the drawn tokens alone.")
    messages.append("Leave kd_temperature at 1: log-probabilities of some tokens cannot be brought to another one.")
    return messages


LAYOUT = Layout(
    "axolotl 0.19.0",
    "axolotl.md",
    "next-token",
    convert,
    notes,
    read_row=read,
)
