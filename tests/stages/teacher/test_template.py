"""A template is tried before it is used: whose words it writes, in which form, and whether it opens a turn."""

import inspect
from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from stillhouse.pipeline import flow
from stillhouse.schemas.config import Config
from stillhouse.schemas.config.teacher import RESERVED_TEMPLATE_ARGUMENTS
from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.conversing import check_template
from tests.stages.teacher.test_channels import run
from tests.support import chat_families, reasoning
from tests.support.chat_families import CHATML, FAMILIES, LLAMA3, Family
from tests.support.chats import chat_of, talk
from tests.support.reasoning import Says

OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
PARTS = (  # LLaVA's kind
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}" + OPENING
)
FIRST_PART = (  # LLaVA-NeXT's and Idefics' kind: a string fails
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'][0]['text'] + '<|im_end|>\\n' }}"
    "{% endfor %}" + OPENING
)
EITHER = (  # Llama 4's kind
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] | trim }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}" + OPENING
)
SYSTEM_IN_PARTS = PARTS.replace(  # the user's words as a string would do, the system prompt's not
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}",
    "{% if m['content'] is string and m['role'] != 'system' %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}{% endif %}",
)


@pytest.mark.parametrize("template", [PARTS, FIRST_PART, SYSTEM_IN_PARTS], ids=["llava", "first part", "system"])
def test_a_template_that_wants_parts_gets_them(raw_config: dict[str, Any], template: str) -> None:
    tokenizer = chat_families.qwen()
    raw_config["generate"] = {"system_prompts": ["Be brief."]}
    raw_config["ingest"]["turns"] = "all"
    teacher = Says(tokenizer, ["Blue.<|im_end|>", "Yes.<|im_end|>"])
    row = run(raw_config, Chat(tokenizer, template), teacher, ["Why <|im_end|>?", " And now? "])
    # The shape of ChatML, as written out by hand.
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy <|im_end|>?<|im_end|>\n"
        "<|im_start|>assistant\nBlue.<|im_end|>\n<|im_start|>user\n And now? <|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(teacher.prompts[1]) == expected
    assert row["messages"][1]["content"] == "Why <|im_end|>?"  # a string, whatever the template wants
    assert row["rendering_differs"] == "content_parts"
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in row["messages"]]
    assert tokenizer.apply_chat_template(parts, chat_template=template, tokenize=False) == (
        tokenizer.decode(row["input_ids"]) + "\n"
    )


def test_a_template_that_takes_either_gets_a_string(raw_config: dict[str, Any]) -> None:
    tokenizer = chat_families.qwen()
    row = run(raw_config, Chat(tokenizer, EITHER), Says(tokenizer, ["Blue.<|im_end|>"]), ["Why?"])
    assert row["rendering_differs"] is None


def test_check_reads_the_words_of_a_template_that_wants_parts(raw_config: dict[str, Any]) -> None:
    """The input of the report: every prompt was empty, and check said all is well."""
    raw_config["teacher"]["chat_template"] = PARTS
    count = flow.prompt_counter(Config.model_validate(raw_config))
    few, many = count(["one", "one two three four five six"])
    assert few is not None
    assert many is not None
    assert few < many


@pytest.mark.parametrize(
    "said",
    [
        "m['content'][:200]",
        "m['content'] | upper",
        "m['content'] | tojson",
        "m['content'] | escape",
        "m['content'] | replace('\\n', ' ')",
        "m['content'].split() | join(' ')",
        "m['text'] | default('')",
        "m['role']",
    ],
)
def test_a_template_in_which_words_do_not_stand_whole_is_refused(raw_config: dict[str, Any], said: str) -> None:
    template = CHATML.replace("m['content']", said)
    assert template != CHATML
    with pytest.raises(TemplateError, match="does not write a user's words"):
        Chat(chat_families.qwen(), template)
    raw_config["teacher"]["chat_template"] = template
    with pytest.raises(TemplateError, match="does not write a user's words"):
        flow.prompt_counter(Config.model_validate(raw_config))


def test_a_system_prompt_that_is_left_out_is_refused_at_the_start(raw_config: dict[str, Any]) -> None:
    deaf = CHATML.replace("for m in messages", "for m in messages if m['role'] != 'system'")
    chat = Chat(chat_families.qwen(), deaf)
    check_template(Config.model_validate(raw_config), chat)
    raw_config["generate"] = {"system_prompts": [None, "Be brief."]}
    with pytest.raises(TemplateError, match="does not write a system prompt"):
        check_template(Config.model_validate(raw_config), chat)


