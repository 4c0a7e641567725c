"""Which prompts count as repeats, against exact Jaccard similarity computed another way.

Shape legend: N texts, P permutations, E pairs.
"""

import random
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import pytest

from stillhouse.schemas.config import DedupeConfig
from stillhouse.stages import dedupe
from stillhouse.stages.text import minhash
from stillhouse.stages.text.reading import reading
from stillhouse.stages.text.shingles import shingles, units
from tests.support.conversations import first_user_turns
from tests.support.details import QUESTIONS, differing, passage
from tests.support.near_duplicates import all_jaccards, edited, jaccard, oracle_shingles, prompts, reasons, run, varied
from tests.support.questions import DIFFERENT, SAME

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
    kept: np.ndarray
    """[N], bool."""
    leader: np.ndarray
    """[N]: the text whose id is the cluster's."""


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
        all_jaccards([oracle_shingles(text, punctuation=True) for text in texts]),
        np.array(sketch["signature"].to_pylist(), np.uint32),
        np.array([reason is None for reason in assignment["drop_reason"].to_pylist()]),
        np.array([int(name[1:]) for name in assignment["cluster_id"].to_pylist()]),
    )


@pytest.mark.long
def test_shingles_have_the_exact_similarity_of_all_pairs(measured: Measured) -> None:
    said = [reading(text) for text in measured.texts]
    ours_NN = all_jaccards([shingles(text, CONFIG.ngram) for text in said])
    np.testing.assert_allclose(ours_NN, all_jaccards([oracle_shingles(text) for text in said]), atol=1e-12)


def alike(measured: Measured, left: int, right: int) -> bool:
    """The pair on its own, so that no third text has a part in it."""
    return minhash.leaders(
        measured.signatures[[left, right]], np.arange(2, dtype=np.uint64), CONFIG.threshold
    ).tolist() == [0, 0]


def test_pairs_above_the_threshold_are_alike_and_those_far_below_are_not(measured: Measured) -> None:
    """`pytest -s` shows the numbers."""
    recall = {}
    for level, pairs in measured.planted.items():
        recall[level] = np.mean([alike(measured, *pair) for pair in pairs])
        print(f"planted at {level}: {len(pairs)} pairs, recall {recall[level]:.3f}")
    assert recall[0.95] >= 0.99
    assert recall[0.9] >= 0.99
    assert recall[0.6] == 0


def test_recall_among_all_pairs_and_whom_dropped_texts_are_like(measured: Measured) -> None:
    """Of a pair above the threshold, one is dropped; what is dropped is like its leader. `pytest -s` shows the
    numbers."""
    exact_NN = measured.exact
    upper_NN = np.triu(np.ones_like(exact_NN, bool), k=1)
    both_NN = measured.kept[:, None] & measured.kept[None, :]
    recall = {}
    for level in (*LEVELS, 0.5):
        at_NN = upper_NN & (exact_NN >= level)
        recall[level] = 1 - (at_NN & both_NN).sum() / at_NN.sum()
        print(f"at or above {level}: {at_NN.sum()} pairs, of {recall[level]:.3f} one is dropped")
    dropped = np.flatnonzero(~measured.kept)
    leader = measured.leader[dropped]
    assert measured.kept[leader].all()
    said = [reading(text) for text in measured.texts]
    to_leader = np.array(
        [jaccard(oracle_shingles(said[i]), oracle_shingles(said[j])) for i, j in zip(dropped, leader, strict=True)]
    )
    for level in (0.8, 0.75, 0.7):
        print(f"of {len(dropped)} dropped texts {(to_leader < level).mean():.4f} are below {level} to their leader")
    print(f"least {to_leader.min():.3f}")
    assert recall[0.9] >= 0.99
    assert to_leader.min() >= CONFIG.threshold - 0.1


@pytest.mark.long
@pytest.mark.parametrize("language", QUESTIONS)
def test_recall_and_precision_in_many_languages(language: str) -> None:
    """Pairs of passages that are 0.9 alike: one of the two is dropped. What is dropped is like what is kept."""
    rng = random.Random(language)
    texts: list[str] = []
    while len(texts) < 2 * 60:
        base = passage(language, rng.randint(60, 200), rng)
        copy = varied(base, rng.choice((0.91, 0.91, 0.78, 0.66)), rng)
        texts += [base, copy]
    sets = [oracle_shingles(text) for text in texts]
    exact = [jaccard(*pair) for pair in zip(sets[::2], sets[1::2], strict=True)]
    table = run([prompts(texts)])
    is_kept = [reason is None for reason in table["drop_reason"].to_pylist()]
    found = [not (one and other) for one, other in zip(is_kept[::2], is_kept[1::2], strict=True)]
    high = [is_found for is_found, value in zip(found, exact, strict=True) if value >= 0.9]
    assert len(high) >= 10
    assert np.mean(high) >= 0.99
    dropped = [value for is_found, value in zip(found, exact, strict=True) if is_found]
    assert min(dropped) >= CONFIG.threshold - 0.1
    low = [is_found for is_found, value in zip(found, exact, strict=True) if value < CONFIG.threshold - 0.1]
    assert len(low) >= 5
    assert not any(low)


