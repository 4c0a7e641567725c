"""Texts of as many tokens as can be had, and what `bound` says of them against a count."""

import json
import random
import unicodedata
from typing import Any

from stillhouse.stages.teacher.bound import bound_of
from stillhouse.stages.teacher.chat import Chat

LONGER_IN_NFC = [chr(code) for code in range(0x110000) if unicodedata.decomposition(chr(code))[:1] not in ("", "<")]
LONGER_IN_NFC = [
    char for char in LONGER_IN_NFC if len(unicodedata.normalize("NFC", char).encode()) > len(char.encode())
]


def spec_of(tokenizer: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return spec


def hostile(spec: dict[str, Any], num: int) -> list[str]:
    """Texts in which tokens are as many as they can be: rare characters, and added tokens side by side."""
    rng = random.Random(0)
    added = [token["content"] for token in spec["added_tokens"]]
    added = rng.sample(added, min(len(added), 100))  # Gemma has thousands
    odd = ["a", " ", "▁", "\n", "é", "e\u0301", "ѩ", "𓀀", "\ue000", "\x00", "日", "🤖", *rng.sample(LONGER_IN_NFC, 8)]
    texts = [odd * 50 for odd in [*odd, *LONGER_IN_NFC]]
    texts += ["".join(pair) * 20 for pair in zip(added, odd * len(added), strict=False)]
    return texts + ["".join(rng.choices(odd + added, k=rng.randint(1, 30))) for _ in range(num)]


def check_bound(tokenizer: Any, texts: list[str]) -> None:
    bound = bound_of(spec_of(tokenizer))
    assert bound is not None
    assert bound.most_tokens("word " * 1000) <= 10_002  # it is of use
    counts = [len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    assert [text for text, count in zip(texts, counts, strict=True) if count > bound.most_tokens(text)] == []
    # Some texts come close, or the bound would not be tested by them.
    assert max(count / bound.most_tokens(text) for text, count in zip(texts, counts, strict=True) if text) > 0.45


def compared(chat: Chat, texts: list[str], system: str | None = None) -> int:
    """How many prompts need no count, over limits around and far from their lengths."""
    exact = chat.num_prompt_tokens(texts, system)
    skipped = 0
    for short in (0, 20, 50, 100, 200, 400, 1000, 5000, 100_000):
        found = chat.num_prompt_tokens(texts, system, short=short)
        for count, told in zip(exact, found, strict=True):
            assert told == count or (told is None and count is not None and count <= short)
        skipped += found.count(None)
    return skipped
