"""The fidelity report: against NumPy over the same distributions in full.

Shape legend: S tokens, V vocabulary, K targets per token, D draws per token.
"""

import asyncio
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas import tables, targets
from stillhouse.schemas.config import Config, TargetsConfig
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import Answer, fidelity
from stillhouse.stages.teacher.chat import Chat
from tests.support.prompts import prompts

S, V, K, D = 40, 300, 16, 32


class Whole:
    """A teacher whose distributions are known in full, [tokens, V], and that keeps one of every answer."""

    vocab_size = V
    broken = False
    last_token_at = 0.0

    def __init__(self) -> None:
        self.p: dict[str, np.ndarray] = {}
        self.written: dict[str, np.ndarray] = {}
        self.draws: dict[str, np.ndarray] = {}

    async def answer(self, prompt_ids: Any, request_id: str, seed: int, max_tokens: int) -> Answer:
        random = np.random.default_rng(seed)
        p = np.exp(random.normal(0, random.uniform(0.5, 5), (S, V)))
        p /= p.sum(axis=1, keepdims=True)
        order = np.argsort(-p, axis=1)[:, :K]
        written = np.array([random.choice(V, p=row) for row in p], dtype=np.int32)
        draws = np.stack([random.choice(V, D, p=row) for row in p]).astype(np.int32)
        self.p[request_id], self.written[request_id], self.draws[request_id] = p, written, draws
        logp = np.log(p).astype(np.float32)
        top = np.take_along_axis(logp, order, axis=1)
        probed = int(random.integers(S))
        own = logp[np.arange(S), written]
        return Answer(written, order.astype(np.int32), top, own, "length", draws, (probed, logp[probed]))

    def shutdown(self) -> None:
        pass


@pytest.fixture(scope="module")
def teacher() -> Whole:
    return Whole()


def generated(raw: dict[str, Any], teacher: Whole, tokenizer: Any, **settings: Any) -> pa.Table:
    raw["targets"] = {"top_k": K, "num_draws": D, **settings}
    texts = [[f"question {n}"] for n in range(25)]
    return asyncio.run(Generate(Config.model_validate(raw), Chat(tokenizer), teacher)(prompts(texts)))


@pytest.mark.parametrize("settings", [{}, {"precision": 0.25}, {"top_p": 0.9}], ids=str)
def test_probes_are_kl_to_the_whole_distribution(
    raw_config: dict[str, Any], teacher: Whole, tokenizer: Any, settings: dict[str, Any]
) -> None:
    table = generated(raw_config, teacher, tokenizer, method="both", **settings)
    assert table.schema.equals(
        tables.marked(tables.completions(["profanity"], TargetsConfig(method="both", **settings)))
    )
    rows = zip(table.to_pylist(), targets.decode(table, "target"), targets.decode(table, "draw"), strict=True)
    for row, top_k, drawn in rows:
        p = teacher.p[row["sample_id"] + "/0"]
        probe, token = row["probe"], row["probe"]["token"]
        p_V = p[token]
        assert probe["entropy"] == pytest.approx(-(p_V * np.log(p_V)).sum(), rel=1e-5)
        kept = top_k.logprobs[token] > -np.inf
        q = np.exp(top_k.logprobs[token][kept].astype(np.float64))
        p_K = p_V[top_k.ids[token][kept]]
        assert probe["kl_top_k"] == pytest.approx((q / q.sum() * np.log(q / q.sum() / p_K)).sum(), abs=1e-6)
        q = np.append(q, np.exp(float(top_k.tail[token])))
        p_K = np.append(p_K, max(1 - p_K.sum(), 1e-7))
        assert probe["kl_top_k_tail"] == pytest.approx((q / q.sum() * np.log(q / q.sum() / p_K)).sum(), abs=1e-6)
        f = np.bincount(teacher.draws[row["sample_id"] + "/0"][token], minlength=V) / D
        assert probe["kl_draws"] == pytest.approx((f[f > 0] * np.log(f[f > 0] / p_V[f > 0])).sum(), abs=1e-5)
        assert np.abs(np.exp(drawn.logprobs[token][drawn.logprobs[token] > -np.inf]) - f[f > 0]).max() < 1e-6


def test_targets_that_the_teacher_never_writes_cost_nothing() -> None:
    logprobs_V = np.log(np.array([0.5, 0.25, 0.25, 1e-45, 1e-45], np.float32))
    logprobs_V[3:] = -np.inf
    top_k = targets.encode_top_k(np.array([[0, 1, 3, 4]]), logprobs_V[None, [0, 1, 3, 4]])
    found = fidelity.probe(logprobs_V, top_k, None, 0, 0.0)
    assert found["kl_top_k"] == pytest.approx(np.log(4 / 3), abs=1e-3)  # 0.75 of the mass is kept
    assert found["kl_top_k_tail"] == pytest.approx(0.0, abs=1e-3)


