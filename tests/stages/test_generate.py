"""generate with the tests' own teacher: which id, label and distribution belong together."""

import asyncio
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas import tables, targets
from stillhouse.schemas.config import Config
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import Answer, TeacherError, TemplateError
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.conversing import sample_seed
from stillhouse.stages.teacher.watchdog import Watchdog
from tests.support.prompts import prompts


class Scripted:
    """Answers token 1000 + n at its n-th token, with recognisable distributions; ends turns as told."""

    vocab_size = 100_000
    broken = False
    last_token_at = 0.0

    def __init__(
        self, lengths: list[int], stops: bool = True, fails_at: int | None = None, starts: list[list[int]] | None = None
    ) -> None:
        self.lengths, self.stops, self.fails_at = lengths, stops, fails_at
        self.starts = starts or [[]] * len(lengths)
        self.prompts: list[np.ndarray] = []
        self.seeds: list[int] = []

    async def answer(self, prompt_ids: Any, request_id: str, seed: int, max_tokens: int) -> Answer:
        turn = int(request_id.rpartition("/")[2])
        self.prompts.append(prompt_ids)
        self.seeds.append(seed)
        if self.fails_at == turn:
            raise TeacherError("no")
        await asyncio.sleep(0)
        S, K = self.lengths[turn], 4
        token_ids = np.arange(1000, 1000 + S, dtype=np.int32) + 100 * turn
        if self.stops:
            token_ids[-1] = 2
        token_ids[: len(self.starts[turn])] = self.starts[turn]
        ids_SK = token_ids[:, None] + 10_000 * np.arange(K, dtype=np.int32)
        logprobs_SK = np.log(np.tile(np.array([0.5, 0.2, 0.1, 0.1], dtype=np.float32), (S, 1)))
        return Answer(token_ids, ids_SK, logprobs_SK, logprobs_SK[:, 0], "stop" if self.stops else "length")

    def shutdown(self) -> None:
        pass


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> Chat:
    return Chat(tokenizer)


def run(raw: dict[str, Any], chat: Chat, teacher: Any, turns: list[list[str]]) -> pa.Table:
    return asyncio.run(Generate(Config.model_validate(raw), chat, teacher)(prompts(turns)))


def test_every_row_of_targets_belongs_to_its_token(raw_config: dict[str, Any], chat: Chat) -> None:
    teacher = Scripted([3, 5])
    table = run(raw_config, chat, teacher, [["Hello", "And now?"], ["Hi"]])
    assert table.schema.equals(tables.marked(tables.completions(["profanity"])))
    for row, decoded, turns in zip(table.to_pylist(), targets.decode(table), (2, 1), strict=True):
        assert row["drop_reason"] is None
        labels = np.array(row["labels"])
        input_ids = np.array(row["input_ids"])
        supervised = labels != tables.IGNORE_INDEX
        assert (labels[supervised] == input_ids[supervised]).all()
        assert supervised.sum() == 3 + 5 * (turns == 2) == row["num_target_tokens"] == len(row["token_logprobs"])
        assert len(input_ids) == row["num_input_tokens"]
        # Own-token: the first target of row s is supervised token s (the scripted teacher always writes its first).
        assert (decoded.ids[:, 0] == input_ids[supervised]).all()
        assert np.allclose(np.exp(decoded.logprobs.astype(float)), [0.5, 0.2, 0.1, 0.1], atol=1e-3)
        assert np.allclose(np.exp(decoded.tail.astype(float)), 0.1, atol=1e-3)
        assert row["finish_reasons"] == ["stop"] * turns
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * turns


def test_conversation_is_what_the_template_renders(raw_config: dict[str, Any], chat: Chat) -> None:
    """Ids decode to the rendered messages, and the second turn reads exactly what the first wrote."""
    teacher = Scripted([3, 5])
    (row,) = run(raw_config, chat, teacher, [["Hello <|im_end|>", "And now?"]]).to_pylist()
    rendered = chat.tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert chat.tokenizer.decode(row["input_ids"]) + "\n" == rendered
    first, second = teacher.prompts
    assert second[: len(first)].tolist() == first.tolist()
    assert second[len(first) : len(first) + 3].tolist() == [1000, 1001, 2]
    assert row["input_ids"] == [*second.tolist(), 1100, 1101, 1102, 1103, 2]


