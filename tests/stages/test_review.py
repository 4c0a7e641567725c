"""Review: every reason and which one wins, and duplicates over shards in any order."""

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas import tables
from stillhouse.schemas.config import ConfigError, ProfanityCheckConfig, ReviewConfig
from stillhouse.stages.review import ASSIGNMENT, SKETCH, Review, Sketch, assign
from tests.support.answers import tokens

PROFANITY = ProfanityCheckConfig(name="profanity-check", thresholds={"profanity": 0.9})
RUDE = "fuck you, you stupid bitch"
LOOP = [7, 8, 9] * 40


def conversation(*answers: str | None) -> list[dict[str, str | None]]:
    messages: list[dict[str, str | None]] = []
    for answer in answers:
        messages += [{"role": "user", "content": RUDE}, {"role": "assistant", "content": answer}]
    return messages


def completions(rows: Sequence[dict[str, Any]], labels: Sequence[str] = ("profanity",)) -> pa.Table:
    """Rows with the given columns, and blameless values in those left out."""
    schema = tables.completions(labels)
    values = []
    for i, row in enumerate(rows):
        answer = {"messages": conversation(f"answer {i}"), "labels": tokens(range(100)), "finish_reasons": ["stop"]}
        values.append({"sample_id": f"p{i}/0", "prompt_scores": dict.fromkeys(labels, 0.1)} | answer | row)
    return pa.table([pa.array([row.get(f.name) for row in values], f.type) for f in schema], schema=schema)


def review(rows: Sequence[dict[str, Any]], **config: Any) -> pa.Table:
    table, settings = completions(rows), ReviewConfig(**config)
    [assignment] = assign([Sketch(settings)(table)], settings)
    return Review(settings, [PROFANITY])(table, assignment)


FAULTS: dict[str, dict[str, Any]] = {  # strongest first; each alone makes its reason, all of them may be in one row
    "empty_answer": {"messages": [{"role": "assistant", "content": " \n\u3000"}]},
    "degenerate_answer": {"labels": tokens(LOOP)},
    "unsafe_answer": {"messages": [{"role": "assistant", "content": RUDE}]},
    "truncated_answer": {"finish_reasons": ["stop", "length"]},
}


def test_each_reason_alone_and_the_contract() -> None:
    rows = [*FAULTS.values(), {}]
    table = completions(rows)
    result = review(rows, drop_truncated=True)
    assert result.schema == tables.marked(tables.reviewed(("profanity",)))
    assert result.select(table.column_names) == table
    assert result["drop_reason"].to_pylist() == [*FAULTS, None]
    assert result["loop_tokens"].to_pylist() == [0, 120, 0, 0, 0]
    scores = [row["profanity"] for row in result["response_scores"].to_pylist()]
    assert scores[2] > 0.9 > 0.5 > max(scores[0], scores[1], scores[3], scores[4]), "user turns are not scored here"


@pytest.mark.parametrize(("stronger", "weaker"), list(combinations([*FAULTS, "duplicate_answer"], 2)))
def test_the_stronger_reason_wins(stronger: str, weaker: str) -> None:
    # Two messages, because an answer of one turn cannot be both blank and rude.
    row: dict[str, Any] = {"messages": []}
    for reason in (stronger, weaker):
        fault = FAULTS.get(reason, {})
        row |= fault | {"messages": row["messages"] + fault.get("messages", [])}
    row["messages"] = row["messages"] or conversation("fine")
    table, config = completions([row]), ReviewConfig(drop_truncated=True)
    duplicate = "duplicate_answer" if weaker == "duplicate_answer" else None
    assignment = pa.table([["p0/0"], pa.array([duplicate], pa.string())], schema=ASSIGNMENT)
    assert Review(config, [PROFANITY])(table, assignment)["drop_reason"].to_pylist() == [stronger]


def test_any_turn_of_several_is_enough() -> None:
    good = list(range(100))
    rows: list[dict[str, Any]] = [
        {"messages": conversation("fine", " ")},
        {"messages": conversation("fine", None)},
        {"messages": conversation("good", "day"), "labels": tokens(good, LOOP, good)},
        {"messages": conversation("good", RUDE, "evening")},
        {"messages": conversation("good", "night"), "finish_reasons": ["length", "stop"]},
        {"messages": [{"role": "user", "content": "hello"}]},
    ]
    empty = "empty_answer"
    reasons = [empty, empty, "degenerate_answer", "unsafe_answer", "truncated_answer", empty]
    assert review(rows, drop_truncated=True)["drop_reason"].to_pylist() == reasons


