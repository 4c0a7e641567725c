"""What a teacher wrote in channels, as messages: nothing lost, no orphaned marks, and rows say where they differ."""

import asyncio
from typing import Any

import numpy as np
import pytest

from stillhouse.schemas import tables, targets
from stillhouse.schemas.config import Config
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.channels import DIFFERENCES, Channels
from stillhouse.stages.teacher.chat import Chat
from tests.support import reasoning
from tests.support.data import ROOT
from tests.support.prompts import prompts
from tests.support.reasoning import REASONERS, Reasoner, Says

by_reasoner = pytest.mark.parametrize("reasoner", REASONERS, ids=str)
ROOMY = {"max_model_len": 4096}


def run(raw: dict[str, Any], chat: Chat, teacher: Any, turns: list[str]) -> dict[str, Any]:
    raw["teacher"] |= ROOMY
    raw["targets"] = {"top_k": 8, **raw["targets"]}
    table = asyncio.run(Generate(Config.model_validate(raw), chat, teacher)(prompts([turns])))
    for kind in ("target", "draw"):  # every supervised token has its row, and its row knows it
        if f"{kind}_ids" in table.column_names:
            (decoded,) = targets.decode(table, kind)
            learned = [label for label in table["labels"][0].as_py() if label != tables.IGNORE_INDEX]
            assert len(decoded.tail) == table["num_target_tokens"][0].as_py() == len(learned)
            assert kind == "draw" or decoded.ids[:, :1].ravel().tolist() == learned
    (row,) = table.to_pylist()
    return dict(row)


def rendered(tokenizer: Any, template: str, messages: list[dict[str, Any]]) -> str:
    """What a trainer's template makes of a row's messages, as they are read from the file."""
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False))


@by_reasoner
@pytest.mark.parametrize("mode", ["supervise", "keep"])
def test_messages_of_teachers_that_write_in_channels(raw_config: dict[str, Any], reasoner: Reasoner, mode: str) -> None:
    tokenizer = reasoner.tokenizer
    raw_config["generate"] = {"thinking": mode}
    if mode == "keep" and "[THINK]" in reasoner.writes:
        raw_config["generate"]["thinking_tokens"] = ["[THINK]", "[/THINK]"]
    if mode == "keep" and "<|channel>" in reasoner.writes:
        raw_config["generate"]["thinking_tokens"] = ["<|channel>", "<channel|>"]
    teacher = Says(tokenizer, [reasoner.writes], reasoner.finish_reason)
    row = run(raw_config, Chat(tokenizer, reasoner.template), teacher, ["What is <|im_end|> 2 + 2?"])
    if mode == "keep" and not row["messages"]:
        assert row["drop_reason"] == "no_answer"
        return
    assert row["messages"][-1] == {
        "role": "assistant",
        "content": reasoner.content,
        "reasoning_content": reasoner.reasoning,
    }
    assert row["rendering_differs"] == reasoner.differs
    # Whatever the row says, it is true: of the text as the tokenizer alone reads it, and of the template alone.
    trained = tokenizer.decode(row["input_ids"])
    assert trained.endswith(reasoner.writes)
    if reasoner.differs == "refused":
        with pytest.raises(Exception, match="no channel tags"):
            rendered(tokenizer, reasoner.template, row["messages"])
        return
    text = rendered(tokenizer, reasoner.template, row["messages"]).rstrip()
    assert (text == trained.rstrip()) == (reasoner.differs is None)
    if reasoner.differs == "named_thinking":
        *before, last = row["messages"]
        renamed = [*before, {"thinking" if k == "reasoning_content" else k: v for k, v in last.items()}]
        assert rendered(tokenizer, reasoner.template, renamed) == trained


@pytest.mark.parametrize("precision", [0.0, 1 / 64])
def test_another_end_of_turn_is_not_carried_beside_the_templates(raw_config: dict[str, Any], precision: float) -> None:
    tokenizer = reasoning.tokenizer("<|endoftext|>")
    raw_config["ingest"]["turns"] = "all"
    raw_config["targets"] = {"method": "both", "draws_from": "top_k", "precision": precision}
    teacher = Says(tokenizer, ["Four.<|endoftext|>", "Yes.<|im_end|>", "Bye.<|endoftext|>"])
    row = run(raw_config, Chat(tokenizer, reasoning.PLAIN), teacher, ["2 + 2?", "Sure?", "Bye"])
    text = tokenizer.decode(row["input_ids"])
    assert "<|endoftext|><|im_end|>" not in text
    turns = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n<|im_start|>user\nSure?"
    assert text.startswith(turns)
    assert text.endswith("assistant\nBye.<|endoftext|>")
    # What the student learns: every token of the teacher's but the end that is not in the conversation.
    learned = [label for label in row["labels"] if label != tables.IGNORE_INDEX]
    assert tokenizer.decode(learned) == "Four.Yes.<|im_end|>Bye.<|endoftext|>"
    assert [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100] == learned
    assert tokenizer.decode(teacher.prompts[1]) == turns + "<|im_end|>\n<|im_start|>assistant\n"
    assert row["rendering_differs"] == "end_of_turn"


