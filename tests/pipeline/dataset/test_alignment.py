"""Judging alignment by numbers: how often right data raise an alarm, and how few wrong tokens do.

Shape legend: S tokens, V vocabulary, K targets per token, D draws per token.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.pipeline.dataset.checks import alignment
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.stages.layouts.records import Conversation
from tests.support.datasets import make_export, write_dataset

S, V, K, D = 40, 60, 8, 16
NUM_ROWS = 3000
LEVEL = 0.05
KINDS = ["target", "normalised", "draw"]
ENOUGH = {"target": 1, "normalised": 5, "draw": 5}
"""Conversations of S tokens in which wrong rows are found."""


def distributions(random: np.random.Generator, spread: float) -> np.ndarray:
    """[S, V], each token's most probable first."""
    weights_SV = np.exp(random.normal(0, spread, (S, V)))
    p_SV: np.ndarray = -np.sort(-weights_SV / weights_SV.sum(axis=1, keepdims=True), axis=1)
    return p_SV


def drawn(random: np.random.Generator, p_SV: np.ndarray) -> np.ndarray:
    """[S] a token of each distribution."""
    return (random.random((S, 1)) > np.cumsum(p_SV, axis=1)).sum(axis=1).clip(max=V - 1)


def conversation(random: np.random.Generator, p_SV: np.ndarray, tokens_S: np.ndarray, kind: str) -> Conversation:
    """A prompt of one token and S tokens, with what an export of `kind` stores of their distributions."""
    if kind == "draw":
        probs_SK, ids_SK = random.multinomial(D, p_SV) / D, np.tile(np.arange(V), (S, 1))
    else:
        probs_SK, ids_SK = p_SV[:, :K], np.tile(np.arange(K), (S, 1))
        if kind == "normalised":
            probs_SK = probs_SK / probs_SK.sum(axis=1, keepdims=True)
    return Conversation(np.append(V, tokens_S), np.arange(S + 1) < S, ids_SK, probs_SK)


def own(row: Conversation, kind: str) -> np.ndarray:
    return alignment.own_token(row, is_draws=kind == "draw", is_normalised=kind == "normalised")


@pytest.mark.parametrize("spread", [0.3, 2.0, 5.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_right_rows_raise_no_more_alarms_than_is_said(
    monkeypatch: pytest.MonkeyPatch, kind: str, temperature: float, spread: float
) -> None:
    """At a level at which alarms can be counted; the one in use is 1e-9."""
    random = np.random.default_rng(7)
    loose, strict = 0, 0
    for _ in range(NUM_ROWS // 10):
        p_SV = distributions(random, spread)
        written_SV = p_SV ** (1 / temperature)
        tokens_S = drawn(random, written_SV / written_SV.sum(axis=1, keepdims=True))
        surplus = own(conversation(random, p_SV, tokens_S, kind), kind)
        strict += alignment.is_misaligned(surplus)
        with monkeypatch.context() as patch:
            patch.setattr(alignment, "LOG_ROW", np.log(1 / LEVEL))
            loose += alignment.is_misaligned(surplus)
    assert strict == 0
    assert loose <= LEVEL * NUM_ROWS / 10


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_rows_are_found(kind: str) -> None:
    """Conversations of a few hundred tokens with others' tokens, from a teacher as sure as a real one."""
    random = np.random.default_rng(8)
    for _ in range(20):
        p_SV = distributions(random, 5.0)
        wrong_S = random.integers(0, V, S)
        total = sum(own(conversation(random, p_SV, wrong_S, kind), kind) for _ in range(ENOUGH[kind]))
        right = sum(own(conversation(random, p_SV, drawn(random, p_SV), kind), kind) for _ in range(ENOUGH[kind]))
        assert alignment.is_misaligned(np.asarray(total))
        assert not alignment.is_misaligned(np.asarray(right))


@pytest.mark.parametrize("spread", [0.3, 2.0, 5.0])
def test_draws_of_right_rows_raise_no_more_alarms_than_is_said(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    random = np.random.default_rng(9)
    rows = []
    for _ in range(NUM_ROWS // 3):
        p_SV = distributions(random, spread)
        tokens_S = drawn(random, p_SV)
        own_S = p_SV[np.arange(S), tokens_S]
        rows.append(alignment.rarity(random.binomial(D, own_S).astype(float), own_S, D))
    every = np.concatenate(rows)
    for x in (1.0, 3.0, 5.0):  # what `rarity` promises: above x at most exp(-x) of the time
        assert (every > x).mean() <= np.exp(-x)
    assert not any(alignment.are_rare(row) for row in rows)
    assert every.max() < alignment.LOG_TOKEN
    monkeypatch.setattr(alignment, "LOG_ROW", np.log(1 / LEVEL))
    assert np.mean([alignment.are_rare(row) for row in rows]) <= LEVEL


def test_draws_of_wrong_rows_are_found() -> None:
    probs_S = np.full(6, 0.6)
    assert alignment.are_rare(alignment.rarity(np.zeros(6), probs_S, D))
    assert not alignment.are_rare(alignment.rarity(np.full(6, 9.0), probs_S, D))
    assert alignment.rarity(np.zeros(1), np.ones(1), D)[0] > alignment.LOG_TOKEN


@pytest.mark.parametrize("layout", [None, "verl", "tinker"])
def test_a_hundred_right_files(tmp_path: Path, layout: str | None) -> None:
    """Drawn from the distributions that they store: no alarm, with and without the dataset."""
    run = write_dataset(tmp_path, num_rows=[2] * 100)
    folder = run
    if layout is not None:
        make_export(run, layout)
        folder = (run / "exports" / layout).rename(tmp_path / "alone")
    result: dict[str, Any] = verify(str(folder), 1)
    assert (result["problems"], result["files"]) == ([], 100)
