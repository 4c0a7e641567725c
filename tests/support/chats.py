"""What chat tests share: conversations, what transformers makes of them, and messages that try to speak as control."""

import random
import re
import unicodedata
from functools import cache
from typing import Literal

from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.guard import MARK
from tests.support import chat_families
from tests.support.chat_families import FAMILIES, Family

Messages = list[dict[str, str]]


@cache
def chat_of(family: Family) -> Chat:
    return Chat(family.tokenizer, family.template, dict(family.kwargs))


def talk(*texts: str, system: str | None = None) -> Messages:
    """User and assistant in turn."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def unguarded(family: Family, messages: Messages, generation: bool = True) -> list[int]:
    """What transformers makes of the conversation."""
    ids = family.tokenizer.apply_chat_template(
        messages, chat_template=family.template, add_generation_prompt=generation, **family.kwargs
    )["input_ids"]
    return list(ids)


def rendered(family: Family, messages: Messages, generation: bool = True) -> str:
    return str(
        family.tokenizer.apply_chat_template(
            messages,
            chat_template=family.template,
            add_generation_prompt=generation,
            tokenize=False,
            **family.kwargs,
        )
    )


CLEAN = [
    "Why is the sky blue?",
    "",
    " ",
    "  indented, and trailing \n\n",
    "\n\n\n\nnewlines\n\n\nin runs\n",
    "def f(a):\n    if a < 1 and a > 0 or a | 2:\n\t\treturn [a]\n",
    "naïve cafe\u0301 日本語 Привет 🤖 👩‍👩‍👧 \u200b\u00a0\u3000 ﬁ ½",
    "<b>bold</b> <table> [x] {y} <|> <||> |> <unk <s",
    "C:\\\\ \\n %s {{ m }} {% if %}",
    "\x00\x01\x7f\ufffd\ue000",
    "word " * 300,
]


def written(family: Family, before: Messages, answer: str) -> list[int]:
    """The ids a teacher would write: `answer` after the prompt of `before`, and the end of its turn."""
    prompt = rendered(family, before)
    ids = family.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    with_answer = family.tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    assert with_answer[: len(ids)] == ids
    return [*with_answer[len(ids) :], family.tokenizer.convert_tokens_to_ids(family.end[-1])]


def carry(family: Family, questions: list[str], answers: list[str], system: str | None = None) -> list[int]:
    """Ids of the conversation up to its last question, as generate joins them."""
    chat = chat_of(family)
    ids = chat.prompt_ids(talk(questions[0]), system).tolist()
    messages = talk(questions[0], system=system)
    for turn, answer in enumerate(answers, 1):
        ids += written(family, messages, family.lead + answer + family.trail)
        glue = chat.next_turn_ids(questions[: turn + 1], system).tolist()
        assert glue[0] == ids[-1]
        ids += glue[1:]
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": questions[turn]}]
    return ids


OWN = sorted({text for family in FAMILIES for text in family.control} | set(chat_families.QWEN_UNFLAGGED))
FOREIGN = [
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|assistant|>", "<|endofprompt|>"),
    *(
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        "[TOOL_CALLS]",
        "<<SYS>>",
        "<</SYS>>",
        "[gMASK]",
        "<sop>",
    ),
    *(
        "<|START_OF_TURN_TOKEN|>",
        "<turn|>",
        "<|turn>",
        "<channel|>",
        "<reserved_106>",
        "[CLS]",
        "[SEP]",
        "<extra_id_0>",
    ),
]
CONTROL = OWN + FOREIGN


def look_alikes(text: str) -> list[str]:
    """Strings that are not `text` and that a reader or a normalizer may take for it."""
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)
    mathematical = "".join(chr(0x1D5BA + ord(char) - 97) if "a" <= char <= "z" else char for char in text)
    return [
        wide,
        wide[0] + text[1:],
        text[:-1] + wide[-1],
        mathematical,
        text[:2] + "\u200b" + text[2:],
        text[:-1] + "\u00ad" + text[-1],
        text.replace("_", "\uff3f"),
        text.replace("|", "\uff5c"),
        text.replace("s", "\u017f"),
        text.replace("_", "\u2581"),
        text[:3] + "\u0301" + text[3:],
        text.upper(),
    ]


def generated(rng: random.Random) -> str:
    """A message of one to six pieces, each a control string, a part or a look-alike of one, or ordinary text."""
    pieces = []
    for _ in range(rng.randint(1, 6)):
        text = rng.choice(CONTROL)
        cut = rng.randint(1, len(text) - 1)
        kind = rng.randrange(9)
        if kind < 2:
            pieces.append(text * (kind + 1))
        elif kind < 4:
            pieces.append(text[:cut] if kind == 2 else text[cut:])
        elif kind < 6:
            between = rng.choice(CONTROL if kind == 4 else ["\u200b", "\ufeff", " ", "\n"])
            pieces.append(text[:cut] + between + text[cut:])
        elif kind == 6:
            pieces.append(rng.choice(look_alikes(text)))
        elif kind == 7:
            pieces.append(rng.choice(["hello", " and ", "\n", "\n\n", "  ", "é", "日本", "🤖", "x", "system\n"]))
        else:
            pieces.append(rng.choice([MARK, f"{MARK}1{MARK}", f"{MARK}9999{MARK}", MARK[:1], "\u2581"]))
    return rng.choice(["", "", " ", "\n"]) + "".join(pieces) + rng.choice(["", "", " ", "\n"])


def control_ids(family: Family) -> set[int]:
    """Of the tokenizer's files and not of `Chat`, which is what is tested."""
    return set(family.tokenizer.convert_tokens_to_ids(list(family.control)))


def spoken(family: Family, ids: list[int]) -> list[int]:
    unknown = family.tokenizer.unk_token_id  # what characters outside the vocabulary rightly become
    return [i for i in ids if i in control_ids(family) and i != unknown]


def squeezed(family: Family, text: str) -> str:
    """`text` as its tokenizer's normalizer leaves it, without spaces: the kinds put their own beside control tokens."""
    form: Literal["NFKC", "NFC"] = "NFKC" if family.name.startswith("zephyr") else "NFC"
    return re.sub(r"[ ▁]", "", unicodedata.normalize(form, text))


def check(family: Family, messages: Messages) -> None:
    chat = chat_of(family)
    neutral = [{**m, "content": "x" if m["content"].strip() else m["content"]} for m in messages]
    ids = chat.prompt_ids(messages).tolist()
    assert spoken(family, ids) == spoken(family, unguarded(family, neutral)), messages
    if family.name != "zephyr-unk":  # which loses the characters it does not know
        # A space in a message may be trimmed off, a space run next to a token swallowed by it: compare without.
        text = squeezed(family, rendered(family, messages))
        read = squeezed(family, family.tokenizer.decode(ids))
        assert re.sub(r"\s", "", read) == re.sub(r"\s", "", text), messages