def test_truncation_is_only_marked_by_default() -> None:
    assert review([FAULTS["truncated_answer"]])["drop_reason"].to_pylist() == [None]


def test_thresholds_of_review_come_before_those_of_screen() -> None:
    rude = [FAULTS["unsafe_answer"]]
    assert review(rude)["drop_reason"].to_pylist() == ["unsafe_answer"]
    assert review(rude, thresholds={})["drop_reason"].to_pylist() == [None]
    assert review([{}], thresholds={"profanity": 0.0})["drop_reason"].to_pylist() == ["unsafe_answer"]
    with pytest.raises(ConfigError, match="review: `thresholds` names toxicity; the labels are profanity"):
        review(rude, thresholds={"toxicity": 0.5})


def test_without_classifiers_there_is_no_scores_column() -> None:
    table, config = completions([{}, FAULTS["unsafe_answer"]], labels=()), ReviewConfig()
    [assignment] = assign([Sketch(config)(table)], config)
    result = Review(config, [])(table, assignment)
    assert result.schema == tables.marked(tables.reviewed(()))
    assert result["drop_reason"].to_pylist() == [None, None]


@pytest.mark.parametrize("classifiers", [[], [PROFANITY]])
def test_no_rows(classifiers: list[Any]) -> None:
    labels, config = ("profanity",) if classifiers else (), ReviewConfig()
    for table in (completions([], labels), tables.completions(labels).empty_table()):
        sketch = Sketch(config)(table)
        assert sketch.schema == SKETCH
        [assignment] = assign([sketch], config)
        assert assignment.schema == ASSIGNMENT
        result = Review(config, classifiers)(table, assignment)
        assert result.num_rows == 0
        assert result.schema == tables.marked(tables.reviewed(labels))
    assert list(assign([], config)) == []


def test_slices_and_chunks_are_reviewed_as_the_whole() -> None:
    rows = [{}, *FAULTS.values(), {"messages": conversation("a", "b"), "labels": tokens([1, 2], LOOP)}]
    table, config = completions(rows), ReviewConfig(drop_truncated=True)
    stage, sketch = Review(config, [PROFANITY]), Sketch(config)
    [assignment] = assign([sketch(table)], config)
    whole = stage(table, assignment)
    assert stage(table.slice(2, 3), assignment.slice(2, 3)) == whole.slice(2, 3)
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert stage(chunked, assignment) == whole
    assert sketch(table.slice(2, 3)) == sketch(table).slice(2, 3)


def test_another_shards_assignment_is_refused() -> None:
    config = ReviewConfig()
    table = completions([{}, {}, {}])
    [assignment] = assign([Sketch(config)(table)], config)
    for wrong in (assignment.slice(0, 2), assignment.take([1, 0, 2])):
        with pytest.raises(ValueError, match="not for this shard of 3 rows; sketch and assign again"):
            Review(config, [])(table, wrong)


def test_a_loop_counts_from_the_configured_length_on() -> None:
    rows = [{"labels": tokens([1] * n), "messages": conversation(str(n))} for n in (63, 64)]
    result = review(rows)
    assert result["loop_tokens"].to_pylist() == [63, 64]
    assert result["drop_reason"].to_pylist() == [None, "degenerate_answer"]
    assert review(rows, loop_tokens=65)["drop_reason"].to_pylist() == [None, None]
    # 100 tokens, but of only two and a half copies.
    assert review([{"labels": tokens((list(range(40)) * 3)[:100])}])["drop_reason"].to_pylist() == [None]


# Duplicates


def hashes(*answers: list[str]) -> list[bytes | None]:
    table = completions([{"messages": conversation(*turns)} for turns in answers])
    return Sketch(ReviewConfig())(table)["answer_hash"].to_pylist()


LONG = " ".join(f"word{i}" for i in range(30))


def test_long_answers_are_compared_by_what_they_say() -> None:
    first, *same = hashes([f"Straße ﬁnden: {LONG}.\n"], [f" straße\u00a0finden: {LONG}"], [f"STRAßE  Finden {LONG}?"])
    assert same == [first, first]
    assert first == hashlib.blake2b(f"straße finden {LONG}".encode(), digest_size=16).digest()
    code = "def f():\n    for i in range(9):\n        a(i)\n"
    others = [f"{code}    b()", f"{code}        b()", f"{code}        B()", f"{code}        b()²"]
    assert len(set(hashes(*([f"{LONG}\n{other}"] for other in others)))) == 4
    many = [["a b"], ["ab"], ["a", "b"], ["b", "a"], ["a b", "c"], ["a", "b c"]]
    assert len(set(hashes(*([LONG, *turns] for turns in many)))) == 6
    assert hashes([""], ["\n \t"], [LONG, " "], []) == [None] * 4


