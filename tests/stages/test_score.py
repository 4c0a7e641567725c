"""score with a teacher of the tests': which ids are read, which of them are learned, and what cannot be scored.

The oracle for ids is transformers' own rendering of the whole conversation.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas import tables, targets
from stillhouse.schemas.config import Config
from stillhouse.stages.score import Score
from stillhouse.stages.teacher import Answer, ControlTextError, TeacherError, TemplateError
from stillhouse.stages.teacher.chat import Chat
from tests.support.chat_families import FAMILIES, Family
from tests.support.chats import chat_of, talk, unguarded
from tests.support.scoring import answered, make_raw_score_config, with_ids


class Reading:
    """Gives each supervised token itself, with the probability 1/2, and tokens that follow it by 10,000s."""

    vocab_size = 100_000
    broken = False
    last_token_at = 0.0

    def __init__(self, refuses: bool = False, lowest: float = 0.5) -> None:
        self.refuses, self.lowest = refuses, lowest
        self.read: list[tuple[list[int], list[bool]]] = []
        self.seeds: list[int] = []

    async def score(self, token_ids: Any, supervised: Any, request_id: str, seed: int, asked_ids: Any = None) -> Answer:
        await asyncio.sleep(0)
        self.read.append((token_ids.tolist(), supervised.tolist()))
        self.seeds.append(seed)
        if self.refuses:
            raise TeacherError("no")
        written = token_ids[supervised]
        ids_SK = written[:, None] + 10_000 * np.arange(4, dtype=np.int32)
        logprobs_SK = np.log(np.tile(np.array([self.lowest, 0.2, 0.1, 0.1], np.float32), (len(written), 1)))
        asked = None if asked_ids is None else -1.0 - asked_ids.astype(np.float32) / 1000
        return Answer(written, ids_SK, logprobs_SK, logprobs_SK[:, 0].copy(), "given", asked_logprobs=asked)

    async def answer(self, *_: Any) -> Answer:
        raise AssertionError("it is to read, not to write")

    def shutdown(self) -> None:
        pass


@pytest.fixture
def raw(tmp_path: Path, weights: Path) -> dict[str, Any]:
    return make_raw_score_config(tmp_path)


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> Chat:
    return Chat(tokenizer)


def run(raw: dict[str, Any], chat: Chat, teacher: Reading, table: pa.Table) -> list[dict[str, Any]]:
    result = asyncio.run(Score(Config.model_validate(raw), chat, teacher)(table))
    assert result.schema.equals(tables.marked(tables.completions(["profanity"])))
    return result.to_pylist()


def of_template(chat: Chat, *texts: str) -> tuple[list[int], list[int]]:
    """The conversation's ids by transformers, up to the end of the last turn, and its labels: found turn by turn."""
    messages, ids, labels = talk(*texts), list[int](), list[int]()
    for end in range(2, len(texts) + 1, 2):
        asked = chat.tokenizer.apply_chat_template(messages[: end - 1], add_generation_prompt=True)["input_ids"]
        told = chat.tokenizer.apply_chat_template(messages[:end])["input_ids"]
        told = told[: len(told) - 1]  # the line break after the last end of turn
        labels += [tables.IGNORE_INDEX] * (len(asked) - len(ids)) + told[len(asked) :]
        ids = told
    return ids, labels


def test_ids_and_labels_are_those_of_the_template(raw: dict[str, Any], chat: Chat) -> None:
    teacher, texts = Reading(), ("Hello", "Hi there.", "And <|im_end|> now?", "It is\n\n  noon. 日本")
    (row,) = run(raw, chat, teacher, answered([["Hello", "And now?"]], [[texts[1], texts[3]]]))
    ids, labels = of_template(chat, "Hello", texts[1], "And now?", texts[3])
    assert row["input_ids"] == ids
    assert row["labels"] == labels
    assert teacher.read == [(ids, [label != -100 for label in labels])]
    assert row["finish_reasons"] == ["given", "given"]
    assert row["messages"] == [
        {**message, "reasoning_content": None} for message in talk("Hello", texts[1], "And now?", texts[3])
    ]
    assert row["rendering_differs"] is None
    assert row["sample_id"] == "p0/0"


def test_each_turn_gets_its_own_targets(raw: dict[str, Any], chat: Chat) -> None:
    table = answered([["a", "b", "c"]], [["one two", "three", "four five six"]])
    result = asyncio.run(Score(Config.model_validate(raw), chat, Reading())(table))
    (row,), (decoded,) = result.to_pylist(), targets.decode(result)
    written = [label for label in row["labels"] if label != -100]
    assert decoded.ids[:, 0].tolist() == written
    assert len(written) == row["num_target_tokens"] == len(row["token_logprobs"])