# Details that few shingles hold: at an end of the text, or one character of many.
MERGED = {
    ("tr", "name"), ("ko", "name"), ("hi", "name"), ("hi", "number"), ("hi", "negation"), ("ja", "name"),
    ("ja", "number"), ("ja", "negation"), ("th", "name"), ("th", "negation"),
}  # fmt: skip


def test_one_detail_makes_another_question() -> None:
    """Of 46 pairs of 10 to 60 words or characters that differ in one; those merged all the same are in
    docs/duplicates.md."""
    details = differing()
    assert len(details) == 46
    assert {(language, detail) for language, detail, *pair in details if reasons(*pair) != [None, None]} == MERGED


def chain(num_links: int, step: int, seed: int, words: int = 104) -> list[str]:
    """Texts of which each has `step` new words at its end and `step` fewer at its start than the one before."""
    rng = random.Random(seed)
    stream = [f"w{rng.randrange(10**9)}" for _ in range(words + num_links * step)]
    return [" ".join(stream[i * step : i * step + words]) for i in range(num_links)]


def far_from_all_kept(texts: list[str], verdicts: list[str | None], level: float) -> int:
    sets = [oracle_shingles(text) for text in texts]
    kept = [i for i, reason in enumerate(verdicts) if reason is None]
    return sum(max(jaccard(sets[i], sets[j]) for j in kept) < level for i in range(len(texts)))


def test_a_chain_is_not_one_cluster() -> None:
    """13 texts, each 0.85 like the one before, the ends 0.15 or less alike."""
    texts = chain(13, 8, seed=0)
    sets = [oracle_shingles(text) for text in texts]
    assert all(0.84 < jaccard(*pair) < 0.86 for pair in pairwise(sets))
    assert jaccard(sets[0], sets[-1]) < 0.15
    verdicts = reasons(*texts)
    assert 4 <= verdicts.count(None) < 13
    assert far_from_all_kept(texts, verdicts, 0.7) == 0


@pytest.mark.parametrize(("max_per_cluster", "num_chains", "step"), [(1, 40, 8), (3, 10, 2)])
@pytest.mark.long
def test_of_many_chains_nothing_is_dropped_that_nothing_kept_is_like(
    max_per_cluster: int, num_chains: int, step: int
) -> None:
    texts = [text for seed in range(num_chains) for text in chain(13, step, seed=seed)]
    verdicts = reasons(*texts, config=DedupeConfig(max_per_cluster=max_per_cluster))
    assert far_from_all_kept(texts, verdicts, 0.66) == 0
    below = far_from_all_kept(texts, verdicts, CONFIG.threshold)
    print(f"{verdicts.count(None)} of {len(texts)} kept; {below} dropped below 0.8 to all of them, none below 0.66")
    assert below < 0.1 * len(texts)
    assert 3 * num_chains < verdicts.count(None) < 0.7 * len(texts)


def test_chains_that_grow_and_stars_and_rings() -> None:
    rng = random.Random(3)
    base = [f"w{i}" for i in range(100)]
    growing = [" ".join(base[: 20 + 4 * i]) for i in range(20)]  # each is a part of the next
    center = " ".join(base)
    star = [center] + [" ".join([*base[: 5 * i], f"x{i}", f"y{i}", *base[5 * i + 2 :]]) for i in range(1, 19)]
    ring = [" ".join(base[i:] + base[:i]) for i in range(0, 100, 4)]
    for texts in (growing, star, ring):
        for _ in range(3):
            rng.shuffle(texts)
            verdicts = reasons(*texts)
            assert None in verdicts
            assert far_from_all_kept(texts, verdicts, 0.66) == 0


