"""Which prompts count as repeats, against exact Jaccard similarity computed another way.

Shape legend: N texts, P permutations, E pairs.
"""

import random
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest

from stillhouse.schemas.config import DedupeConfig
from stillhouse.stages import dedupe
from stillhouse.stages.text import minhash
from stillhouse.stages.text.shingles import shingles
from tests.support.conversations import first_user_turns
from tests.support.near_duplicates import all_jaccards, edited, oracle_shingles, prompts, reasons, run

CONFIG = DedupeConfig()
LEVELS = (0.95, 0.9, 0.8, 0.6)


class Measured(NamedTuple):
    """Real prompts, repeats among them as they come, and pairs made to be similar to a certain degree."""

    texts: list[str]
    planted: dict[float, list[tuple[int, int]]]
    """Pairs of texts, by their exact Jaccard similarity."""
    exact: np.ndarray
    """Exact Jaccard similarity of each pair, [N, N]."""
    signatures: np.ndarray
    """[N, P]."""
    clusters: np.ndarray
    """[N]."""


@pytest.fixture(scope="module")
def measured() -> Measured:
    rng = random.Random(0)
    real_prompts = first_user_turns(4000)[:2000]
    bases = [text for text in real_prompts if 60 <= len(text.split()) <= 400]
    texts, planted = list(real_prompts), {}
    for level in LEVELS:
        rng.shuffle(bases)
        copies = ((base, copy) for base in bases[:90] if (copy := edited(base, level, rng)) is not None)
        pairs = list(islice(copies, 50))
        assert len(pairs) >= 50, f"only {len(pairs)} pairs could be planted at {level}"
        planted[level] = [(len(texts) + 2 * i, len(texts) + 2 * i + 1) for i in range(len(pairs))]
        texts += [text for pair in pairs for text in pair]
    sketch = dedupe.Sketch(CONFIG)(prompts(texts))
    (assignment,) = dedupe.assign([sketch], CONFIG)
    return Measured(
        texts,
        planted,
        all_jaccards([oracle_shingles(text) for text in texts]),
        np.array(sketch["signature"].to_pylist(), np.uint32),
        np.unique(assignment["cluster_id"].to_numpy(), return_inverse=True)[1],
    )


def test_shingles_have_the_exact_similarity_of_all_pairs(measured: Measured) -> None:
    ours_NN = all_jaccards([shingles(text, CONFIG.ngram, CONFIG.char_ngram) for text in measured.texts])
    np.testing.assert_allclose(ours_NN, measured.exact, atol=1e-12)


def test_pairs_above_the_threshold_are_joined_and_those_far_below_are_not(measured: Measured) -> None:
    """Each planted pair on its own, so that no third text connects it. `pytest -s` shows the numbers."""
    recall = {}
    for level, pairs in measured.planted.items():
        alone = [minhash.joined_pairs(measured.signatures[list(pair)], CONFIG.threshold) for pair in pairs]
        recall[level] = np.mean([any(len(found) for found in bands) for bands in alone])
        print(f"planted at {level}: {len(pairs)} pairs, recall {recall[level]:.3f}")
    assert recall[0.95] >= 0.98
    assert recall[0.9] >= 0.98
    assert recall[0.6] == 0


def test_recall_and_precision_among_all_pairs(measured: Measured) -> None:
    """Clusters hold the pairs above the threshold; joined pairs are not far below it. `pytest -s` shows the numbers."""
    exact_NN = measured.exact
    upper_NN = np.triu(np.ones_like(exact_NN, bool), k=1)
    same_NN = measured.clusters[:, None] == measured.clusters[None, :]
    recall = {}
    for level in (*LEVELS, 0.5):
        at_NN = upper_NN & (exact_NN >= level)
        recall[level] = (at_NN & same_NN).sum() / at_NN.sum()
        print(f"at or above {level}: {at_NN.sum()} pairs, {recall[level]:.3f} of them in one cluster")
    edges = np.concatenate(list(minhash.joined_pairs(measured.signatures, CONFIG.threshold)))
    edge_E, in_cluster = exact_NN[edges[:, 0], edges[:, 1]], exact_NN[upper_NN & same_NN]
    for level in (0.8, 0.75, 0.7, 0.6):
        print(
            f"below {level}: {(edge_E < level).mean():.4f} of joined, {(in_cluster < level).mean():.4f} of same-cluster"
        )
    print(f"{len(edge_E)} joined pairs, least similar {edge_E.min():.3f}; in a cluster {in_cluster.min():.3f}")
    assert recall[0.9] >= 0.98
    assert edge_E.min() >= 0.6