def test_the_last_answer_alone_is_learned_where_that_is_asked_for(raw: dict[str, Any], chat: Chat) -> None:
    raw["score"]["answers"] = "last"
    (row,) = run(raw, chat, Reading(), answered([["a", "b"]], [["one", "two"]]))
    ids, labels = of_template(chat, "a", "one", "b", "two")
    first_end = max(place for place, label in enumerate(of_template(chat, "a", "one")[1]) if label != -100)
    assert row["input_ids"] == ids
    assert row["labels"] == [-100] * (first_end + 1) + labels[first_end + 1 :]
    assert row["finish_reasons"] == ["given", "given"]
    assert [message["content"] for message in row["messages"]] == ["a", "one", "b", "two"]


def test_the_users_words_and_the_answers_never_become_control_tokens(raw: dict[str, Any], chat: Chat) -> None:
    table = answered([["a <|im_end|> b"], ["c"]], [["fine"], ["<|im_start|>user"]])
    asked, told = run(raw, chat, Reading(), table)
    assert asked["drop_reason"] is None
    assert asked["input_ids"].count(chat.control_ids["<|im_end|>"]) == 3  # system, user, assistant
    assert told["drop_reason"] == "control_tokens"
    assert told["input_ids"] == []


@pytest.mark.parametrize("cuts", [False, True])
def test_what_does_not_fit_is_left_out_or_cut(raw: dict[str, Any], chat: Chat, cuts: bool) -> None:
    raw["score"]["cut_long"] = cuts
    long = "word " * 600
    table = answered([["a", "b"], ["a"], [long]], [["one", long], [long], ["one"]])
    rows = run(raw, chat, Reading(), table)
    ids, labels = of_template(chat, "a", "one", "b", long)
    if cuts:
        assert rows[0]["input_ids"] == ids[:512]
        assert rows[0]["labels"] == labels[:512]
        assert rows[0]["finish_reasons"] == ["given", "length"]
        assert rows[1]["num_input_tokens"] == 512
    else:
        whole = of_template(chat, "a", "one")[0]
        assert rows[0]["input_ids"] == whole
        assert rows[0]["finish_reasons"] == ["given"]
        assert rows[1]["drop_reason"] == "too_long"
    assert rows[2]["drop_reason"] == "too_long"


def test_with_the_last_answer_alone_a_conversation_that_does_not_fit_is_dropped(
    raw: dict[str, Any], chat: Chat
) -> None:
    raw["score"]["answers"] = "last"
    (row,) = run(raw, chat, Reading(), answered([["a", "b"]], [["one", "word " * 600]]))
    assert row["drop_reason"] == "too_long"


def test_given_ids_are_read_as_they_are(raw: dict[str, Any], chat: Chat) -> None:
    raw["score"] |= {"ids": "source", "tokenizer_sha256": "teacher"}
    end = chat.control_ids["<|im_end|>"]
    ids = [5, 6, 7, 800, end, 9, 10, 901, 902]
    labels = [-100, -100, -100, 800, end, -100, -100, 901, 902]
    table = with_ids(answered([["a", "b"]], [["one", "two"]]), [ids], [labels])
    teacher = Reading()
    (row,) = run(raw, chat, teacher, table)
    assert row["input_ids"] == ids
    assert row["labels"] == labels
    assert row["finish_reasons"] == ["given", "length"]  # no end of turn
    assert [message["content"] for message in row["messages"]] == [
        "a", chat.tokenizer.decode([800]), "b", chat.tokenizer.decode([901, 902])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "cuts", "kept"), [("all", 0, [0, 1, 2, 3]), ("last", 0, [2, 3]), ("all", 1, [0, 1, 2])]
)
def test_more_ids_are_asked_about_at_the_tokens_that_are_learned(
    raw: dict[str, Any], chat: Chat, answers: str, cuts: int, kept: list[int]
) -> None:
    raw["score"] |= {"ids": "source", "tokenizer_sha256": "teacher", "asked_ids": "student", "answers": answers}
    raw["score"]["student_logprobs"] = "own"
    raw["score"]["cut_long"] = True
    raw["teacher"]["max_model_len"] = 8
    raw["ingest"]["max_prompt_tokens"] = None
    ids, labels = (
        [6] * cuts + [5, 6, 7, 800, 2, 9, 901, 902],
        [-100] * cuts + [-100, -100, -100, 800, 2, -100, 901, 902],
    )
    table = with_ids(answered([["a", "b"]], [["one", "two"]]), [ids], [labels])
    asked = [[10, 11, 12], [20, 21, 22], [30, 31, 32], [40, 41, 42]]
    place = table.schema.get_field_index("asked_ids")
    table = table.set_column(place, "asked_ids", pa.array([np.ravel(asked).tolist()], pa.list_(pa.int32())))
    own = [-0.5, -1.5, -2.5, -3.5]
    place = table.schema.get_field_index("student_logprobs")
    table = table.set_column(place, "student_logprobs", pa.array([own], pa.list_(pa.float32())))
    result = asyncio.run(Score(Config.model_validate(raw), chat, Reading())(table))
    assert result.schema.equals(tables.marked(tables.completions(["profanity"], asked=True, student=True)))
    (row,) = result.to_pylist()
    wanted = [number for place in kept for number in asked[place]]
    assert row["asked_ids"] == wanted
    assert row["asked_logprobs"] == pytest.approx([-1 - number / 1000 for number in wanted])
    assert row["student_logprobs"] == [own[place] for place in kept]
    assert row["num_target_tokens"] == len(kept)


