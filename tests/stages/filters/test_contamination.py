"""Items of evaluation sets, planted in texts in ways that people copy, and texts that only look like them."""

from typing import Any

import numpy as np
import pytest

from stillhouse.schemas.config import DecontaminationConfig
from stillhouse.stages.filters.contamination import Contamination

CLIPS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May?"
)
ITEMS = [
    ("gsm8k/0", CLIPS),
    ("mmlu/3", "Which of the following is an example of a renewable resource?"),
    ("humaneval/1", 'def has_close_elements(numbers: List[float], threshold: float) -> bool:\n    """Check if in given list of numbers, are any two numbers closer to each other than given threshold."""'),
    ("mt/0", "Compose an engaging travel blog post about a recent trip to Hawaii, highlighting cultural experiences."),
    ("short/0", "What is the capital of France?"),
    ("short/1", "Paris"),
    ("zh/0", "小明有十五个苹果，他给了小红四个，又买了八个，请问小明现在一共有多少个苹果？"),
    ("ja/0", "太郎は本を十二冊持っていました。花子に三冊あげて、また五冊買いました。今は何冊持っていますか。"),
    ("th/0", "สมชายมีแอปเปิลสิบห้าผล เขาให้สมหญิงสี่ผล แล้วซื้อเพิ่มอีกแปดผล ตอนนี้สมชายมีแอปเปิลทั้งหมดกี่ผล"),
    ("hi/0", "राम के पास पंद्रह सेब हैं, उसने सीता को चार सेब दिए और फिर आठ सेब और खरीदे। अब राम के पास कुल कितने सेब हैं?"),
    ("ko/0", "철수는 사과 열다섯 개를 가지고 있었는데 영희에게 네 개를 주고 다시 여덟 개를 샀습니다. 지금 철수는 사과를 모두 몇 개 가지고 있습니까?"),
    ("ar/0", "لدى أحمد خمس عشرة تفاحة أعطى منها أربع تفاحات إلى سارة ثم اشترى ثماني تفاحات أخرى، كم تفاحة لدى أحمد الآن؟"),
    ("ru/0", "У Маши было пятнадцать яблок, она отдала Пете четыре яблока и купила ещё восемь. Сколько яблок теперь у Маши?"),
]  # fmt: skip
TEXTS = dict(ITEMS)


def build(items: list[tuple[str, str]] = ITEMS, **settings: Any) -> Contamination:
    evaluations = [{"name": "x", "path": "/x", "columns": ["question"]}]
    return Contamination(DecontaminationConfig.model_validate({"evaluations": evaluations} | settings), items)


@pytest.fixture(scope="module")
def filter_() -> Contamination:
    return build()


def is_dropped(filter_: Contamination, text: str) -> bool:
    return bool(filter_.score([text])[0, 0] >= np.float32(filter_.thresholds["contamination"]))


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "short/1"])
def test_an_item_is_found_however_it_is_dressed(filter_: Contamination, name: str) -> None:
    text = TEXTS[name]
    dressed = {
        "exact": text,
        "case": text.upper(),
        "wrapped": f"Please solve this one for me, step by step.\n\n{text}\n\nAnswer with a number only, thanks a lot.",
        "punctuation": text.replace(",", " –").replace("?", "!!").replace("。", "！").replace("，", "、"),
        "emphasis": f"> **{text}**",
    }
    if name != "mmlu/3" and not name.startswith("short"):
        dressed["spaces"] = text.replace(" ", "\n ")
    for how, said in dressed.items():
        share, item = filter_.find(said)
        assert item == name, how
        assert share >= 0.9, how


def test_a_paraphrase_in_part_is_found(filter_: Contamination) -> None:
    words = CLIPS.split()
    words[9], words[25] = "in spring,", "in sum"
    for text in (
        " ".join(words),
        CLIPS.partition("How many")[0] + "What is the total?",
        TEXTS["zh/0"].replace("请问小明现在一共", "那么他"),
        "I sorted it.\n" + TEXTS["humaneval/1"].partition("\n")[2],
    ):
        assert is_dropped(filter_, text), text
    assert filter_.find(" ".join(words))[0] < 1.0


@pytest.mark.parametrize(
    "text",
    [
        "Which of the following is an example of a chemical reaction, and why?",
        "Natalia sold clips to her friends.",
        "How many clips did you sell altogether?",
        "What is the capital of France and what is the capital of Spain?",
        "What is the capital of Spain?",
        "I love Paris",
        "Paris",
        "Compose an engaging travel blog post about my week in Norway, with tips on food.",
        "from typing import List\n\ndef has_duplicates(numbers: List[float]) -> bool:\n    ...",
        "小明有三个梨，请问小明现在一共有多少个梨？",
        "太郎は本を読んでいました。今は何をしていますか。",
        "สมชายไปตลาดกับสมหญิง",
        "राम के पास एक गाय है।",
        "",
        "   \n",
        "?",
    ],
)
def test_a_near_miss_stays(filter_: Contamination, text: str) -> None:
    assert not is_dropped(filter_, text)


def test_what_many_items_share_is_a_phrase() -> None:
    phrase = "Answer the following multiple choice question with one letter and nothing else please."
    items = [(f"mmlu/{i}", f"{phrase} What do experts know about topic{i}?") for i in range(11)]
    other = f"{phrase} Which of these dogs is the largest?"
    assert is_dropped(build(items, max_items=11), other)
    shared = build(items, max_items=10)
    assert not is_dropped(shared, other)
    assert shared.find(items[4][1]) == (1.0, "mmlu/4"), "the item itself is found as a whole"


def test_the_threshold_is_a_share_of_the_item() -> None:
    half = " ".join(f"word{i}" for i in range(40))
    text = " ".join(f"word{i}" for i in range(20)) + " and nothing more of it"
    share, _ = build([("a/0", half)]).find(text)
    assert share == pytest.approx(0.5)
    assert is_dropped(build([("a/0", half)], threshold=0.5), text)
    assert not is_dropped(build([("a/0", half)], threshold=0.51), text)


def test_runs_are_those_that_a_plain_count_finds() -> None:
    """Against sets of tuples: the share of an item's words in runs of 8 that a text has."""
    rng = np.random.default_rng(0)
    words = [f"entry{i:02}" for i in range(60)]
    for _ in range(40):
        item = [words[i] for i in rng.integers(0, 60, 30)]
        text = [words[i] for i in rng.integers(0, 60, 40)]
        for _ in range(int(rng.integers(0, 4))):
            start, length = int(rng.integers(0, 15)), int(rng.integers(5, 15))
            text[start : start + length] = item[start : start + length]
        runs = {tuple(text[i : i + 8]) for i in range(len(text) - 7)}
        covered = {k for i in range(23) if tuple(item[i : i + 8]) in runs for k in range(i, i + 8)}
        expected = len(covered) / 30 if len(covered) >= 12 else 0.0
        assert build([("a/0", " ".join(item))]).find(" ".join(text))[0] == pytest.approx(expected)


def test_memory_and_what_is_too_short() -> None:
    index = build()
    assert index.num_bytes == 20 * index.num_runs
    assert index.num_too_short == 1
    assert build([("a/0", "Paris")]).find("Paris") == (0.0, None)
    assert build([]).score(["a", "b"]).tolist() == [[0.0], [0.0]]