def test_samples_have_their_own_ids_and_seeds(raw_config: dict[str, Any], chat: Chat) -> None:
    raw_config["sampling"]["n"] = 3
    teacher = Scripted([3])
    table = run(raw_config, chat, teacher, [["a"], ["b"]])
    assert table.column("sample_id").to_pylist() == ["p0/0", "p0/1", "p0/2", "p1/0", "p1/1", "p1/2"]
    assert table.column("source_row").to_pylist() == [0, 0, 0, 1, 1, 1]
    assert len(set(teacher.seeds)) == 6
    assert sample_seed(0, "p0/0", 0) in teacher.seeds
    assert all(0 <= seed < 2**63 for seed in teacher.seeds)


def test_truncated_answer_ends_the_conversation(raw_config: dict[str, Any], chat: Chat) -> None:
    (row,) = run(raw_config, chat, Scripted([3, 3], stops=False), [["a", "b"]]).to_pylist()
    assert row["finish_reasons"] == ["length"]
    assert len(row["messages"]) == 2
    assert row["drop_reason"] is None


def test_full_context_keeps_the_complete_turns(raw_config: dict[str, Any], chat: Chat) -> None:
    teacher = Scripted([3, 3])
    (kept,) = run(raw_config, chat, teacher, [["a", "word " * 450]]).to_pylist()
    assert kept["drop_reason"] is None
    assert len(kept["messages"]) == 2
    (dropped,) = run(raw_config, chat, Scripted([3]), [["word " * 600]]).to_pylist()
    assert dropped["drop_reason"] == "too_long"
    assert dropped["input_ids"] == []


@pytest.mark.parametrize(("turn", "reason", "messages"), [(0, "teacher_failed", 0), (1, None, 2)])
def test_refused_request_costs_its_turn(
    raw_config: dict[str, Any], chat: Chat, turn: int, reason: str | None, messages: int
) -> None:
    (row,) = run(raw_config, chat, Scripted([3, 3], fails_at=turn), [["a", "b"]]).to_pylist()
    assert row["drop_reason"] == reason
    assert len(row["messages"]) == messages


def test_system_prompts_are_drawn_by_prompt_and_stay_with_it(raw_config: dict[str, Any], chat: Chat) -> None:
    raw_config["generate"] = {"system_prompts": ["Be brief.", "Rhyme.", None]}
    raw_config["sampling"]["n"] = 2
    table = run(raw_config, chat, Scripted([3]), [[f"question {n}"] for n in range(40)])
    drawn = []
    for first, second in zip(table.to_pylist()[::2], table.to_pylist()[1::2], strict=True):
        assert first["messages"] == second["messages"]
        *system, user, _ = first["messages"]
        drawn.append(system[0]["content"] if system else None)
        rendered = chat.tokenizer.apply_chat_template([*system, user], add_generation_prompt=True)["input_ids"]
        assert first["input_ids"][: len(rendered)] == rendered
    assert set(drawn) == {"Be brief.", "Rhyme.", None}
    shuffled = run(raw_config, chat, Scripted([3]), [["x"]] * 40)
    again = [
        m[0]["content"] if m[0]["role"] == "system" else None for m in shuffled.column("messages").to_pylist()[::2]
    ]
    assert again == drawn


