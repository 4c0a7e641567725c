"""Answers that a source gives: which questions have one, and the ids beside them."""

from typing import Any

import pytest

from stillhouse.schemas import tables
from stillhouse.schemas.config import Config
from stillhouse.stages.ingest import Ingest
from stillhouse.stages.sources import Row
from tests.support.chats import talk
from tests.support.ingesting import num_words


def ingested(rows: list[Any], turns: str = "all", **score: Any) -> list[dict[str, Any]]:
    config = Config.model_validate(
        {
            "run_dir": "run",
            "task": "score",
            "source": {"path": "a.jsonl"},
            "ingest": {"turns": turns},
            "teacher": {"model": "./teacher", "max_model_len": 1000},
            "score": score,
        }
    )
    (shard,) = Ingest(config, num_words)(Row(row) for row in rows)
    assert shard.schema == tables.marked(tables.prompts((), scored=True))
    return shard.to_pylist()


def test_questions_are_kept_as_long_as_they_have_one_answer() -> None:
    rows = [
        {"messages": talk("a", "one", "b", "two")},
        {"messages": talk("a", "one", "b")},
        {"messages": talk("a", "one", "b", " ", "c", "three")},
        {"messages": [*talk("a", "one", "b", "two"), {"role": "assistant", "content": "again"}]},
        {"messages": [*talk("a", "one"), {"role": "tool", "content": "x"}, *talk("b", "two")]},
        {"messages": talk("a")},
        {"messages": [{"role": "user", "content": "a"}, *talk("b", "one")]},
    ]
    found = ingested(rows)
    assert [(row["user_turns"], row["answers"]) for row in found] == [
        (["a", "b"], ["one", "two"]),
        (["a"], ["one"]),
        (["a"], ["one"]),
        (["a"], ["one"]),
        (None, None),
        (None, None),
        (None, None),
    ]
    assert [row["drop_reason"] for row in found] == [None] * 4 + ["unanswered"] * 3


def test_the_first_exchange_alone() -> None:
    (row,) = ingested([{"messages": talk("a", "one", "b", "two")}], turns="first")
    assert (row["user_turns"], row["answers"]) == (["a"], ["one"])


def test_rows_with_one_prompt_and_several_answers_are_several_rows() -> None:
    rows = [{"id": "x", "messages": talk("a", answer)} for answer in ("one", "two", "one")]
    first, second, third = ingested(rows)
    assert first["prompt_id"] == "x"
    assert second["prompt_id"].startswith("x-")
    assert third["drop_reason"] == "duplicate_id"
    made = ingested([{"messages": talk("a", answer)} for answer in ("one", "two")])
    assert made[0]["prompt_id"] != made[1]["prompt_id"]
    assert "-" not in made[1]["prompt_id"]


def test_given_ids_and_labels() -> None:
    ids, labels = [1, 2, 3, 4, 5, 6, 7], [-100, 2, 3, -100, 5, 6, -100]
    row = {"messages": talk("a", "one", "b", "two"), "input_ids": ids, "labels": labels}
    (found,) = ingested([row], ids="source")
    assert (found["given_ids"], found["given_labels"]) == (ids[:6], labels[:6])
    (found,) = ingested([row], turns="first", ids="source")
    assert (found["given_ids"], found["given_labels"]) == (ids[:3], labels[:3])
    masked = {**row, "labels": None, "assistant_masks": [0, 1, 1, 0, 1, 1, 0]}
    (found,) = ingested([masked], ids="source")
    assert (found["given_ids"], found["given_labels"]) == (ids[:6], labels[:6])