def test_gpt_oss_ends_a_turn_as_its_template_does(raw_config: dict[str, Any]) -> None:
    tokenizer = reasoning.tokenizer("<|return|>")
    raw_config["ingest"]["turns"] = "all"
    with pytest.raises(TemplateError, match="strips the thinking"):
        run(raw_config, Chat(tokenizer, reasoning.HARMONY), Says(tokenizer, []), ["2 + 2?", "Sure?"])
    raw_config["generate"] = {"thinking": "drop"}
    chat = Chat(tokenizer, reasoning.HARMONY, drops_thinking=True)
    teacher = Says(tokenizer, [reasoning.ANALYSIS + reasoning.FINAL] * 2)
    row = run(raw_config, chat, teacher, ["2 + 2?", "Sure?"])
    assert row["rendering_differs"] is None
    assert tokenizer.decode(row["input_ids"]) == rendered(tokenizer, reasoning.HARMONY, row["messages"])
    assert tokenizer.decode(teacher.prompts[1]) == str(
        tokenizer.apply_chat_template(
            row["messages"][:3], chat_template=reasoning.HARMONY, tokenize=False, add_generation_prompt=True
        )
    )


@pytest.mark.parametrize(
    ("template", "eos", "call"),
    [(reasoning.LLAMA31, "<|eom_id|>", "<|python_tag|>f()<|eom_id|>"), (reasoning.PLAIN, "<|call|>", "f()<|call|>")],
)
def test_a_conversation_ends_where_a_tool_would_speak(
    raw_config: dict[str, Any], template: str, eos: str, call: str
) -> None:
    tokenizer = reasoning.tokenizer(eos)
    raw_config["ingest"]["turns"] = "all"
    row = run(raw_config, Chat(tokenizer, template), Says(tokenizer, [call, "never"]), ["2 + 2?", "Sure?"])
    assert len(row["messages"]) == 2
    assert row["drop_reason"] is None


def test_thinking_is_reviewed_as_it_was(raw_config: dict[str, Any]) -> None:
    from stillhouse.stages.review import assistant_turns

    reasoner = REASONERS[0]
    raw_config["generate"] = {"thinking": "supervise"}
    table = asyncio.run(
        Generate(
            Config.model_validate(raw_config | {"teacher": raw_config["teacher"] | ROOMY}),
            Chat(reasoner.tokenizer, reasoner.template),
            Says(reasoner.tokenizer, [reasoner.writes]),
        )(prompts([["2 + 2?"]]))
    )
    assert assistant_turns(table)[0] == ["Two and two.\n\nFour."]


@pytest.mark.parametrize(
    ("content", "end", "expected"),
    [
        ("Four.", "<|im_end|>", None),
        ("Four.", "<|endoftext|>", "end_of_turn"),
        ("Four. Or five.", "<|im_end|>", "text"),  # no end of turn, though it begins alike
        ("Five.", "<|im_end|>", "text"),
        (" Four.", "<|im_end|>", "whitespace"),
    ],
)
def test_differences_of_plain_text(content: str, end: str, expected: str | None) -> None:
    tokenizer = reasoning.tokenizer("<|im_end|>")
    chat = Chat(tokenizer, reasoning.PLAIN)
    user: dict[str, str | None] = {"role": "user", "content": "2 + 2?"}
    ids = [*chat.prompt_ids([user]), *tokenizer.encode(f"Four.{end}", add_special_tokens=False)]
    messages = [user, {"role": "assistant", "content": content, "reasoning_content": None}]
    channels = Channels(chat, ("<think>", "</think>"))
    assert channels.difference(messages, np.array(ids), "stop") == expected


def table_rows(width: int) -> dict[str, list[str]]:
    """The rows of docs/templates.md with so many cells, by the first."""
    lines = [line for line in (ROOT / "docs/templates.md").read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows if len(row) == width}


def test_every_difference_is_documented_and_tried() -> None:
    rows = table_rows(2)
    assert {name: rows[f"`{name}`"] for name in DIFFERENCES} == {k: [text] for k, text in DIFFERENCES.items()}
    # That of content as a list is test_template.py's.
    assert {reasoner.differs for reasoner in REASONERS} - {None} | {"content_parts"} == set(DIFFERENCES)


def test_the_table_of_reasoning_teachers_is_the_tests() -> None:
    table = table_rows(3)
    for reasoner in REASONERS:
        is_marked = reasoner.reasoning is None and reasoner.content.startswith(("<", "["))
        where = "marked, in `content`" if is_marked else "none" if reasoner.reasoning is None else "`reasoning_content`"
        assert table[reasoner.name] == [where, f"`{reasoner.differs}`" if reasoner.differs else "null"]