@pytest.fixture(scope="module")
def thinking_chat(tokenizer: Any) -> Any:
    """Chats of the real tokenizer with <think> and </think> added, whose template opens thinking itself or does not."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    thinking = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    opens = tokenizer.chat_template.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    assert opens != tokenizer.chat_template
    return {False: Chat(thinking, tokenizer.chat_template), True: Chat(thinking, opens)}


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("mode", ["supervise", "keep", "drop"])
def test_thinking(raw_config: dict[str, Any], thinking_chat: Any, mode: str, opened: bool) -> None:
    chat = thinking_chat[opened]
    think, end = (chat.tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "</think>"))
    newline = chat.tokenizer.encode("\n", add_special_tokens=False)[0]
    thoughts = [5000, 5001, end, newline, newline] if opened else [think, 5000, 5001, end, newline, newline]
    raw_config["generate"] = {"thinking": mode}
    teacher = Scripted([10], starts=[thoughts])
    (row,) = (table := run(raw_config, chat, teacher, [["Hello"]])).to_pylist()
    answer = [*range(1000 + len(thoughts), 1009), 2]
    prompt = teacher.prompts[0].tolist()
    assert (prompt[-2] == think) == opened
    if mode == "drop":
        prompt = prompt[:-2] if opened else prompt
        assert row["input_ids"] == prompt + answer
    else:
        assert row["input_ids"] == prompt + thoughts + answer
    supervised = thoughts + answer if mode == "supervise" else answer
    assert [label for label in row["labels"] if label != tables.IGNORE_INDEX] == supervised
    (decoded,) = targets.decode(table)
    assert decoded.ids[:, 0].tolist() == supervised
    assert len(row["token_logprobs"]) == len(decoded.tail) == len(supervised)


@pytest.mark.parametrize(("mode", "reason"), [("supervise", None), ("keep", "no_answer"), ("drop", "no_answer")])
def test_thinking_without_an_end(raw_config: dict[str, Any], thinking_chat: Any, mode: str, reason: str | None) -> None:
    raw_config["generate"] = {"thinking": mode}
    think = thinking_chat[False].tokenizer.convert_tokens_to_ids("<think>")
    teacher = Scripted([10], stops=False, starts=[[think]])
    (row,) = run(raw_config, thinking_chat[False], teacher, [["Hello"]]).to_pylist()
    assert row["drop_reason"] == reason


QWEN_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("opens", ["", "<think>\n"])
def test_template_that_strips_thinking_needs_it_dropped(
    raw_config: dict[str, Any], thinking_chat: Any, opens: str
) -> None:
    tokenizer = thinking_chat[False].tokenizer
    template = QWEN_LIKE.replace("assistant\n{% endif %}", f"assistant\n{opens}{{% endif %}}")
    raw_config["ingest"]["turns"] = "all"
    with pytest.raises(TemplateError, match="strips the thinking"):
        Generate(Config.model_validate(raw_config), Chat(tokenizer, template), Scripted([1]))
    raw_config["generate"] = {"thinking": "drop"}
    chat = Chat(tokenizer, template, drops_thinking=True)
    think, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "</think>"))
    thoughts = [5000, end] if opens else [think, 5000, end]
    teacher = Scripted([6, 6], starts=[thoughts, thoughts])
    (row,) = run(raw_config, chat, teacher, [["Hello", "More"]]).to_pylist()
    # The second prompt, and the whole, are what the template makes of the conversation without thinking.
    asked = tokenizer.apply_chat_template(
        row["messages"][:3], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(teacher.prompts[1]) == asked
    assert tokenizer.decode(row["input_ids"]) + "\n" == tokenizer.apply_chat_template(
        row["messages"], chat_template=template, tokenize=False
    )


def test_the_sources_system_prompts_are_used_where_it_is_asked(raw_config: dict[str, Any], chat: Chat) -> None:
    systems = ["Be brief.", None, "Rhyme."]
    table = prompts([["Hello", "And now?"], ["Hi"], ["x"]])
    table = table.set_column(table.schema.get_field_index("system_prompt"), "system_prompt", pa.array(systems))
    for asked in ("source", None):
        raw_config["generate"] = {"system_prompts": asked}
        made = asyncio.run(Generate(Config.model_validate(raw_config), chat, Scripted([3, 3]))(table)).to_pylist()
        told = [m["content"] for row in made for m in row["messages"][:1] if m["role"] == "system"]
        assert told == ([system for system in systems if system] if asked else [])
        for row in made:
            messages = row["messages"]
            opening = messages[: 1 + (messages[0]["role"] == "system")]
            rendered = chat.tokenizer.apply_chat_template(opening, add_generation_prompt=True)["input_ids"]
            assert row["input_ids"][: len(rendered)] == rendered


def test_lengths_count_each_prompts_own_system_prompt(chat: Chat) -> None:
    systems, turns = ["Be brief.", None, "Rhyme. " * 40], ["one", "two", "three"]
    counted = chat.num_prompt_tokens(turns, systems)
    for length, system, turn in zip(counted, systems, turns, strict=True):
        messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": turn}]
        assert length == len(chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])


@pytest.mark.parametrize("asked", [["Be brief."], "source"])
def test_system_prompts_need_a_template_that_takes_them(raw_config: dict[str, Any], tokenizer: Any, asked: Any) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + QWEN_LIKE
    raw_config["generate"] = {"system_prompts": asked}
    with pytest.raises(TemplateError, match="no system role"):
        Generate(Config.model_validate(raw_config), Chat(tokenizer, template), Scripted([1]))


def test_answers_without_thinking_are_left_alone(raw_config: dict[str, Any], thinking_chat: Any) -> None:
    raw_config["generate"] = {"thinking": "drop"}
    (row,) = run(raw_config, thinking_chat[False], Scripted([4]), [["Hello"]]).to_pylist()
    assert row["num_target_tokens"] == 4


def test_teacher_without_thinking_tokens_is_refused(raw_config: dict[str, Any], chat: Chat) -> None:
    raw_config["generate"] = {"thinking": "drop"}
    with pytest.raises(TemplateError, match="not one"):
        Generate(Config.model_validate(raw_config), chat, Scripted([1]))


class Gated(Scripted):
    """Waits at `gate` before each answer."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__(lengths)
        self.gate = asyncio.Semaphore(0)

    async def answer(self, *arguments: Any) -> Answer:
        await self.gate.acquire()
        return await super().answer(*arguments)


