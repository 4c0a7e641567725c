"""Scores by a real engine, which reads in pieces and from its prefix cache, against a forward pass of transformers; and
what was generated against what is scored of it.

Shape legend: S tokens, V vocabulary, K targets per token, D draws per token.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stillhouse.schemas import targets
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.generate import Generate
from stillhouse.stages.score import Score
from stillhouse.stages.teacher import load_teacher
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.engine import VLLMTeacher
from tests.support.engines import NUM_DRAWS, sampled_config
from tests.support.forward import entropy_errors, exact_model, fit, forward, whole_distributions
from tests.support.prompts import prompts
from tests.support.scoring import answered, with_ids
from tests.support.scoring_engine import MAX_MODEL_LEN, conversations, errors, scoring_config

TOKENS = 2000


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[tuple[pa.Table, dict[str, float]]]:
    """Conversations, scored; and what the scheduler says of its prefix cache."""
    config, chat = scoring_config(tmp_path_factory.mktemp("score")), Chat(tokenizer)
    teacher = load_teacher(config, chat.end_of_turn_ids())
    assert isinstance(teacher, VLLMTeacher)
    hits = {"queries": 0.0, "hits": 0.0}
    update = teacher.engine.output_processor.update_scheduler_stats

    def counted(stats: Any) -> None:
        if stats is not None and stats.prefix_cache_stats is not None:
            hits["queries"] += stats.prefix_cache_stats.queries
            hits["hits"] += stats.prefix_cache_stats.hits
        update(stats)

    teacher.engine.output_processor.update_scheduler_stats = counted
    questions, answers = conversations(20)
    try:
        # The samples of one prompt one after the other, so that what the first has left is there for the next.
        score = Score(config, chat, teacher)

        async def all_of_them() -> list[pa.Table]:
            first = [await score(answered([questions[i]], [answers[i]])) for i in range(4)]
            return [*first, await score(answered(questions[4:], answers[4:]))]

        table = pa.concat_tables(asyncio.run(all_of_them()))
        yield table.filter(pc.is_null(table["drop_reason"])), hits
    finally:
        teacher.shutdown()


def test_scores_are_those_of_a_forward_pass(scored: tuple[pa.Table, dict[str, float]]) -> None:
    table, hits = scored
    assert table.num_rows >= 22  # a question or two do not fit
    reasons = table["finish_reasons"].to_pylist()
    assert sum(len(row) > 1 for row in reasons) >= 5
    assert sum(row[-1] == "length" for row in reasons) >= 1
    assert max(table["num_input_tokens"].to_pylist()) == MAX_MODEL_LEN
    found = errors(table)
    print(f"\n{table.num_rows} conversations, {sum(table['num_target_tokens'].to_pylist())} tokens: {found}, {hits}")
    assert found["own"] < 0.002
    assert found["top"] < 0.005  # stored in float16
    assert found["shifted"] > 20 * found["own"]
    assert hits["hits"] >= 3 * 64  # the prompt of the samples, but for a block's rest


def test_the_same_answer_twice_gets_the_same(scored: tuple[pa.Table, dict[str, float]]) -> None:
    first, second = scored[0].slice(0, 2).to_pylist()
    assert first["labels"] == second["labels"]
    assert np.allclose(first["token_logprobs"], second["token_logprobs"], atol=2e-3)
    assert first["target_ids"][:64] == second["target_ids"][:64]


def test_draws_of_scored_tokens_fit_the_whole_distribution(scored: tuple[pa.Table, dict[str, float]]) -> None:
    p_SV, counts_SV = whole_distributions(scored[0], NUM_DRAWS, TOKENS)
    found, shifted = fit(p_SV, counts_SV), fit(p_SV[1:], counts_SV[:-1])
    print(f"\n{len(p_SV)} tokens x {NUM_DRAWS} draws: chi-square p {found}, shifted by one {shifted}")
    assert len(p_SV) == TOKENS
    assert min(found) > 1e-3
    assert min(shifted) < 1e-6


def test_entropies_of_scored_tokens_are_the_whole_distributions(scored: tuple[pa.Table, dict[str, float]]) -> None:
    own, shifted = entropy_errors(scored[0], TOKENS)
    print(f"\nentropies: {own:.5f} nats off, shifted by one {shifted:.3f}")
    assert own < 0.003
    assert shifted > 100 * own


def test_probes_are_the_whole_distribution(scored: tuple[pa.Table, dict[str, float]]) -> None:
    model, seen = exact_model(), 0
    for row in scored[0].to_pylist():
        if row["probe"] is None or seen == 5:
            continue
        seen += 1
        p_V = np.exp(forward(row, model)[0][row["probe"]["token"]].astype(np.float64))
        assert row["probe"]["entropy"] == pytest.approx(-(p_V * np.log(np.maximum(p_V, 1e-300))).sum(), abs=1e-3)
    assert seen == 5


def test_what_was_generated_is_scored_alike(tmp_path: Path, tokenizer: Any) -> None:
    """One engine writes conversations of two turns, and another reads their ids, and their text."""
    chat = Chat(tokenizer)
    config = sampled_config(tmp_path, teacher={"engine": {"enforce_eager": True, "max_num_seqs": 8}})
    questions = [asked[:2] for asked in conversations(20)[0][4:] if len(asked) > 1 and max(map(len, asked)) < 250][:6]
    writer = load_teacher(config, chat.end_of_turn_ids())
    try:
        written = asyncio.run(Generate(config, chat, writer)(prompts(questions)))
    finally:
        writer.shutdown()
    by_ids = scoring_config(tmp_path, ids="source", tokenizer_sha256="teacher")
    by_text = scoring_config(tmp_path)
    reader = load_teacher(by_ids, chat.end_of_turn_ids())
    assert isinstance(reader, VLLMTeacher)
    rows = written.to_pylist()
    ended = [[m["content"] for m in row["messages"] if m["role"] == "assistant"] for row in rows]
    asked = [[m["content"] for m in row["messages"] if m["role"] == "user"] for row in rows]
    table = with_ids(answered(asked, ended), [row["input_ids"] for row in rows], [row["labels"] for row in rows])

    async def both() -> tuple[pa.Table, pa.Table]:
        return await Score(by_ids, chat, reader)(table), await Score(by_text, chat, reader)(table)

    try:
        from_ids, from_text = asyncio.run(both())
    finally:
        reader.shutdown()
    assert from_ids["input_ids"].to_pylist() == written["input_ids"].to_pylist()
    assert from_ids["labels"].to_pylist() == written["labels"].to_pylist()
    for one, other in ((written, from_ids), (from_ids, written)):
        own = np.concatenate(one["token_logprobs"].to_pylist()) - np.concatenate(other["token_logprobs"].to_pylist())
        assert np.abs(own).mean() < 0.001
        for a, b in zip(targets.decode(one), targets.decode(other), strict=True):
            shared = a.ids[:, :16] == b.ids[:, :16]
            assert shared.mean() > 0.99
            assert np.abs((a.logprobs - b.logprobs)[:, :16][shared]).mean() < 0.003
    assert min(fit(*whole_distributions(from_ids, NUM_DRAWS, 300))) > 1e-3
    alike = [a == b for a, b in zip(written["input_ids"].to_pylist(), from_text["input_ids"].to_pylist(), strict=True)]
    whole = [row["finish_reasons"][-1] == "stop" for row in rows]
    print(f"\n{len(rows)} conversations: {sum(alike)} are tokenised again as they were written, {sum(whole)} ended")
    for row, same in zip(from_text.to_pylist(), alike, strict=True):
        assert not same or sum(label != IGNORE_INDEX for label in row["labels"]) == len(row["token_logprobs"])
