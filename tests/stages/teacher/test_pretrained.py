"""Tokenizers and facts read without the auto classes are those that the auto classes give."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import pretrained
from stillhouse.stages.teacher.pretrained import (
    GENERIC_CLASSES,
    KNOWN_CLASSES,
    REGISTERED_CLASSES,
    ModelFacts,
    load_tokenizer,
    model_facts,
)
from tests.support.chat_families import FAMILIES, Family
from tests.support.data import TEACHER

NAMED = sorted(KNOWN_CLASSES | GENERIC_CLASSES | {f"{name}Fast" for name in KNOWN_CLASSES | GENERIC_CLASSES})


@pytest.fixture
def no_auto(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The auto classes are not to be asked."""
    for auto in (AutoTokenizer, AutoConfig):
        monkeypatch.setattr(auto, "from_pretrained", lambda *a, **k: pytest.fail("the auto class was asked"))
    return monkeypatch


def write(folder: Path, config: Any, tokenizer: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return str(folder)


def assert_same(ours: Any, autos: Any) -> None:
    assert type(ours) is type(autos)
    assert ours.backend_tokenizer.to_str() == autos.backend_tokenizer.to_str()
    assert ours.special_tokens_map == autos.special_tokens_map
    assert ours.chat_template == autos.chat_template
    assert len(ours) == len(autos)
    assert ours.init_kwargs == autos.init_kwargs


def test_the_quick_starts_tokenizer(no_auto: pytest.MonkeyPatch) -> None:
    ours = load_tokenizer(str(TEACHER), None, False)
    no_auto.undo()
    assert_same(ours, AutoTokenizer.from_pretrained(TEACHER))


# What the model type makes of a family's tokenizer: read as it is, or built anew by a class of its own.
@pytest.mark.parametrize("model_type", ["llama", "phi3", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer", "GPT2TokenizerFast"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_tokenizers_of_every_family(
    tmp_path: Path, family: Family, named: str, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family.tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": named, "chat_template": family.template}
    folder = write(tmp_path, {"model_type": model_type}, settings)
    autos = AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: pytest.fail("the auto class was asked"))
    assert_same(load_tokenizer(folder, None, False), autos)


def test_the_class_is_the_one_that_the_auto_class_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedTokenizerBase, "from_pretrained", classmethod(lambda cls, *a, **k: cls))
    for model_type in REGISTERED_CLASSES:
        for named in NAMED:
            folder = write(tmp_path, {"model_type": model_type}, {"tokenizer_class": named})
            assert pretrained._tokenizer_class(folder, None) is not None
            assert load_tokenizer(folder, None, False) is AutoTokenizer.from_pretrained(folder), (model_type, named)


@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [
        ({"model_type": "mistral"}, {"tokenizer_class": "LlamaTokenizer"}),
        ({"model_type": "llama"}, {"tokenizer_class": "SomeoneElsesTokenizer"}),
        ({"model_type": "llama"}, {}),
        ({"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": [None, "a.B"]}}),
        ({"model_type": "llama", "auto_map": {"AutoConfig": "a.B"}}, {"tokenizer_class": "LlamaTokenizer"}),
        ({"model_type": "llama", "_name_or_path": "deepseek-ai/x"}, {"tokenizer_class": "LlamaTokenizer"}),
        ({}, {"tokenizer_class": "LlamaTokenizer"}),
        ([], {"tokenizer_class": "LlamaTokenizer"}),
    ],
)
def test_the_auto_class_decides_where_anything_is_unusual(tmp_path: Path, config: Any, tokenizer: Any) -> None:
    assert pretrained._tokenizer_class(write(tmp_path, config, tokenizer), None) is None


def test_the_auto_class_decides_for_other_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained._tokenizer_class(str(TEACHER), None) == "TokenizersBackend"
    monkeypatch.setattr("transformers.__version__", "5.20.0")
    assert pretrained._tokenizer_class(str(TEACHER), None) is None


def test_a_folder_without_a_tokenizer_is_refused_as_by_the_auto_class(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError)) as theirs:
        AutoTokenizer.from_pretrained(str(tmp_path))
    with pytest.raises(type(theirs.value)) as ours:
        load_tokenizer(str(tmp_path), None, False)
    assert str(ours.value) == str(theirs.value)


def facts_of(raw: dict[str, Any], folder: str) -> ModelFacts:
    raw["teacher"]["model"] = folder
    return model_facts(Config.model_validate(raw))


def test_the_quick_starts_facts(raw_config: dict[str, Any], no_auto: pytest.MonkeyPatch) -> None:
    assert facts_of(raw_config, str(TEACHER)) == (49152, None, 8192)


@pytest.mark.parametrize("more", [{}, {"vocab_size": 1234}, {"vocab_size": 1234, "final_logit_softcapping": 7.5}])
@pytest.mark.parametrize("model_type", REGISTERED_CLASSES)
def test_facts_are_those_of_the_auto_class(
    tmp_path: Path, raw_config: dict[str, Any], model_type: str, more: dict[str, Any]
) -> None:
    folder = write(tmp_path, {"model_type": model_type, **more}, {})
    auto = AutoConfig.from_pretrained(folder).get_text_config()
    expected = (auto.vocab_size, getattr(auto, "final_logit_softcapping", None))
    assert facts_of(raw_config, folder)[:2] == expected


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2", "lfm2", "gemma3"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ],
)
def test_no_length_is_refused_that_the_engine_takes(
    tmp_path: Path, raw_config: dict[str, Any], model_type: str, more: dict[str, Any]
) -> None:
    """vLLM's own rule is asked with the length that is known here, and with one token more."""
    from vllm.config import ModelConfig

    size = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    nested = {**size, "max_position_embeddings": 4096, **more}
    found = {"text_config": {"model_type": "gemma3_text", **nested}} if model_type == "gemma3" else nested
    folder = write(tmp_path, {"model_type": model_type, **found}, {})
    longest = facts_of(raw_config, folder).max_positions
    architecture = {"architectures": ["LlamaForCausalLM"]}

    def take(length: int) -> Any:
        return ModelConfig(folder, skip_tokenizer_init=True, max_model_len=length, hf_overrides=architecture)

    if longest is None:
        assert more, "a plain model says how long it is"
        return
    assert take(longest).max_model_len == longest
    with pytest.raises(ValueError, match="max_model_len"):
        take(longest + 1)


def test_facts_of_nested_models_and_of_none(tmp_path: Path, raw_config: dict[str, Any]) -> None:
    nested = {"vocab_size": 77, "final_logit_softcapping": 3.0}
    folder = write(tmp_path, {"model_type": "gemma3", "vocab_size": 5, "text_config": nested}, {})
    assert facts_of(raw_config, folder)[:2] == (77, 3.0)
    (tmp_path / "config.json").unlink()
    assert facts_of(raw_config, folder) == (None, None, None)


def test_a_tokenizer_needs_no_torch() -> None:
    """In a process of its own: here other tests have imported it."""
    program = (
        "import sys; from stillhouse.stages.teacher.pretrained import load_tokenizer;"
        f"load_tokenizer({str(TEACHER)!r}, None, False); print(sorted({{'torch', 'sklearn'}} & sys.modules.keys()))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"