def test_progress_counts_samples_and_tokens(raw_config: dict[str, Any], chat: Chat) -> None:
    raw_config["sampling"]["n"] = 2
    teacher = Gated([3, 5])
    stage = Generate(Config.model_validate(raw_config), chat, Watchdog(teacher, 100.0))
    seen = [stage.progress()]

    async def watched() -> None:
        shards = [asyncio.create_task(stage(prompts(turns))) for turns in ([["a", "b"]], [["c"], ["word " * 600]])]
        for answers in (0, 1, 1, 4):
            for _ in range(answers):
                teacher.gate.release()
            for _ in range(50):
                await asyncio.sleep(0)
            seen.append(stage.progress())
        await asyncio.gather(*shards)

    asyncio.run(watched())
    # Six samples: two of two turns, two of one, and two that do not fit and end at once. The gate lets the first turns
    # of all four through, then the second turns.
    assert seen == [(0, 0, 0), (2, 4, 0), (2, 4, 3), (2, 4, 6), (6, 0, 22)]
    assert seen[-1].num_done == 6


def test_progress_takes_the_teachers_own_count_of_tokens(raw_config: dict[str, Any], chat: Chat) -> None:
    teacher = Scripted([3])
    teacher.num_tokens = 41  # type: ignore[attr-defined]
    stage = Generate(Config.model_validate(raw_config), chat, Watchdog(teacher, 100.0))
    assert stage.progress() == (0, 0, 41)


def test_failed_samples_are_neither_done_nor_under_way(raw_config: dict[str, Any], chat: Chat) -> None:
    class Broken(Scripted):
        async def answer(self, *arguments: Any) -> Answer:
            raise RuntimeError("the engine is dead")

    stage = Generate(Config.model_validate(raw_config), chat, Broken([3]))
    with pytest.raises(RuntimeError, match="dead"):
        asyncio.run(stage(prompts([["a"]])))
    assert stage.progress() == (0, 0, 0)


def test_no_rows(raw_config: dict[str, Any], chat: Chat) -> None:
    table = asyncio.run(Generate(Config.model_validate(raw_config), chat, Scripted([1]))(prompts([["a"]]).slice(0, 0)))
    assert table.num_rows == 0
    assert table.schema.equals(tables.marked(tables.completions(["profanity"])))