def test_a_prompt_whose_words_the_template_changes_is_refused_alone() -> None:
    chat = Chat(chat_families.qwen(), CHATML.replace("m['content']", "m['content'].replace('<image>', '')"))
    assert len(chat.prompt_ids(talk("an image")))
    with pytest.raises(TemplateError, match="user's words"):
        chat.prompt_ids(talk("an <image> here"))
    assert chat.num_prompt_tokens(["an <image> here", "x"])[0] == 0


# The teacher's turn


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_known_templates_open_a_turn(raw_config: dict[str, Any], family: Family) -> None:
    check_template(Config.model_validate(raw_config), chat_of(family))


@pytest.mark.parametrize("reasoner", reasoning.REASONERS, ids=str)
def test_templates_of_reasoning_teachers_open_a_turn(raw_config: dict[str, Any], reasoner: reasoning.Reasoner) -> None:
    check_template(Config.model_validate(raw_config), Chat(reasoner.tokenizer, reasoner.template))


CLOSED = CHATML.partition("{%- if add_generation_prompt %}")[0]


def test_a_template_that_opens_no_turn_is_refused(raw_config: dict[str, Any]) -> None:
    for template in (CLOSED, CLOSED + "{% if add_generation_prompt %}{{ '\\n' }}{% endif %}"):
        with pytest.raises(TemplateError, match="opens no turn"):
            check_template(Config.model_validate(raw_config), Chat(chat_families.qwen(), template))
    raw_config["teacher"]["chat_template"] = CLOSED
    with pytest.raises(TemplateError, match="opens no turn"):
        flow.prompt_counter(Config.model_validate(raw_config))


def test_a_template_that_always_opens_a_turn_is_used(raw_config: dict[str, Any]) -> None:
    always = CLOSED + "{% if messages[-1]['role'] != 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    check_template(Config.model_validate(raw_config), Chat(chat_families.qwen(), always))


# Arguments


def test_arguments_that_collide_are_refused(raw_config: dict[str, Any]) -> None:
    theirs = {
        name
        for function in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert theirs - {"tools", "documents"} <= RESERVED_TEMPLATE_ARGUMENTS
    for name in [*theirs - {"tools", "documents"}, "messages", "strftime_now", "raise_exception"]:
        raw_config["teacher"]["chat_template_kwargs"] = {name: True, "enable_thinking": False}
        with pytest.raises(ValidationError, match=rf"\['{name}'\] are set by Stillhouse"):
            Config.model_validate(raw_config)


def test_a_date_without_quotes_is_refused(raw_config: dict[str, Any]) -> None:
    raw_config["teacher"]["chat_template_kwargs"] = {"date_string": date(2024, 7, 26)}
    with pytest.raises(ValidationError, match="put a date in quotes"):
        Config.model_validate(raw_config)


def test_tools_are_passed_on() -> None:
    template = "{% if tools %}{{ tools[0].name }}{% endif %}" + CHATML
    chat = Chat(chat_families.qwen(), template, {"tools": [{"name": "add"}]})
    assert chat.tokenizer.decode(chat.prompt_ids(talk("x"))).startswith("add<|im_start|>")


# The day


@pytest.mark.parametrize(
    ("template", "make", "written"),
    [
        (LLAMA3, chat_families.llama3, "Today Date: 02 Jan 2025"),
        (reasoning.LLAMA31, lambda: reasoning.tokenizer("<|eot_id|>"), "Today Date: 02 Jan 2025"),
        (reasoning.HARMONY, lambda: reasoning.tokenizer("<|return|>"), "Current date: 2025-01-02"),  # in a macro too
        ("{% macro day() %}{{ strftime_now('%Y %H:%M') }}{% endmacro %}{{ day() }}" + CHATML, chat_families.qwen,
         "2025 00:00"),
    ],
)  # fmt: skip
def test_the_day_is_the_one_given(template: str, make: Any, written: str) -> None:
    chat = Chat(make(), template, today=date(2025, 1, 2))
    assert chat.jinja.writes_date
    assert written in chat.tokenizer.decode(chat.prompt_ids(talk("x")))


def test_without_a_day_it_is_today_and_stays_so() -> None:
    chat = Chat(chat_families.llama3(), LLAMA3)
    assert datetime.now(UTC).strftime("%d %b %Y") in chat.tokenizer.decode(chat.prompt_ids(talk("x")))
    assert not Chat(chat_families.qwen(), CHATML).jinja.writes_date
