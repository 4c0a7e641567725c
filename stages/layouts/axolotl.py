"""axolotl 0.19.0 (`axolotl.integrations.kd`): a list of targets for each position, which its collator pads."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.lists import flat_lists, lists
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.layouts import Layout, Settings
from stillhouse.stages.layouts.records import Conversation, Ragged, require_ids, require_labels, require_numbers
from stillhouse.stages.layouts.rows import EMPTY_LOGPROB, flatten, other_ids

SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("attention_mask", pa.list_(pa.int8())),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("target_token_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("target_logprobs", pa.list_(pa.list_(pa.float32()))),
        pa.field("target_mask", pa.list_(pa.list_(pa.int8()))),
    ]
)


def convert(table: pa.Table, settings: Settings) -> pa.Table:
    """A list for each position; of one masked place where the next token is not the teacher's, or has no targets.

    `axolotl preprocess` reads the first mark of every position (`axolotl.utils.tokenization`), so no list is empty. Its
    collator pads the lists and masks what it has padded. `labels` are not shifted: its loss does that.
    """
    flat = flatten(table, settings.kind)
    lengths_P = np.zeros(flat.offsets[-1], dtype=np.int64)
    lengths_P[flat.before] = flat.lengths
    widths_P = np.maximum(lengths_P, 1)
    inner = np.concatenate([[0], np.cumsum(widths_P)])
    is_target = np.repeat(lengths_P > 0, widths_P)
    # A masked place names a target of another token: a student's vocabulary may be smaller than the teacher's.
    other_id = next(iter(other_ids(table, settings)), 0)

    def nested(values: npt.NDArray[Any], masked: float) -> pa.Array:
        filled = np.full(inner[-1], masked, dtype=values.dtype)
        filled[is_target] = values
        return lists(flat.offsets, lists(inner, pa.array(filled)))

    return pa.table(
        {
            "input_ids": flat_lists(table.column("input_ids")),
            "attention_mask": lists(flat.offsets, pa.array(np.ones(flat.offsets[-1], dtype=np.int8))),
            "labels": flat_lists(table.column("labels")),
            "target_token_ids": nested(flat.ids, other_id),
            "target_logprobs": nested(flat.logprobs, EMPTY_LOGPROB),
            "target_mask": nested(np.ones(len(flat.ids), dtype=np.int8), 0),
        }
    )


def read(record: dict[str, Any], settings: Settings) -> Conversation:
    """A row as axolotl reads it; the mask must mark the positions before the labels, or some of them."""
    ids, logprobs, mask = (record[f"target_{name}"] for name in ("token_ids", "logprobs", "mask"))
    T = len(record["input_ids"])
    if not T == len(record["labels"]) == len(record["attention_mask"]) == len(ids.lengths):
        raise ValueError("columns of different lengths")
    if (ids.lengths != logprobs.lengths).any() or (ids.lengths != mask.lengths).any():
        raise ValueError("rows of different numbers of ids, log-probabilities and marks")
    if not mask.lengths.all():
        raise ValueError(
            f"{int((mask.lengths == 0).sum())} positions without a mark, on which axolotl preprocess ends; export again"
        )
    if (record["attention_mask"] != 1).any():
        raise ValueError(f"{int((record['attention_mask'] != 1).sum())} of {T} tokens are hidden by attention_mask")
    require_labels(record["labels"], record["input_ids"])
    require_numbers(logprobs.values, "target_logprobs")
    require_ids(ids.values, settings.vocab_size, "target ids")
    if not np.isin(mask.values, (0, 1)).all():
        raise ValueError("target_mask holds other numbers than 0 and 1")
    probs_TK = Ragged(logprobs.lengths, np.exp(logprobs.values.astype(np.float64)) * (mask.values > 0)).padded()
    is_row = np.asarray(probs_TK.any(axis=1))
    is_before = np.append(record["labels"][1:] != IGNORE_INDEX, False)
    if (is_row & ~is_before).any() or (not settings.is_partial and (is_before & ~is_row).any()):
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
    if settings.is_partial:
        messages.append(
            "Tokens that targets.keep left out have labels and no targets: only kd_ce_alpha above 0 learns their text."
        )
    messages.append("Leave kd_temperature at 1: log-probabilities of some tokens cannot be brought to another one.")
    messages.append(
        "sample_packing leaks attention from one conversation into the next, and trains on that, unless "
        "attn_implementation is flash_attention_2; sdpa leaks too. Without flash-attn: sample_packing: false."
    )
    messages.append(
        "axolotl drops conversations longer than sequence_len (excess_length_strategy: raise ends the run instead). "
        "What it has prepared it keeps by path and settings, not by content: after exporting again into the same "
        "folder, empty dataset_prepared_path."
    )
    return messages


LAYOUT = Layout(
    "axolotl 0.19.0",
    "axolotl.md",
    "next-token",
    convert,
    notes,
    schema=SCHEMA,
    read_row=read,
)
