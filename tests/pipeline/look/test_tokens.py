"""Ids as text: tokenizers that spell bytes in either way, and teachers that are gone."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.look import tokens
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.tokens import teacher_tokenizer, token_texts


def test_bytes_that_are_no_characters_are_readable(tokenizer: Any) -> None:
    text = "写 🌾 é\n\ta"
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert any("\\x" in part for part in texts)  # this tokenizer cuts characters in pieces
    # Read back: each escape is a byte.
    as_bytes = b"".join(part.encode().decode("unicode_escape").encode("latin-1") if "\\x" in part else part.encode()
                        for part in texts)  # fmt: skip
    assert as_bytes.decode() == text


def test_control_tokens_and_ids_that_are_none(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert token_texts(tokenizer, [end, 10_000_000]) == ["<|im_end|>", "#10000000"]
    assert token_texts(None, [end, 5]) == [f"#{end}", "#5"]


def test_sentencepiece(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "\u2581Hello": 1, "<0x0A>": 2, "<0xE5>": 3, "wörld": 4, "<0x41>": 5}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert token_texts(tokenizer, [0, 1, 2, 3, 4, 5]) == ["<unk>", " Hello", "\n", "\\xe5", "wörld", "A"]


def test_the_teacher_is_found_or_why_not_is_told(looked_at: Path, weights: Path) -> None:
    place = open_place(str(looked_at))
    tokenizer, note = teacher_tokenizer(place)
    assert (len(tokenizer), note) == (49152, None)
    moved = dataclasses.replace(place, config={**(place.config or {}), "teacher.model": "/nowhere/teacher"})
    tokenizer, note = teacher_tokenizer(moved)
    assert tokenizer is None
    assert note is not None
    assert "/nowhere/teacher cannot be loaded here (the folder does not exist here)" in note
    tokenizer, note = teacher_tokenizer(moved, str(weights))
    assert (len(tokenizer), note) == (49152, None)
    nameless = dataclasses.replace(place, config=None, manifest=None)
    assert "nothing here names the teacher" in (teacher_tokenizer(nameless)[1] or "")


def test_another_tokenizer_under_the_same_name_is_not_believed(looked_at: Path) -> None:
    place = open_place(str(looked_at))
    teacher = {**(place.manifest or {})["teacher"], "tokenizer_sha256": "0" * 64}
    other = dataclasses.replace(place, manifest={**(place.manifest or {}), "teacher": teacher})
    tokenizer, note = teacher_tokenizer(other)
    assert tokenizer is None
    assert note is not None
    assert "is not the one that the manifest names" in note


def test_no_code_of_a_model_runs(looked_at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made a run may have trusted its teacher; whoever looks at it has not."""
    asked = []

    def load(*arguments: Any) -> Any:
        asked.append(arguments)
        raise ValueError("trust_remote_code")

    monkeypatch.setattr(tokens, "load_tokenizer", load)
    place = open_place(str(looked_at))
    trusting = {**(place.config or {}), "teacher.engine": {"trust_remote_code": True}, "teacher.revision": "abc"}
    tokenizer, note = teacher_tokenizer(dataclasses.replace(place, config=trusting))
    assert asked == [(trusting["teacher.model"], "abc", False)]
    assert (tokenizer, note is None) == (None, False)