def test_a_conversation_in_which_a_student_said_nothing_is_dropped(raw: dict[str, Any], chat: Chat) -> None:
    """What `generate` makes of an answer that is a foreign end of turn alone: no label, and an empty message."""
    raw["score"] |= {"ids": "source", "tokenizer_sha256": "teacher"}
    table = with_ids(answered([["a", "b"]], [["", "two"]]), [[5, 6, 7, 901]], [[-100, -100, -100, 901]])
    (row,) = run(raw, chat, Reading(), table)
    assert row["drop_reason"] == "empty_answer"
    assert row["messages"] == []


def test_ids_that_the_teacher_does_not_know_are_refused(raw: dict[str, Any], chat: Chat) -> None:
    raw["score"] |= {"ids": "source", "tokenizer_sha256": "teacher"}
    table = with_ids(answered([["a"]], [["one"]]), [[5, 100_000]], [[-100, 100_000]])
    assert run(raw, chat, Reading(), table)[0]["drop_reason"] == "unknown_ids"


@pytest.mark.parametrize(
    ("teacher", "reason"), [(Reading(refuses=True), "teacher_failed"), (Reading(lowest=2.0), "invalid_logprobs")]
)
def test_what_the_engine_cannot_tell_has_a_reason(
    raw: dict[str, Any], chat: Chat, teacher: Reading, reason: str
) -> None:
    (row,) = run(raw, chat, teacher, answered([["a"]], [["one"]]))
    assert row["drop_reason"] == reason
    assert row["messages"] == []


def test_system_prompts_are_read(raw: dict[str, Any], chat: Chat) -> None:
    raw["generate"] = {"system_prompts": ["Be brief."]}
    (row,) = run(raw, chat, Reading(), answered([["a"]], [["one"]]))
    assert row["messages"][0]["content"] == "Be brief."
    assert chat.tokenizer.decode(row["input_ids"]).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_seeds_depend_on_the_sample_alone(raw: dict[str, Any], chat: Chat) -> None:
    first, second = Reading(), Reading()
    run(raw, chat, first, answered([["a"], ["b"]], [["one"], ["two"]]))
    run(raw, chat, second, answered([["a"]], [["another"]]))
    assert first.seeds[0] != first.seeds[1]
    assert second.seeds == first.seeds[:1]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("text", ["Sunny.", "Two\n\nlines, `code` and [x]", "naïve 日本 🤖"])
def test_answers_are_what_the_families_templates_write(family: Family, text: str) -> None:
    """Prompt and answer together are the template's ids, up to the end of turn."""
    messages = talk("Why?", text)
    whole = unguarded(family, messages, generation=False)
    prompt = unguarded(family, messages[:1])
    ends = {family.tokenizer.convert_tokens_to_ids(end) for end in family.end}
    end = next(place for place in range(len(prompt), len(whole)) if whole[place] in ends)
    chat = chat_of(family)
    assert [*chat.prompt_ids(messages[:1]).tolist(), *chat.answer_ids(text).tolist()] == whole[: end + 1]
    for control in family.control:
        with pytest.raises(ControlTextError):
            chat.answer_ids(f"{text} {control}")


def test_an_answer_that_begins_with_white_space_keeps_the_prompt_as_it_is(chat: Chat) -> None:
    """Where the first characters and the opening would make one token, the prompt's tokens count: a student reads them
    before it writes."""
    prompt = chat.prompt_ids([{"role": "user", "content": "x"}])
    answer = chat.answer_ids("\n\nYes.")
    both = chat.tokenizer.decode([*prompt, *answer])
    assert both.endswith("<|im_start|>assistant\n\n\nYes.<|im_end|>")


def test_a_template_that_ends_answers_with_text_is_refused(chat: Chat) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(TemplateError, match="with text"):
        Chat(chat.tokenizer, template).answer_ids("yes")
