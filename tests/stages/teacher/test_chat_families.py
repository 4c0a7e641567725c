"""Chat with every family of templates: exact ids, one BOS, carried turns, and data that cannot speak as control."""

import random
import re
import unicodedata
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken

from stillhouse.stages.chat import _MARK, Chat, TemplateError
from tests.support import chat_families
from tests.support.chat_families import CHATML, FAMILIES, LLAMA3, MISTRAL_LAST, ZEPHYR, Family

Messages = list[dict[str, str]]

by_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


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


# --- data cannot speak as control -------------------------------------------------------------------------------

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


def test_look_alikes_do_fold_into_control_strings() -> None:
    folding = [form for text in OWN for form in look_alikes(text) if unicodedata.normalize("NFKC", form) == text]
    assert len(folding) > 100


def generated(rng: random.Random) -> str:
    """A message of one to six pieces, each a control string, a part or a look-alike of one, or ordinary text."""
    pieces = []
    for _ in range(rng.randint(1, 6)):
        text = rng.choice(CONTROL)
        cut = rng.randint(1, len(text) - 1)
        pieces.append(
            rng.choice(
                [
                    lambda text=text: text,
                    lambda text=text: text * 2,
                    lambda text=text, cut=cut: text[:cut],
                    lambda text=text, cut=cut: text[cut:],
                    lambda text=text, cut=cut: text[:cut] + rng.choice(CONTROL) + text[cut:],
                    lambda text=text, cut=cut: text[:cut] + rng.choice(["\u200b", "\ufeff", " ", "\n"]) + text[cut:],
                    lambda text=text: rng.choice(look_alikes(text)),
                    lambda: rng.choice(["hello", " and ", "\n", "\n\n", "  ", "é", "日本", "🤖", "x", "system\n"]),
                    lambda: rng.choice([_MARK, f"{_MARK}1{_MARK}", f"{_MARK}9999{_MARK}", _MARK[:1], "\u2581"]),
                ]
            )()
        )
    return rng.choice(["", "", " ", "\n"]) + "".join(pieces) + rng.choice(["", "", " ", "\n"])


def control_ids(family: Family) -> set[int]:
    """Of the tokenizer's files and not of `Chat`, which is what is tested."""
    return set(family.tokenizer.convert_tokens_to_ids(list(family.control)))


def spoken(family: Family, ids: list[int]) -> list[int]:
    unknown = family.tokenizer.unk_token_id  # what characters outside the vocabulary rightly become
    return [i for i in ids if i in control_ids(family) and i != unknown]


def squeezed(family: Family, text: str) -> str:
    """`text` as its tokenizer's normalizer leaves it, without spaces: the kinds put their own beside control tokens."""
    form = "NFKC" if family.name.startswith("zephyr") else "NFC"
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


@by_family
def test_control_strings_in_data_are_text(family: Family) -> None:
    for text in CONTROL:
        for form in (text, f"hello {text} world", text * 3, f"{text}\n{text}", *look_alikes(text)):
            check(family, talk(form))
            if family.system:
                check(family, talk("hello", system=form))


@by_family
def test_generated_combinations_are_text(family: Family) -> None:
    rng = random.Random(family.name)
    for _ in range(1000):
        texts = [generated(rng) for _ in range(rng.choice([1, 1, 3, 5]))]
        system = generated(rng) if family.system and rng.random() < 0.3 else None
        check(family, talk(*texts, system=system))


@by_family
def test_across_turn_joins(family: Family) -> None:
    """Halves of control strings at the end of one turn and at the start of the next, in prompts and in the glue."""
    chat = chat_of(family)
    neutral = spoken(family, chat.next_turn_ids(["x", "x"]).tolist())
    for text in OWN:
        for cut in range(1, len(text)):
            check(family, talk("say " + text[:cut], text[cut:] + " fine " + text[:cut], text[cut:]))
            glue = chat.next_turn_ids([text[:cut], text[cut:] + text]).tolist()
            assert spoken(family, glue) == neutral
            if family.name != "zephyr-unk":
                assert squeezed(family, text[cut:] + text).strip() in squeezed(family, family.tokenizer.decode(glue))


@by_family
def test_the_guard_is_needed(family: Family) -> None:
    """Without it all of a family's control strings speak, so the tests above can fail."""
    silent = [
        text
        for text in family.control
        if spoken(family, unguarded(family, talk(text))) == spoken(family, unguarded(family, talk("x")))
    ]
    assert set(silent) <= {family.tokenizer.unk_token}


def test_normalizers_do_fold_look_alikes_into_control_without_the_guard() -> None:
    family = FAMILIES[-2]
    wide = "\uff1c|user|\uff1e"
    assert unguarded(family, talk(wide)).count(family.tokenizer.convert_tokens_to_ids("<|user|>")) == 2
    check(family, talk(wide))


@by_family
def test_names_of_byte_tokens_are_not_bytes(family: Family) -> None:
    chat = chat_of(family)
    tokens = family.tokenizer.get_vocab()
    for text in ("<0x0A>", "a <0xE6>b", "<0x0A><0x0A>", "\uff1c0x0A\uff1e"):
        names = re.findall("<0x..>", unicodedata.normalize("NFKC", text))
        if family.name == "zephyr":  # this kind does read the names as bytes
            assert tokens[names[0]] in unguarded(family, talk(text))
            with pytest.raises(TemplateError, match="byte token"):
                chat.prompt_ids(talk(text))
        else:
            ids = chat.prompt_ids(talk(text)).tolist()
            assert names[0] not in tokens or family.name == "llama2" or tokens[names[0]] not in ids
            assert squeezed(family, text.replace(" ", "")) in squeezed(family, chat.tokenizer.decode(ids))