def test_what_is_equal_what_is_alike_and_what_is_neither() -> None:
    """The reason says which: only the same text is an exact duplicate."""
    assert reasons("Write a poem", "write a POEM\n", "ｗｒｉｔｅ a poem!!!", "Write a poem\n", "Write a poet") == [
        None,
        dedupe.NEAR,
        dedupe.NEAR,
        dedupe.EXACT,
        None,
    ]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_one_question_is_kept_once(left: str, right: str) -> None:
    assert reasons(left, right) == [None, dedupe.NEAR]
    assert reasons(["hello", left], ["hello", right]) == [None, dedupe.NEAR]


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_two_questions_are_both_kept(left: str, right: str) -> None:
    assert reasons(left, right) == [None, None]
    assert reasons(["hello", left], ["hello", right]) == [None, None]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_one_long_question_is_kept_once(left: str, right: str) -> None:
    """Also with the spelling at its start or in its middle."""
    intro = "please answer the following question in one short sentence of at most twenty words and no more"
    assert reasons(f"{intro}\n{left}", f"{intro}\n{right}") == [None, dedupe.NEAR]


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_what_shingles_leave_out_is_not_lost_in_a_long_text(left: str, right: str) -> None:
    """Where it is all that differs. Others differ by a word of many, and the threshold decides."""
    intro = "please answer the following question in one short sentence of at most twenty words and no more:"
    if units(left) == units(right):
        assert reasons(f"{intro}\n{left}", f"{intro}\n{right}") == [None, None]


def test_a_program_is_not_another_one_that_is_indented_differently() -> None:
    program = (
        "def is_prime(n):\n    if n < 2:\n        return False\n    for i in range(2, n):\n        if n % i == 0:\n"
    )
    program += "            return False\n{}return True\n\nprint([n for n in range(100) if is_prime(n)])"
    for intro in ("", "What does this program print? Explain it step by step, as you would to a child.\n\n"):
        assert reasons(intro + program.format("    "), intro + program.format("        ")) == [None, None]


def test_prompts_under_different_system_prompts_are_not_alike() -> None:
    long = "please explain the difference between a list and a tuple in python, with an example of each"
    for text in ("tell me a joke", long):
        systems = [None, "You are a pirate.", "You are a poet.", "you are a pirate", "", "You are a pirate.", " "]
        table = run([prompts([text] * 7, systems=systems)])
        same, other = [None, dedupe.EXACT], [None, None]
        assert table["drop_reason"].to_pylist() == [*same[:1], *other, dedupe.NEAR, same[1], dedupe.EXACT, dedupe.EXACT]
    table = run([prompts([long, long + " of them"], systems=["Be brief."] * 2)])
    assert table["drop_reason"].to_pylist() == [None, dedupe.NEAR]
    table = run([prompts(["tell me a joke", ["tell me", "a joke"]], systems=["a", None])])
    assert table["drop_reason"].to_pylist() == [None, None]


def test_turns_are_told_apart() -> None:
    text = "please explain the difference between a list and a tuple in python"
    table = run([prompts([[text], [text], [text, "and now in french, with examples of both kinds of thing"]])])
    assert table["drop_reason"].to_pylist() == [None, dedupe.EXACT, None]
    assert reasons(["a b"], ["a", "b"]) == [None, None]
    half = "please explain the difference between a list"
    assert reasons([text], [half, text.removeprefix(half).strip()]) == [None, None]


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
        "12",
        "13",
    ]
    assert reasons(*short) == [None] * len(short)
    assert reasons(*short, *short) == [None] * len(short) + [dedupe.EXACT] * len(short)
    assert reasons("", "  \n") == [None, dedupe.EXACT]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("what is the sum of the numbers 12 and 13", "what is the sum of the numbers 12 and 14"),
        ("how many people live in the capital of Austria", "how many people live in the capital of Australia"),
        ("translate this into French please: the cat is black", "translate this into French please: the rat is black"),
    ],
)
def test_a_short_question_is_like_nothing_but_itself(left: str, right: str) -> None:
    """Nine words, and by characters more than 0.8 alike or close to it."""
    assert reasons(left, right) == [None, None]


def test_a_full_stop_does_not_change_the_kind_of_shingle() -> None:
    nine = "write a short poem about the old grey sea"
    assert reasons(nine, f"{nine}.", f"{nine} \u200b") == [None, dedupe.NEAR, dedupe.NEAR]


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
    assert len(next(iter(shingles(reading(base), CONFIG.ngram))).decode().split()) == CONFIG.ngram
    assert reasons(base, near, other) == [None, dedupe.NEAR, None]


def test_short_chinese_questions() -> None:
    assert reasons("什么是人工智能", "什么是人工呼吸", "你好", "您好") == [None] * 4
