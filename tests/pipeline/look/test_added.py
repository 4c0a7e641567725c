"""Words of a chat template that no message holds, against the template's own text."""

from typing import Any

import pytest

from stillhouse.pipeline.look.added import added_by_template

DATED = (
    "<|im_start|>system\nCutting knowledge date: May\n\n{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% endif %}<|im_end|>\n{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
UNMARKED = "A chat between a curious user and a machine. USER: {{ messages[0].content }} ASSISTANT:"


def said(role: str, content: str | None) -> dict[str, Any]:
    return {"role": role, "content": content, "reasoning_content": None}


ASKED = [said("user", " You are a helpful assistant. \n Who am I? 写 ")]
TOLD = [said("system", "Answer as a pirate would."), *ASKED]


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (None, ASKED, "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        (None, TOLD, None),
        (PLAIN, ASKED, None),
        (PLAIN, TOLD, None),
        (DATED, ASKED, "Cutting knowledge date: May"),
        (DATED, TOLD, "Cutting knowledge date: May"),
        (UNMARKED, ASKED, "A chat between a curious user and a machine. USER:"),
    ],
)
def test_only_what_no_message_holds(
    tokenizer: Any, template: str | None, messages: list[dict[str, Any]], expected: str | None
) -> None:
    ids = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, return_dict=False)
    answered = [*messages, said("assistant", "You are you.")]
    assert added_by_template(tokenizer, ids, answered) == expected


def test_nothing_is_claimed_where_it_cannot_be_told(tokenizer: Any) -> None:
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert added_by_template(tokenizer, ids, [said("user", None)]) is None  # withheld
    assert added_by_template(tokenizer, ids, [said("user", "other words")]) is None
    assert added_by_template(tokenizer, [], ASKED) is None
    assert added_by_template(tokenizer, ids, []) is None
