"""A row as people look at it: its words, and for every token what the teacher thought of it. One form for the command,
the report and the viewer.

Shape legend: T tokens of a conversation, S supervised tokens, K targets per token.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.pipeline.look.added import added_by_template
from stillhouse.pipeline.look.tokens import token_texts
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.schemas.targets import Kind, decode

HEAVY = frozenset(
    {
        "input_ids",
        "labels",
        "token_logprobs",
        "teacher_entropy",
        "target_ids",
        "target_logprobs",
        "target_gaps",
        "target_lengths",
        "target_tail",
        "target_precision",
        "draw_ids",
        "draw_counts",
        "draw_lengths",
        "num_draws",
    }
)
"""Columns of tokens and targets: without them a conversation has no tokens, and a row is small."""
TEXT = frozenset({"messages", "user_turns", "system_prompt"})
"""Columns of what was said."""


def conversation(table: pa.Table, row: int, tokenizer: Any | None, num_alternatives: int = 8) -> dict[str, Any]:
    """Row `row` of a stage's table as JSON can hold it; what the table lacks is empty or null.

    {"sample_id", "prompt_id", "messages": [{"role", "content", "reasoning_content"}],
     "template_added": what the template wrote before the user's first words that no message holds, such as a system
                       prompt of its own; null where nothing, or without a tokenizer (`look.added`),
     "columns": {every scalar column; structs flattened, as prompt_scores.toxicity},
     "tokens": {"ids": [T], "texts": [T], "supervised": [T] 0 or 1, "logprobs": [S] nats, "tails": [S] nats or null,
                "alternatives": [S] of [[id, text, logprob], ...], most probable first, or null,
                "draws": [S] of [[id, text, count], ...], most frequent first, or null,
                "ranks": [S] place of the token written among its targets, 0 the most probable, null where it is none
                         of them; or null,
                "entropies": [S] nats; only where the table has them}}

    At most `num_alternatives` targets and draws of each token. Log-probabilities have 3 decimals; null stands for minus
    infinity. Texts are those of single ids (`tokens.token_texts`).
    """
    table = table.slice(row, 1)
    values = {name: table.column(name)[0].as_py() for name in table.column_names if name not in HEAVY}
    messages, tokens = _messages(values), _tokens(table, tokenizer, num_alternatives)
    prompt = tokens["ids"][: tokens["supervised"].index(1) if 1 in tokens["supervised"] else None]
    return {
        "sample_id": values.get("sample_id"),
        "prompt_id": values.get("prompt_id"),
        "messages": messages,
        "template_added": added_by_template(tokenizer, prompt, messages) if tokenizer is not None else None,
        "columns": scalars(table, 0),
        "tokens": tokens,
    }


def scalars(table: pa.Table, row: int) -> dict[str, Any]:
    """Every column of a row that is one value, structs flattened, floats of 6 significant digits; not what was said."""
    found: dict[str, Any] = {}
    for field in table.schema:
        if field.name in TEXT or (pa.types.is_nested(field.type) and not pa.types.is_struct(field.type)):
            continue
        value = table.column(field.name)[row].as_py()
        if pa.types.is_struct(field.type):
            found |= {f"{field.name}.{child.name}": _plain(value and value[child.name]) for child in field.type}
        else:
            found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _messages(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a row from before generate, what the source said."""
    found = values.get("messages")
    if found is None:
        found = [{"role": "user", "content": text} for text in values.get("user_turns") or []]
        if values.get("system_prompt") is not None:
            found.insert(0, {"role": "system", "content": values["system_prompt"]})
    return [{name: message.get(name) for name in ("role", "content", "reasoning_content")} for message in found]


def _tokens(table: pa.Table, tokenizer: Any | None, num_alternatives: int) -> dict[str, Any]:
    ids_T, labels_T = _array(table, "input_ids"), _array(table, "labels")
    logprobs_S = _array(table, "token_logprobs")
    found: dict[str, Any] = {
        "ids": ids_T.tolist(),
        "texts": token_texts(tokenizer, ids_T.tolist()),
        "supervised": (labels_T != IGNORE_INDEX).astype(int).tolist(),
        "logprobs": _rounded(logprobs_S),
        "tails": None,
        "alternatives": None,
        "draws": None,
        "ranks": None,
    }
    if "target_ids" in table.column_names:
        top = decode(table, "target")[0]
        written_S = labels_T[labels_T != IGNORE_INDEX]
        is_written_SK = (top.ids == written_S[:, None]) & (top.logprobs > -np.inf)
        found["tails"] = _rounded(top.tail)
        found["ranks"] = [int(row.argmax()) if row.any() else None for row in is_written_SK]
        found["alternatives"] = _named(table, "target", tokenizer, num_alternatives)
    if "draw_ids" in table.column_names:
        found["draws"] = _named(table, "draw", tokenizer, num_alternatives)
        if found["tails"] is None:
            found["tails"] = _rounded(decode(table, "draw")[0].tail)
    if "teacher_entropy" in table.column_names:
        found["entropies"] = _rounded(_array(table, "teacher_entropy"))
    return found


def _named(table: pa.Table, kind: Kind, tokenizer: Any | None, number: int) -> list[list[list[Any]]]:
    """[S] of the first `number` of each token: id, text, and log-probability or count."""
    decoded = decode(table, kind)[0]
    order_SK = np.argsort(-decoded.logprobs.astype(np.float64), axis=1, kind="stable")[:, :number]
    ids_SK = np.take_along_axis(decoded.ids, order_SK, axis=1)
    logprobs_SK = np.take_along_axis(decoded.logprobs.astype(np.float64), order_SK, axis=1)
    distinct = sorted({*ids_SK.ravel().tolist()})
    texts = dict(zip(distinct, token_texts(tokenizer, distinct), strict=True))
    num_draws = table.column("num_draws")[0].as_py() if kind == "draw" else 0
    return [
        [
            [i, texts[i], round(math.exp(value) * num_draws) if num_draws else round(value, 3)]
            for i, value in zip(ids_K, logprobs_K, strict=True)
            if value > -math.inf
        ]
        for ids_K, logprobs_K in zip(ids_SK.tolist(), logprobs_SK.tolist(), strict=True)
    ]


def _array(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A list column of the one row; empty where there is no such column or the row has none."""
    if name not in table.column_names:
        return np.zeros(0, np.int64)
    return np.asarray(
        table.column(name)[0].as_py() or [], np.float32 if name in ("token_logprobs", "teacher_entropy") else np.int64
    )


def _rounded(nats: npt.NDArray[Any]) -> list[float | None]:
    return [round(value, 3) if math.isfinite(value) else None for value in nats.astype(np.float64).tolist()]