def test_unknown_characters_are_not_refused() -> None:
    family = FAMILIES[-1]
    unknown = family.tokenizer.unk_token_id
    assert chat_of(family).prompt_ids(talk("🤖")).tolist().count(unknown) == 1
    assert chat_of(family).prompt_ids(talk("🤖")).tolist() == unguarded(family, talk("🤖"))
    assert unknown in unguarded(family, talk("<unk>"))
    assert unknown not in chat_of(family).prompt_ids(talk("<unk>")).tolist()


def test_unknown_characters_of_a_renamed_unk_in_a_dictionary() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", *"abcdefghijklmnopqrstuvwxyz0123456789"])}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<unk>", "<s>"])
    tokenizer = chat_families.wrapped(backend, "<s>", bos_token="<s>", unk_token="<unk>")
    family = Family("", lambda: tokenizer, "{{ bos_token }}{{ messages[0]['content'] }}", ("<s>", "<unk>"), (), "<s>")
    assert chat_of(family).prompt_ids(talk("aéb")).tolist() == unguarded(family, talk("aéb")) == [1, 2, 0, 3]
    assert chat_of(family).prompt_ids(talk("<s>")).tolist()[1:].count(1) == 0


def test_empty_messages_may_be_left_out_by_a_template() -> None:
    template = CHATML.replace("for m in messages", "for m in messages if m['content'] | trim")
    family = Family("", chat_families.qwen, template, (), (), None)
    for text in ("", " \n", "x"):
        assert chat_of(family).prompt_ids(talk(text)).tolist() == unguarded(family, talk(text))


def test_words_that_are_added_tokens_stay_words() -> None:
    """Runs of newlines are added tokens of Gemma; a template that holds a run does not make it control."""
    family = Family("", chat_families.gemma, chat_families.GEMMA3.replace("\\n\\n", "\n\n"), (), (), "<bos>")
    assert "\n\n" in family.template
    text = "one\n\ntwo\n\n\nthree <table>"
    assert chat_of(family).prompt_ids(talk(text), "Be brief.").tolist() == unguarded(
        family, talk(text, system="Be brief.")
    )


def test_tokens_that_the_template_spells_in_parts_are_control() -> None:
    family = Family("", chat_families.qwen, CHATML + "{{ '<th' + 'ink>' }}", (), (), None)
    think = family.tokenizer.convert_tokens_to_ids("<think>")
    assert chat_of(family).prompt_ids(talk("<think>")).tolist().count(think) == 1
    assert unguarded(family, talk("<think>")).count(think) == 2


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "normalized"])
def test_flags_of_added_tokens_act_as_in_the_original(flag: str) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(chat_families.llama2().backend_tokenizer.to_str())
    token = AddedToken("<|sep|>", special=True, **{"normalized": False, flag: True})
    backend.add_special_tokens([token])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    template = "{% for m in messages %}{{ bos_token + '<|sep|>' + m['content'] + ' <|sep|>' }}{% endfor %}"
    family = Family("", lambda: tokenizer, template, ("<s>", "</s>", "<|sep|>"), (), "<s>")
    for text in ["word", " spaced ", "\n\n", "(", ""]:
        assert chat_of(family).prompt_ids(talk(text)).tolist() == unguarded(family, talk(text)), (flag, text)
    assert spoken(family, chat_of(family).prompt_ids(talk("( <|sep|> )")).tolist()) == spoken(
        family, unguarded(family, talk("( x )"))
    )


def with_tokens(**flags: dict[str, bool]) -> Any:
    """The Llama 3 tokenizer with more special tokens."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(chat_families.llama3().backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False, **flags[text]) for text in flags])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_the_longer_of_two_control_strings_is_taken() -> None:
    tokenizer = with_tokens(**{"<|a|>": {}, "<|a|>b|>": {}})
    family = Family(
        "", lambda: tokenizer, "{{ '<|a|>b|><|a|>' + messages[0]['content'] }}", ("<|a|>", "<|a|>b|>"), (), None
    )
    for text in ("x", "<|a|>b|>"):
        assert spoken(family, chat_of(family).prompt_ids(talk(text)).tolist()) == spoken(
            family, unguarded(family, talk("x"))
        )
    assert len(spoken(family, unguarded(family, talk("x")))) == 2


def test_a_row_that_makes_a_control_token_of_the_template_unreadable_is_refused() -> None:
    tokenizer = with_tokens(**{"<|word|>": {"single_word": True}})
    chat = Chat(
        tokenizer, "{{ messages[0]['content'] + ('s' if 'odd' in messages[0]['content'] else ' ') + '<|word|>' }}"
    )
    assert len(chat.prompt_ids(talk("even")))
    with pytest.raises(TemplateError, match="loses control tokens"):
        chat.prompt_ids(talk("odd"))


def test_a_tokenizer_that_reads_the_new_names_otherwise_is_refused() -> None:
    from tokenizers import Regex, Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(chat_families.unigram_bytes().backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex("[0-9]"), "0")])
    with pytest.raises(TemplateError, match="cannot be used safely"):
        Chat(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"), ZEPHYR)


# --- templates that rewrite earlier turns -----------------------------------------------------------------------

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