@pytest.mark.parametrize(
    ("word", "space"), [("yes", " "), ("да", " "), ("예", " "), ("نعم", " "), ("是", ""), ("は", "")]
)
def test_an_answer_is_long_from_thirty_words_on(word: str, space: str) -> None:
    """Of a script without spaces, from thirty characters on. Punctuation does not count, all turns do."""
    for num, is_long in ((1, False), (29, False), (30, True)):
        text = space.join([word] * num)
        assert [value is not None for value in hashes([text], [f"{text}!!! ?"], [f"- {text}"])] == [is_long] * 3
    half = space.join([word] * 15)
    assert [value is not None for value in hashes([half, half], [half])] == [True, False]


def test_short_answers_to_different_questions_are_all_kept() -> None:
    """100 prompts answered Yes or No, and formulas of courtesy."""
    short = ["Yes", "No"] * 50 + ["You're welcome! If you have any other questions, feel free to ask."] * 5
    assert review([{"messages": conversation(answer)} for answer in short])["drop_reason"].null_count == 105
    result = review([{"messages": conversation(answer)} for answer in short], duplicate_words=0)
    assert result["drop_reason"].null_count == 3
    turns = review([{"messages": conversation("Yes", "No")}] * 9)
    assert turns["drop_reason"].null_count == 9


def shards_of(answers: Sequence[str | None], order: Sequence[int], size: int) -> list[pa.Table]:
    digests = [None if a is None else hashlib.blake2b(a.encode(), digest_size=16).digest() for a in answers]
    ids, values = [f"p{i}/0" for i in order], [digests[i] for i in order]
    parts = [slice(start, start + size) for start in range(0, len(order), size)]
    return [pa.table([ids[part], pa.array(values[part], pa.binary(16))], schema=SKETCH) for part in parts]


@pytest.mark.parametrize("max_duplicates", [1, 2, 5])
def test_what_is_kept_depends_on_no_order(max_duplicates: int) -> None:
    rng = np.random.default_rng(0)
    answers = [None if x == 0 else f"answer {x}" for x in np.minimum(rng.geometric(0.15, 300), 20) % 20]
    kept: dict[str, list[str]] = {}
    for i, answer in enumerate(answers):
        kept.setdefault(answer or f"empty {i}", []).append(f"p{i}/0")
    by_digest = {i: hashlib.blake2b(i.encode(), digest_size=16).digest() for ids in kept.values() for i in ids}
    expected = {i for ids in kept.values() for i in sorted(ids, key=by_digest.__getitem__)[:max_duplicates]}
    assert 0 < len(expected) < 300
    config = ReviewConfig(max_duplicates=max_duplicates)
    for size in (7, 64, 300):
        shards = shards_of(answers, rng.permutation(300).tolist(), size)
        assignments = list(assign(iter(shards), config))
        assert [a["sample_id"].to_pylist() for a in assignments] == [s["sample_id"].to_pylist() for s in shards]
        rows = [row for assignment in assignments for row in assignment.to_pylist()]
        assert {row["sample_id"] for row in rows if row["drop_reason"] is None} == expected
        assert {row["drop_reason"] for row in rows} == {None, "duplicate_answer"}


def test_empty_shards_among_others() -> None:
    one = shards_of(["x", "x", None], [0, 1, 2], 3)[0]
    assignments = list(assign([SKETCH.empty_table(), one, SKETCH.empty_table()], ReviewConfig()))
    assert [a.num_rows for a in assignments] == [0, 3, 0]
    assert sorted(assignments[1]["drop_reason"].to_pylist(), key=str) == [None, None, "duplicate_answer"]


def test_duplicates_reach_the_table() -> None:
    result = review(
        [{"messages": conversation(f"Sorry, no. {LONG}")}, {"messages": conversation(f"sorry, no {LONG}")}, {}]
    )
    reasons = result["drop_reason"].to_pylist()
    assert sorted(reasons, key=str) == [None, None, "duplicate_answer"]
    assert reasons[2] is None
