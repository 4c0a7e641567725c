"""Conversations that a real engine scores, and what transformers says of them.

Shape legend: S tokens, V vocabulary, K targets per token.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.schemas import targets
from stillhouse.schemas.config import Config
from tests.support.data import CONVERSATIONS
from tests.support.engines import sampled_config
from tests.support.forward import exact_model, forward
from tests.support.scoring import make_raw_score_config

MAX_MODEL_LEN = 384


def scoring_config(folder: Path, **score: Any) -> Config:
    """Steps of at most 100 tokens, so that conversations are read in pieces; and a prefix cache."""
    raw = make_raw_score_config(folder, cut_long=True, **score)
    generates = sampled_config(folder)
    engine = {"enforce_eager": True, "max_num_seqs": 8, "max_num_batched_tokens": 100, "enable_chunked_prefill": True}
    engine |= {"enable_prefix_caching": True, "block_size": 32}
    raw["teacher"] = generates.teacher.model_dump() | {"max_model_len": MAX_MODEL_LEN, "engine": engine}
    raw["ingest"] |= {"turns": "all", "max_prompt_tokens": None}
    raw["targets"] = generates.targets.model_dump()
    return Config.model_validate(raw)


def conversations(count: int) -> tuple[list[list[str]], list[list[str]]]:
    """Questions and answers of people and of another model, of one to three turns. The first ones have one prompt, and
    the first twice the same answer."""
    rows = pq.read_table(CONVERSATIONS, columns=["conversation"]).column(0)[:2000].to_pylist()
    found = []
    for messages in rows:
        texts = [message["content"] for message in messages][:6]
        texts = texts[: len(texts) // 2 * 2]
        if texts and messages[0]["role"] == "user" and all(20 < len(text) < 900 and "<|" not in text for text in texts):
            found.append((texts[::2], texts[1::2]))
    found = found[:count]
    question = ["Tell me, in a few words, what one should know about the history of the town before visiting it. " * 4]
    samples = [(question, [answers[0]]) for _, answers in [found[0], *found[:3]]]
    both = [*samples, *found]
    return [asked for asked, _ in both], [told for _, told in both]


def errors(table: pa.Table) -> dict[str, float]:
    """Mean difference in nats of the tokens' own log-probabilities, and of their 16 most probable tokens', from those
    of transformers in float32; and of those of the tokens after."""
    model = exact_model()
    found: dict[str, list[np.ndarray]] = {"own": [], "shifted": [], "top": []}
    for row, stored in zip(table.to_pylist(), targets.decode(table), strict=True):
        logprobs_SV, tokens_S = forward(row, model)
        own_S = logprobs_SV[np.arange(len(tokens_S)), tokens_S]
        given_S = np.array(row["token_logprobs"], np.float32)
        found["own"].append(np.abs(given_S - own_S))
        found["shifted"].append(np.abs(given_S[:-1] - own_S[1:]))
        ids_SK = stored.ids[:, :16].astype(np.int64)
        found["top"].append(np.abs(stored.logprobs[:, :16] - np.take_along_axis(logprobs_SV, ids_SK, 1)).ravel())
    return {name: float(np.concatenate(values).mean()) for name, values in found.items()}
