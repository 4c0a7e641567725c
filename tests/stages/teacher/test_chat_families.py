"""Chat with every family of templates: exact ids, one BOS, carried turns. test_guard.py has the control strings."""

import re
from typing import Any

import pytest

from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.chat import Chat
from tests.support import chat_families
from tests.support.chat_families import CHATML, FAMILIES, LLAMA3, MISTRAL_LAST, ZEPHYR, Family
from tests.support.chats import CLEAN, carry, chat_of, rendered, talk, unguarded

by_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


@by_family
def test_clean_prompts_get_the_ids_of_apply_chat_template(family: Family) -> None:
    chat = chat_of(family)
    for text in CLEAN:
        for system in (None, "Be brief.\n\nAlways.", " ", "") if family.system else (None,):
            messages = talk(text, system=system)
            expected = unguarded(family, messages)
            assert chat.prompt_ids(messages).tolist() == expected, (text, system)
            assert chat.prompt_ids(talk(text), system).tolist() == expected
            assert chat.num_prompt_tokens([text], system) == [len(expected)]


@by_family
def test_exactly_one_bos_where_the_template_puts_it(family: Family) -> None:
    plain = family.tokenizer("Hello")["input_ids"]
    bos = family.tokenizer.convert_tokens_to_ids(family.bos or "<|endoftext|>")
    assert plain[0] == bos, "without a BOS from the post-processor this test would show nothing"
    ids = chat_of(family).prompt_ids(talk("Hello")).tolist()
    if family.bos is None:
        assert bos not in ids
    else:
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_llama3_takes_its_date_from_the_template_arguments() -> None:
    chat = Chat(chat_families.llama3(), LLAMA3, {"date_string": "26 Jul 2024"})
    assert "Today Date: 26 Jul 2024\n\n" in chat.tokenizer.decode(chat.prompt_ids(talk("Hello")))


@by_family
def test_end_of_turn(family: Family) -> None:
    assert chat_of(family).end_of_turn_ids() == sorted(family.tokenizer.convert_tokens_to_ids(list(family.end)))


def test_no_end_of_turn_is_made_up_from_the_next_opening() -> None:
    template = ZEPHYR.replace(" + eos_token + '\\n'", " + '\\n---\\n<|folded|>'")
    family = Family("", chat_families.unigram_bytes, template, (), (), "<s>")
    assert chat_of(family).end_of_turn_ids() == [2]  # the tokenizer's own EOS, and not what opens a turn


QUESTIONS = ["Why is the sky blue?", "And\n\nthe sea?  ", "def f():\n    pass"]
ANSWERS = ["Because the air scatters light.", "<b>It</b> mirrors\n\n\nthe sky: naïve 日本語"]


@by_family
def test_carried_ids_equal_the_template_of_the_whole_conversation(family: Family) -> None:
    for num_turns in (2, 3):
        for system in (None, "Be brief.") if family.system else (None,):
            questions, answers = QUESTIONS[:num_turns], ANSWERS[: num_turns - 1]
            flat = [text for pair in zip(questions, answers, strict=False) for text in pair] + [questions[-1]]
            assert carry(family, questions, answers, system) == unguarded(family, talk(*flat, system=system))


@by_family
def test_carried_ids_keep_whitespace_that_the_template_trims(family: Family) -> None:
    answer = "  An answer, \n indented. \n\n"
    ids = carry(family, QUESTIONS[:2], [answer])
    text = family.tokenizer.decode(ids)
    assert answer in text
    whole = rendered(family, talk(QUESTIONS[0], answer, QUESTIONS[1]))
    assert "".join(text.split()) == "".join(whole.split())
    assert (answer in whole) is not family.trims


def test_refused_and_ignored_system_prompts_are_errors() -> None:
    gemma = chat_of(FAMILIES[1])
    assert gemma.rewrites() is None
    for refused in (
        lambda: gemma.prompt_ids(talk("Hello"), "Be brief."),
        lambda: gemma.prompt_ids(talk("Hello", system="Be brief.")),
        lambda: gemma.next_turn_ids(["one", "two"], "Be brief."),
        lambda: gemma.rewrites(system_prompt=True),
    ):
        with pytest.raises(TemplateError, match="no system role here"):
            refused()
    assert gemma.num_prompt_tokens(["Hello"], "Be brief.") == [0]
    deaf = Chat(chat_families.qwen(), CHATML.replace("for m in messages", "for m in messages if m['role'] != 'system'"))
    assert len(deaf.prompt_ids(talk("Hello")))
    with pytest.raises(TemplateError, match="leaves out"):
        deaf.prompt_ids(talk("Hello"), "Be brief.")


# Templates that rewrite earlier turns

OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + text + '<|im_end|>\\n' }}"
STRIPPING = (
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    f"{TURN}{{% endfor %}}{OPENING}"
)
KEEPING = f"{{% for m in messages %}}{{% set text = m['content'] %}}{TURN}{{% endfor %}}{OPENING}"
EMPTY_BLOCK = "assistant\\n<think>\\n\\n</think>\\n\\n"
BLOCK_IN_HISTORY = (
    "{% for m in messages %}"
    "{% set text = ('<think></think>\\n' if m['role'] == 'assistant' else '') + m['content'] %}"
    f"{TURN}{{% endfor %}}" + OPENING.replace("assistant\\n", "assistant\\n<think></think>")
)

REWRITES: list[tuple[str, str, Any, bool, str | None]] = [
    ("keeps", KEEPING, chat_families.qwen, False, None),
    ("strips", STRIPPING, chat_families.qwen, False, "strips the thinking"),
    ("opens and strips", STRIPPING.replace("assistant\\n'", "assistant\\n<think>\\n'"), chat_families.qwen,
     False, "strips the thinking"),
    ("opens and keeps", KEEPING.replace("assistant\\n'", "assistant\\n<think>\\n'"), chat_families.qwen, False, None),
    ("empty block, dropped", KEEPING.replace("assistant\\n", EMPTY_BLOCK), chat_families.qwen, False, "empty thinking"),
    ("empty block, kept", BLOCK_IN_HISTORY, chat_families.qwen, False, None),
    ("empty block, kept, strips", BLOCK_IN_HISTORY.replace("+ m['content']", "+ m['content'].split('</think>')[-1]"),
     chat_families.qwen, False, None),
    ("system first", chat_families.MISTRAL, chat_families.mistral, True, None),
    ("system last", MISTRAL_LAST, chat_families.mistral, True, "moves the system prompt"),
    ("system last, not asked for", MISTRAL_LAST, chat_families.mistral, False, None),
    ("last turn only", KEEPING.replace("in messages", "in messages[-1:]"), chat_families.qwen, False, "leaves out"),
    ("numbered from the end", KEEPING.replace("m['role'] +", "m['role'] + loop.revindex | string +"),
     chat_families.qwen, False, "rewrites earlier turns"),
    ("no end", KEEPING.replace("<|im_end|>", ""), chat_families.qwen, False, None),
    ("ends in words", KEEPING.replace("<|im_end|>", "~~"), chat_families.qwen, False, "ends an answer with text"),
    ("says more before", KEEPING.replace("assistant\\n", "ass").replace("m['role'] +", "m['role'] + ' says' +"),
     chat_families.qwen, False, "writes text before an answer"),
    ("one turn", "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + KEEPING,
     chat_families.qwen, False, "one turn only"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "make", "system", "expected"), [case[1:] for case in REWRITES], ids=[case[0] for case in REWRITES]
)
def test_rewriting_templates_are_told(template: str, make: Any, system: bool, expected: str | None) -> None:
    chat = Chat(make(), template)
    reason = chat.rewrites(system)
    prompt = "Be brief." if system else None
    assert len(chat.prompt_ids(talk("one"), prompt))  # first turns stay possible
    if expected is None:
        assert reason is None
        assert len(chat.next_turn_ids(["one", "two"], prompt))
    else:
        assert reason is not None
        assert expected in reason
        with pytest.raises(TemplateError, match=re.escape(expected)) as error:
            chat.next_turn_ids(["one", "two"], prompt)
        assert "set teacher.chat_template" in str(error.value)


@pytest.mark.parametrize(
    ("template", "written", "answer"),
    [
        (REWRITES[3][1], "2 and 2\n</think>\n\nFour.", "<think>\n2 and 2\n</think>\n\nFour."),
        (BLOCK_IN_HISTORY, "\nFour.", "Four."),
    ],
    ids=["opens and keeps", "empty block, kept"],
)
def test_generation_prompts_that_open_a_block(template: str, written: str, answer: str) -> None:
    family = Family("", chat_families.qwen, template, (), ("<|im_end|>",), None)
    chat, tokenizer = chat_of(family), family.tokenizer
    ids = chat.prompt_ids(talk("2 + 2?")).tolist()
    ids += tokenizer(written, add_special_tokens=False)["input_ids"]
    ids += chat.next_turn_ids(["2 + 2?", "Sure?"]).tolist()
    whole = talk("2 + 2?", answer, "Sure?")
    assert tokenizer.decode(ids) == rendered(family, whole)
    assert (
        ids[-len(chat.next_turn_ids(["2 + 2?", "Sure?"])) :]
        == unguarded(family, whole)[-len(ids) :][-len(chat.next_turn_ids(["2 + 2?", "Sure?"])) :]
    )


def test_the_glue_needs_two_turns(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="1 user turns"):
        Chat(tokenizer).next_turn_ids(["one"])


def test_broken_templates_are_errors_without_the_rows_text() -> None:
    with pytest.raises(TemplateError):
        Chat(chat_families.qwen(), "{% for m in messages %}")
    chat = Chat(chat_families.qwen(), "{{ messages[0]['content'] + 1 }}")
    with pytest.raises(TemplateError, match="TypeError") as error:
        chat.prompt_ids(talk("secret"))
    assert "secret" not in str(error.value)


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        Chat(chat_families.qwen())
