"""The most tokens a text can have, against tokenizers that count them."""

import json
import random
import unicodedata
from typing import Any

import pytest
from tokenizers import Tokenizer

from stillhouse.stages.teacher.bound import bound_of
from stillhouse.stages.teacher.chat import Chat
from tests.support import chat_families
from tests.support.bounds import LONGER_IN_NFC, check_bound, compared, hostile, spec_of
from tests.support.chat_families import FAMILIES, Family
from tests.support.chats import CLEAN, chat_of, generated, talk
from tests.support.conversations import first_user_turns

by_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def test_nfc_makes_at_most_three_bytes_of_one() -> None:
    """Of every character by itself; that of three is Unicode's own figure."""
    growth = [len(unicodedata.normalize("NFC", char).encode()) / len(char.encode()) for char in LONGER_IN_NFC]
    assert max(growth) == 3


def test_which_families_have_a_bound() -> None:
    """Byte-pair models; of Unigram and its normalizers nothing is said here."""
    unbounded = {family.name for family in FAMILIES if bound_of(spec_of(family.tokenizer)) is None}
    assert unbounded == {"zephyr", "zephyr-unk"}


@pytest.mark.parametrize("family", FAMILIES[:6], ids=str)
def test_no_text_has_more_tokens(family: Family) -> None:
    check_bound(family.tokenizer, hostile(spec_of(family.tokenizer), 1000) + CLEAN)


def test_no_text_has_more_tokens_of_the_quick_starts_teacher(tokenizer: Any) -> None:
    check_bound(tokenizer, hostile(spec_of(tokenizer), 1000) + first_user_turns(300))


def test_a_space_before_every_text_between_added_tokens_counts() -> None:
    spec = spec_of(chat_families.mistral())
    spec["pre_tokenizer"]["prepend_scheme"] = "always"
    spec["post_processor"] = None
    assert bound_of(spec) == (1, 1, 2)
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": 5000, "content": "~"})
    bound, backend = bound_of(spec), Tokenizer.from_str(json.dumps(spec))
    assert bound is not None
    count = len(backend.encode("~a" * 50).ids)
    assert 100 < count <= bound.most_tokens("~a" * 50)


@by_family
def test_prompts_are_within_limits_where_they_are_not_counted(family: Family) -> None:
    chat, rng = chat_of(family), random.Random(0)
    texts = [*CLEAN, *(generated(rng) for _ in range(200)), *LONGER_IN_NFC[::9], *(c * 60 for c in LONGER_IN_NFC[::9])]
    for system in (None, "Be brief.") if family.system else (None,):
        assert (compared(chat, texts, system) > 0) == (bound_of(spec_of(family.tokenizer)) is not None)


def test_real_prompts(tokenizer: Any) -> None:
    """Nine of ten need no count at a limit of 8,000."""
    chat, texts = Chat(tokenizer), first_user_turns(400)
    assert compared(chat, texts) > 0
    assert chat.num_prompt_tokens(texts, short=8000).count(None) > 0.9 * len(texts)


def test_a_template_that_repeats_the_words_is_seen(tokenizer: Any) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m['content'] * 100 }}{% endfor %}<|im_start|>assistant"
    chat = Chat(tokenizer, template)
    assert chat.num_prompt_tokens(["x y"], short=150) == [len(chat.prompt_ids(talk("x y")))]
    assert chat.num_prompt_tokens(["x y"], short=1000) == [None]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}},
        {
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        },  # three bytes at the byte level
        {"normalizer": {"type": "Prepend", "prepend": "abc"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": True}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Punctuation"}, {"type": "ByteLevel", "add_prefix_space": True}],
            }
        },
        {"pre_tokenizer": {"type": "BertPreTokenizer"}},
        {"model.dropout": 0.1},
        {"model.continuing_subword_prefix": "##"},
        {"model.end_of_word_suffix": "</w>"},
        {"model.type": "WordPiece"},
        {"model.vocab": {"a": 0}, "model.byte_fallback": True},
    ],
    ids=str,
)
def test_what_is_not_known_has_no_bound(tokenizer: Any, change: dict[str, Any]) -> None:
    spec = spec_of(tokenizer)
    assert bound_of(spec) is not None
    for path, value in change.items():
        *parents, name = path.split(".")
        (spec[parents[0]] if parents else spec)[name] = value
    assert bound_of(spec) is None
