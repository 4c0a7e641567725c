"""Data cannot speak as control, with the tokenizers and templates of every family."""

import random
import re
import unicodedata
from typing import Any

import pytest
from tokenizers import AddedToken

from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.chat import Chat
from tests.support import chat_families
from tests.support.chat_families import CHATML, FAMILIES, ZEPHYR, Family
from tests.support.chats import CONTROL, OWN, chat_of, check, generated, look_alikes, spoken, squeezed, talk, unguarded

by_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def test_look_alikes_do_fold_into_control_strings() -> None:
    folding = [form for text in OWN for form in look_alikes(text) if unicodedata.normalize("NFKC", form) == text]
    assert len(folding) > 100


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