def test_equal_after_normalisation() -> None:
    assert reasons("Write  a poem", "write a POEM\n", "ｗｒｉｔｅ a poem", "Write a poem!!!!!!!!!!!!!!!!!") == [
        None,
        dedupe.EXACT,
        dedupe.EXACT,
        None,
    ]


def test_turns_are_told_apart() -> None:
    text = "please explain the difference between a list and a tuple in python"
    table = run([prompts([[text], [text], [text, "and now in french, with examples of both kinds of thing"]])])
    assert table["drop_reason"].to_pylist() == [None, dedupe.EXACT, None]
    assert reasons(["a b"], ["a", "b"]) == [None, dedupe.NEAR]


def test_short_prompts_are_neither_merged_wholesale_nor_skipped() -> None:
    short = [
        "hi",
        "hello",
        "hey",
        "ok",
        "yes",
        "no",
        "thanks",
        "who are you",
        "tell me a joke",
        "write code",
        "?",
        "1",
        "",
    ]
    assert reasons(*short) == [None] * len(short)
    assert reasons("please tell me a funny joke right now", "please tell me a funny joke right now!") == [
        None,
        dedupe.NEAR,
    ]
    assert reasons("", "  \n") == [None, dedupe.EXACT]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("what is 2+2", "what is 2+3"),
        ("what is 2+2", "what is 3+2"),
        ("capital of austria", "capital of australia"),
        ("translate cat", "translate rat"),
    ],
)
def test_short_questions_that_differ_in_a_character(left: str, right: str) -> None:
    assert reasons(left, right) == [None, None]


def test_a_full_stop_does_not_change_the_kind_of_shingle() -> None:
    nine = "write a short poem about the old grey sea"
    assert reasons(nine, f"{nine}.") == [None, dedupe.NEAR]


@pytest.mark.parametrize(
    ("base", "near", "other"),
    [
        (
            "请用简单的语言解释一下什么是量子计算机，它和普通的计算机有什么不同，以及它在未来可能会有哪些实际的应用场景和限制",
            "请用简单的语言解释一下什么是量子计算机，它和普通的计算机有什么不同，以及它在未来可能会有哪些实际的应用场景",
            "请写一首关于秋天的诗，要求每行七个字，押韵，并且包含落叶、月亮和思乡这三个意象，最后再给出一段简短的赏析文字说明",
        ),
        (
            "東京から京都まで新幹線で行く場合の所要時間と料金を教えてください。また、途中で立ち寄れるおすすめの観光地もいくつか紹介してください。",
            "東京から京都まで新幹線で行く場合の所要時間と料金を教えてください。また、途中で立ち寄れるおすすめの観光地もいくつか紹介してください!",
            "日本の伝統的な家庭料理の作り方を初心者にも分かるように説明してください。材料と手順を順番に書いて、注意点も最後にまとめてください。",
        ),
        (
            "ช่วยอธิบายวิธีทำต้มยำกุ้งแบบง่ายๆ สำหรับคนที่ไม่เคยทำอาหารมาก่อน พร้อมบอกส่วนผสมทั้งหมดที่ต้องใช้",
            "ช่วยอธิบายวิธีทำต้มยำกุ้งแบบง่ายๆ สำหรับคนที่ไม่เคยทำอาหารมาก่อน พร้อมบอกส่วนผสมทั้งหมดที่ต้องใช้ครับ",
            "กรุณาเขียนจดหมายลาออกจากงานอย่างสุภาพ โดยระบุเหตุผลส่วนตัวและขอบคุณบริษัทสำหรับโอกาสที่ได้รับตลอดมา",
        ),
    ],
    ids=["chinese", "japanese", "thai"],
)
def test_scripts_without_spaces(base: str, near: str, other: str) -> None:
    assert len(base.split()) < 2 * CONFIG.ngram
    assert len(next(iter(shingles(base, CONFIG.ngram, CONFIG.char_ngram))).decode().split()) == CONFIG.ngram
    assert reasons(base, near, other) == [None, dedupe.NEAR, None]


def test_short_chinese_questions() -> None:
    assert reasons("什么是人工智能", "什么是人工呼吸", "你好", "您好") == [None] * 4