def test_the_report_is_that_of_all_tokens(raw_config: dict[str, Any], teacher: Whole, tokenizer: Any) -> None:
    table = generated(raw_config, teacher, tokenizer, method="both").drop_columns(["drop_reason"])
    parts = [fidelity.statistics(table.slice(start, 7)) for start in range(0, table.num_rows, 7)]
    assert fidelity.merged(parts) == fidelity.merged([fidelity.statistics(table), {}])
    found = fidelity.report(fidelity.merged(parts))
    names = [f"p{n}/0/0" for n in range(25)]
    p = np.concatenate([teacher.p[name] for name in names])
    written = np.concatenate([teacher.written[name] for name in names])
    draws = np.concatenate([teacher.draws[name] for name in names])
    assert found["tokens"] == len(p) == 25 * S
    assert found["probed_tokens"] == 25
    top = np.sort(p, axis=1)[:, : -K - 1 : -1]
    tail = 1 - top.sum(axis=1)
    coarse = np.c_[top, tail]
    frequencies = np.stack([np.bincount(row, minlength=V) / D for row in draws])
    surprisal = -np.log(p[np.arange(len(p)), written])
    for q in fidelity.QUANTILES:
        key = f"p{int(100 * q)}"
        bin_width = 1.01 / fidelity.BINS_PER_NAT
        assert found["written_token_surprisal"][key] == pytest.approx(np.quantile(surprisal, q), abs=bin_width)
        assert np.log(found["top_k"]["tail_mass"][key]) == pytest.approx(np.log(np.quantile(tail, q)), abs=bin_width)
        entropy = -(coarse * np.log(coarse)).sum(axis=1)
        assert found["top_k"]["entropy"][key] == pytest.approx(np.quantile(entropy, q), abs=bin_width)
        entropy = -np.where(frequencies > 0, frequencies * np.log(np.maximum(frequencies, 1e-9)), 0).sum(axis=1)
        assert found["draws"]["entropy"][key] == pytest.approx(np.quantile(entropy, q), abs=bin_width)
    assert list(found["top_k"]["tail_mass"].values()) == sorted(found["top_k"]["tail_mass"].values())
    in_top = (np.argsort(-p, axis=1)[:, :K] == written[:, None]).any(axis=1).mean()
    assert found["top_k"]["written_token_among_them"] == pytest.approx(in_top, abs=1e-4)
    drawn = (draws == written[:, None]).any(axis=1).mean()
    assert found["draws"]["written_token_among_them"] == pytest.approx(drawn, abs=1e-4)
    assert found["top_k"]["targets_per_token"] == K
    assert found["draws"]["targets_per_token"] == pytest.approx((frequencies > 0).sum(axis=1).mean(), abs=0.01)
    assert found["probed_kl_top_k"]["mean"] > found["probed_kl_top_k_tail"]["mean"]


def test_an_empty_shard_reports_nothing() -> None:
    assert fidelity.report(fidelity.merged([])) == {"tokens": 0, "probed_tokens": 0}
    empty = tables.completions([]).empty_table()
    assert fidelity.report(fidelity.merged([fidelity.statistics(empty)]))["tokens"] == 0


def test_draws_from_the_top_k_lose_the_tail(raw_config: dict[str, Any], teacher: Whole, tokenizer: Any) -> None:
    table = generated(raw_config, teacher, tokenizer, method="sampled", draws_from="top_k", num_draws=2000)
    again = generated(raw_config, teacher, tokenizer, method="sampled", draws_from="top_k", num_draws=2000)
    assert table.equals(again)
    assert "target_ids" not in table.column_names
    for row, drawn in zip(table.to_pylist(), targets.decode(table), strict=True):
        p = teacher.p[row["sample_id"] + "/0"]
        top = np.sort(p, axis=1)[:, : -K - 1 : -1]
        assert np.abs(np.exp(drawn.tail) - (1 - top.sum(axis=1))).max() < 0.06
        for s in range(S):
            kept = drawn.logprobs[s] > -np.inf
            assert np.abs(np.exp(drawn.logprobs[s][kept]) - p[s, drawn.ids[s][kept]]).max() < 0.06
            assert set(drawn.ids[s][kept]) <= set(np.argsort(-p[s])[:K])
