"""Draws from a real engine that has to preempt, against whole distributions by transformers.

Shape legend: S tokens, V vocabulary, K targets per token, D draws per token.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.schemas import targets
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import load_teacher
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.engine import VLLMTeacher
from tests.support.data import CONVERSATIONS
from tests.support.engines import NUM_DRAWS, sampled_config
from tests.support.forward import entropy_errors, exact_model, fit, forward, whole_distributions
from tests.support.prompts import prompts

TOKENS = 2000


def conversations(count: int) -> list[list[str]]:
    rows = pq.read_table(CONVERSATIONS, columns=["conversation"]).column(0)[:3000].to_pylist()
    turns = [[m["content"] for m in messages if m["role"] == "user"][:2] for messages in rows]
    return [t for t in turns if len(t) == 2 and 20 < len(t[0]) < 150 and 10 < len(t[1]) < 150][:count]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[pa.Table]:
    """Conversations of two turns, on an engine that has to preempt."""
    config, chat = sampled_config(tmp_path_factory.mktemp("draws")), Chat(tokenizer)
    teacher = load_teacher(config, chat.end_of_turn_ids())
    assert isinstance(teacher, VLLMTeacher)
    try:
        yield asyncio.run(Generate(config, chat, teacher)(prompts(conversations(24))))
    finally:
        teacher.shutdown()


def test_pooled_counts_fit_the_whole_distribution(generated: pa.Table) -> None:
    p_SV, counts_SV = whole_distributions(generated, NUM_DRAWS, TOKENS)
    assert len(p_SV) == TOKENS
    found = fit(p_SV, counts_SV)
    random_ = np.random.default_rng(0)

    def biased(weights_SV: np.ndarray) -> np.ndarray:
        counts_SV = np.zeros(weights_SV.shape, dtype=np.int32)
        for weights_V, counts_V in zip(weights_SV, counts_SV, strict=True):
            mass_V = np.cumsum(weights_V, dtype=np.float64)
            drawn_D = np.searchsorted(mass_V, random_.random(NUM_DRAWS) * mass_V[-1], side="right")
            np.add.at(counts_V, drawn_D, 1)
        return counts_SV

    top = np.where(p_SV >= np.partition(p_SV, -256, axis=1)[:, -256:-255], p_SV, 0)
    results = {
        "draws": found,
        "top 256": fit(p_SV, biased(top)),
        "temperature 0.97": fit(p_SV, biased(p_SV ** (1 / 0.97))),
    }
    results["shifted"] = fit(p_SV[1:], counts_SV[:-1])
    print(f"\n{TOKENS} tokens x {NUM_DRAWS} draws, chi-square p by rank and by id: {results}")
    assert min(found) > 1e-3
    for name, values in results.items():
        assert name == "draws" or min(values) < 1e-6, name


def test_entropies_are_the_whole_distributions(generated: pa.Table) -> None:
    own, shifted = entropy_errors(generated, TOKENS)
    print(f"\nentropies: {own:.5f} nats off, shifted by one {shifted:.3f}")
    assert own < 0.003  # stored in float16
    assert shifted > 100 * own


def test_the_engine_was_made_to_preempt(generated: pa.Table) -> None:
    """Ten blocks of 128 tokens do not hold eight sequences of over 128."""
    long = [n for n in generated.column("num_input_tokens").to_pylist() if n > 128]
    assert len(long) > 12
    assert generated.column("drop_reason").null_count == generated.num_rows
    assert sum(len(reasons) > 1 for reasons in generated.column("finish_reasons").to_pylist()) > 3


def test_probes_are_the_whole_distribution(generated: pa.Table) -> None:
    model = exact_model()
    seen = 0
    rows = zip(generated.to_pylist(), targets.decode(generated), targets.decode(generated, "draw"), strict=True)
    for row, top_k, drawn in rows:
        if row["probe"] is None:
            continue
        seen += 1
        token = row["probe"]["token"]
        p_V = np.exp(forward(row, model)[0][token].astype(np.float64))
        assert row["probe"]["entropy"] == pytest.approx(-(p_V * np.log(np.maximum(p_V, 1e-300))).sum(), abs=3e-4)
        q_K = np.exp(top_k.logprobs[token].astype(np.float64))
        p_K = p_V[top_k.ids[token]]
        assert row["probe"]["kl_top_k"] == pytest.approx(-np.log(q_K.sum()), abs=1e-3)  # the tail is stored in float16
        both = np.append(q_K, np.exp(float(top_k.tail[token]))), np.append(p_K, max(1 - p_K.sum(), 1e-7))
        coarse = (both[0] / both[0].sum() * np.log(both[0] / both[0].sum() / both[1])).sum()
        assert row["probe"]["kl_top_k_tail"] == pytest.approx(coarse, abs=1e-6)
        kept = drawn.logprobs[token] > -np.inf
        f = np.exp(drawn.logprobs[token][kept].astype(np.float64))
        assert row["probe"]["kl_draws"] == pytest.approx((f * np.log(f / p_V[drawn.ids[token][kept]])).sum(), abs=2e-4)
    assert seen >= 3