@pytest.mark.parametrize("turns", ["first", "all"])
def test_whose_labels_are_whose_is_known_or_the_row_is_refused(turns: str) -> None:
    ids, one, two = [1, 2, 3, 4, 5], [-100, 2, -100, -100, -100], [-100, 2, -100, 4, -100]
    row = {"messages": talk("a", "one", "b", "two"), "input_ids": ids}
    again = {"role": "assistant", "content": "again"}
    for messages, labels, expected in (
        (row["messages"], two, [1, 2] if turns == "first" else [1, 2, 3, 4]),
        (row["messages"], [-100, -100, -100, 4, 5], None),  # only the last turn is supervised
        (talk("a", "one"), one, [1, 2]),
        (talk("a", "one"), two, None),  # a hole
        (talk("a", "one", "b", " "), two, [1, 2]),
        ([*talk("a", "one", "b", "two"), again], [-100, 2, -100, 4, -100], None),
        ([*talk("a", "one", "b", "two"), again], one, None),
        ([*talk("a", "one", "b", "two"), again], [-100, 2, -100, 4, -100, 6], [1, 2]),
    ):
        given = row | {"messages": messages, "labels": labels, "input_ids": [*ids, 6][: len(labels)]}
        (found,) = ingested([given], turns=turns, ids="source")
        assert found["given_ids"] == expected, labels
        assert found["drop_reason"] == (None if expected else "malformed_ids")


def test_a_mask_is_of_zeros_and_ones() -> None:
    row = {"messages": talk("a", "one"), "input_ids": [1, 2, 3]}
    masks: list[list[float]] = [[0, 1, 1], [0.0, 1.0, 1.0], [False, True, True]]
    for mask in masks:
        assert ingested([row | {"loss_mask": mask}], ids="source")[0]["given_labels"] == [-100, 2, 3]
    for last in (float("nan"), 2, None, "1", [1]):
        assert ingested([row | {"loss_mask": [0, 1, last]}], ids="source")[0]["drop_reason"] == "malformed_ids"


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": None},
        {"labels": None},
        {"labels": [-100, 2]},
        {"labels": [-100, 2, 4]},  # another id
        {"labels": [-100, -100, -100]},
        {"labels": [1, 2, 3]},  # nothing predicts the first
        {"labels": [-100, 2, -100], "messages": talk("a", "one", "b", "two")},  # one run, two answers
        {"input_ids": [1, -2, 3], "labels": [-100, -2, 3]},
        {"input_ids": [1, 2.5, 3]},
        {"input_ids": [1, 2**40, 3]},
        {"input_ids": "1 2 3"},
    ],
)
def test_ids_that_are_not_those_of_the_answers(change: dict[str, Any]) -> None:
    row = {"messages": talk("a", "one"), "input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
    assert ingested([row], ids="source")[0]["drop_reason"] is None
    assert ingested([row | change], ids="source")[0]["drop_reason"] == "malformed_ids"


def test_more_ids_are_asked_about_in_lists_or_flat() -> None:
    ids, labels = [1, 2, 3, 4, 5], [-100, 2, 3, -100, 5]
    row = {"messages": talk("a", "one", "b", "two"), "input_ids": ids, "labels": labels}
    for asked in ([[7, 8], [9, 10], [11, 12]], [7, 8, 9, 10, 11, 12]):
        (found,) = ingested([row | {"mine": asked}], ids="source", asked_ids="mine")
        assert found["asked_ids"] == [7, 8, 9, 10, 11, 12]
        (found,) = ingested([row | {"mine": asked}], turns="first", ids="source", asked_ids="mine")
        assert found["asked_ids"] == [7, 8, 9, 10]
    for wrong in ([[7, 8], [9, 10]], [[7], [8, 9], [10]], [7, 8], [], None, [[-1], [2], [3]], "1 2 3"):
        assert ingested([row | {"mine": wrong}], ids="source", asked_ids="mine")[0]["drop_reason"] == "malformed_ids"


def test_a_students_own_log_probabilities_are_numbers_one_for_each_token() -> None:
    row = {"messages": talk("a", "one", "b", "two"), "input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, 3, -100, 5]}
    for turns, kept in (("all", [-0.5, 0.0, -2.0]), ("first", [-0.5, 0.0])):
        (found,) = ingested([row | {"own": [-0.5, 0, -2.0]}], turns=turns, ids="source", student_logprobs="own")
        assert found["student_logprobs"] == kept
    beyond = [[-1.0, -1.0, lowest] for lowest in (-(10**400), -1e300, float("-inf"), 10**400)]
    for wrong in (
        [-1.0],
        [-1.0] * 4,
        [-1.0, -1.0, 0.5],
        [-1.0, float("nan"), -1.0],
        [-1.0, "x", -1.0],
        None,
        3,
        *beyond,
    ):
        (found,) = ingested([row | {"own": wrong}], ids="source", student_logprobs="own")
        assert found["drop_reason"] == "malformed_ids"
