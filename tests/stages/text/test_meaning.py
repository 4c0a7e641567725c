"""Leaders by meaning, against the rule written out with exact fractions.

Shape legend: N texts, D dimensions.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas.config import ConfigError, DedupeConfig, SemanticConfig
from stillhouse.stages import dedupe
from stillhouse.stages.text import meaning, minhash
from stillhouse.stages.text.meaning import Embedder, Meanings, whole
from tests.support.near_duplicates import prompts, run


def families(num: int, num_dimensions: int, seed: int) -> np.ndarray:
    """Vectors near some directions, by more or less; a few of zeros."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num // 6 + 1, num_dimensions)) + 0.3
    noise = rng.standard_normal((num, num_dimensions)) * rng.choice([0.02, 0.2, 0.4], (num, 1))
    vectors = centres[rng.integers(0, len(centres), num)] + noise
    vectors[rng.random(num) < 0.02] = 0
    return vectors.astype(np.float32)


def is_alike(left: list[int], right: list[int], threshold: float) -> bool:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot > 0 and dot >= threshold * (sum(a * a for a in left) * sum(b * b for b in right)) ** 0.5 - 1e-9


def by_the_rule(vectors: Any, kin: Any, units: Any, threshold: float) -> list[int]:
    leaders: list[int] = []
    found = []
    for i in range(len(vectors)):
        like = (
            j
            for j in leaders
            if kin[j] == kin[i] and units[j] != units[i] and is_alike(vectors[j], vectors[i], threshold)
        )
        found.append(next(like, i))
        if found[i] == i:
            leaders.append(i)
    return found


def unlike_signatures(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**32, (num, 128), np.uint32)


@pytest.mark.parametrize("num_dimensions", [2, 64, 1500])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.97])
def test_leaders_are_those_of_the_rule(num_dimensions: int, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meaning, "_BLOCK", 37)
    monkeypatch.setattr(meaning, "_LEADERS_AT_ONCE", 29)
    num = 60 if num_dimensions > 1000 else 300
    vector_ND = whole(families(num, num_dimensions, seed=num_dimensions))
    rng = np.random.default_rng(1)
    kin_N, units_N = rng.integers(0, 2, num).astype(np.uint64), rng.integers(0, num, num).astype(np.uint64)
    meanings = Meanings(vector_ND, kin_N, units_N, threshold)
    leader_N = minhash.leaders(unlike_signatures(num), units_N, 0.8, meanings=meanings)
    expected = by_the_rule(vector_ND.astype(int).tolist(), kin_N.tolist(), units_N.tolist(), threshold)
    assert leader_N.tolist() == expected
    assert meanings.is_led_N.tolist() == [i != leader for i, leader in enumerate(expected)]
    assert 0.1 < meanings.is_led_N.mean() < 0.95


def test_nearness_goes_before_meaning() -> None:
    """The third text is near the second, and means what the first does, which comes earlier."""
    signatures = unlike_signatures(3)
    signatures[2] = signatures[1]
    vector_ND = np.array([[1, 0], [0, 1], [1, 0]], np.int8)
    meanings = Meanings(vector_ND, np.zeros(3, np.uint64), np.arange(3, dtype=np.uint64), 0.9)
    assert minhash.leaders(signatures, np.arange(3, dtype=np.uint64), 0.8, meanings=meanings).tolist() == [0, 1, 1]
    assert not meanings.is_led_N.any()


def test_a_chain_is_not_one_cluster() -> None:
    """Each is 10 degrees from the one before: 0.985 alike; two steps are 0.94."""
    angles = np.deg2rad(np.arange(0, 180, 10))
    vector_ND = whole(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    units_N = np.arange(len(angles), dtype=np.uint64)
    meanings = Meanings(vector_ND, np.zeros(len(angles), np.uint64), units_N, 0.95)
    leader_N = minhash.leaders(unlike_signatures(len(angles)), units_N, 0.8, meanings=meanings)
    assert leader_N.tolist() == [i - i % 2 for i in range(len(angles))]


@pytest.mark.parametrize("num_dimensions", [1, 256, 1040, 1041, 4096])
def test_products_are_exact_in_float32(num_dimensions: int) -> None:
    extreme = whole(np.ones((2, num_dimensions), np.float32)).astype(np.int64)
    assert int((extreme[0] * extreme[1]).sum()) < 2**24
    assert extreme.max() == 127 or num_dimensions > 1040


def test_rounding_costs_little() -> None:
    vectors = families(400, 256, seed=5)
    vectors = vectors[np.abs(vectors).max(axis=1) > 0]
    exact, rounded = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors, whole(vectors).astype(float)))
    assert np.abs(exact @ exact.T - rounded @ rounded.T).max() < 0.004


def test_order_of_shards_and_texts_with_other_numbers(model: Path) -> None:
    config = DedupeConfig(semantic=SemanticConfig(model=str(model), threshold=0.9))
    texts = [
        "How do I boil an egg?",
        "How do I boil eggs?",
        "How do I boil 3 eggs?",
        "How do I boil 4 eggs?",
        "Write a poem about the sea and the moon",
        "how do I boil an egg",
    ]
    table = prompts(texts)
    verdicts = run([table], config)
    why = dict(zip(verdicts["prompt_id"].to_pylist(), verdicts["drop_reason"].to_pylist(), strict=True))
    assert why == {
        "p0000": None, "p0001": dedupe.SEMANTIC, "p0002": None, "p0003": None, "p0004": None, "p0005": dedupe.NEAR,
    }  # fmt: skip
    assert verdicts["cluster_id"].to_pylist()[1] == "p0000"
    assert verdicts["cluster_size"].to_pylist()[:3] == [3, 3, 1]
    rng = random.Random(0)
    order = list(range(len(texts)))
    for _ in range(5):
        rng.shuffle(order)
        cut = rng.randrange(1, len(order))
        shards = [table.take(order[:cut]), table.take(order[cut:])]
        again = run(shards, config)
        assert dict(zip(again["prompt_id"].to_pylist(), again["drop_reason"].to_pylist(), strict=True)) == why
    other = prompts(texts[:2], systems=[None, "You are a cook."])
    assert run([other], config)["drop_reason"].to_pylist() == [None, None]
    assert run([prompts([])], config).num_rows == 0


def test_given_answers_are_part_of_the_meaning(model: Path) -> None:
    """With task: score, samples of one prompt are no duplicates of each other."""
    config = DedupeConfig(semantic=SemanticConfig(model=str(model), threshold=0.97))
    answers = [
        ["Put it into hot water and wait for some minutes, then cool it under the tap."],
        ["Silver moon above the sea, sing your quiet song to me, while the waves roll home."],
        ["class Egg:\n    def boil(self, minutes):\n        return self.water.wait(minutes)"],
    ]
    table = prompts(["How do I boil an egg?"] * 3).append_column("answers", pa.array(answers))
    assert run([table], config)["drop_reason"].to_pylist() == [None] * 3


def test_embeddings_do_not_depend_on_their_neighbours(model: Path) -> None:
    embedder = Embedder(SemanticConfig(model=str(model)))
    texts = ["What is the capital of France?", "", "été 日本 🤖", "x " * 3000]
    together = embedder(texts)
    assert together.dtype == np.int8
    assert np.array_equal(together, np.concatenate([embedder([text]) for text in texts]))
    assert not together[1].any()
    assert embedder(["x " * 3000 + "capital of France"]).tolist() != together[3:].tolist(), "no end is cut off"


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dedupe.semantic.model: .* cannot be read as a model2vec model"):
        Embedder(SemanticConfig(model=str(tmp_path)))
