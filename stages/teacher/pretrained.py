"""What the files of a pretrained model say, without transformers' auto classes where these are not needed.

`AutoTokenizer` and `AutoConfig` import torch and scikit-learn (10 to 20 s of CPU), and a tokenizer needs neither. Their
rules were read in transformers 5.19; for other releases, for models that are not in the table and for whatever looks
unusual the auto classes decide. A test asks them about every entry.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from stillhouse.schemas.config import Config

TRANSFORMERS_SERIES = "5.19."
"""Releases of transformers whose rules are known here."""

REGISTERED_CLASSES: dict[str, str | None] = {
    **dict.fromkeys(("exaone4", "gpt_oss", "lfm2", "llama", "smollm3"), None),
    **dict.fromkeys(("deepseek_v3", "glm4", "glm4_moe", "granite", "olmo2", "olmo3", "phi3"), "TokenizersBackend"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
}
"""By model type, the class of tokenizer that transformers registers for it; None where the model's files decide."""

REGISTERED_WINS = {"qwen2"}
"""Model types whose files are known to name wrong classes."""

KNOWN_CLASSES = {"GPT2Tokenizer", "GemmaTokenizer", "LlamaTokenizer", "Qwen2Tokenizer"}
GENERIC_CLASSES = {"PreTrainedTokenizer", "TokenizersBackend"}
"""Read tokenizer.json as it is, both by the same class."""

SOFTCAPPED = {"gemma2", "gemma3_text"}
"""Model types for which a missing `final_logit_softcapping` does not mean that there is none."""

NESTED = {"gemma3"}
"""Model types whose text model has a configuration of its own, named or not."""

NESTED_KEYS = {"decoder", "generator", "text_config", "text_encoder"}
"""Keys of a config.json under which the language model's own may lie."""


class ModelFacts(NamedTuple):
    """What a model's config.json says; None where it does not."""

    vocab_size: int | None
    final_logit_softcapping: float | None
    max_positions: int | None
    """The longest conversation that vLLM takes without `VLLM_ALLOW_LONG_MAX_MODEL_LEN`, in tokens; None also where
    scaled positions leave that open."""


def load_tokenizer(model: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer that `AutoTokenizer.from_pretrained` gives, and its errors."""
    from transformers.utils.hub import resolve_revision

    revision = resolve_revision(model, revision)  # one commit for all files, asked for once
    name = _tokenizer_class(model, revision)
    if name is None:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    import transformers

    return getattr(transformers, name).from_pretrained(model, revision=revision)


def tokenizer_sha256(tokenizer: Any) -> str:
    """Which tokenizer it is: a digest of all that it does with text."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def model_facts(config: Config) -> ModelFacts:
    """The values that `AutoConfig` gives for the teacher's text model; all None where there is no such model: a
    backend other than vLLM need not be a Hugging Face model."""
    teacher = config.teacher
    found = read_json(teacher.model, "config.json", teacher.revision)
    is_flat = _is_known(found) and found["model_type"] not in NESTED and found.keys().isdisjoint(NESTED_KEYS)
    if is_flat and isinstance(found.get("vocab_size"), int):
        softcap = found.get("final_logit_softcapping")
        if isinstance(softcap, float) or (softcap is None and found["model_type"] not in SOFTCAPPED):
            return ModelFacts(found["vocab_size"], softcap, _max_positions(found))
    from transformers import AutoConfig

    try:
        auto = AutoConfig.from_pretrained(
            teacher.model, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code
        )
        auto = auto.get_text_config()
    except (OSError, ValueError):
        return ModelFacts(None, None, None)
    return ModelFacts(
        getattr(auto, "vocab_size", None),
        getattr(auto, "final_logit_softcapping", None),
        _max_positions(auto.to_dict()),
    )


def _max_positions(found: dict[str, Any]) -> int | None:
    """`_get_and_verify_max_len` of vLLM 0.32 where nothing scales positions, as in most models; None elsewhere."""
    longest = found.get("max_position_embeddings")
    scaling = [found.get("rope_scaling"), *_rope_parameters(found.get("rope_parameters"))]
    kinds = {item.get(key, "default") for item in scaling if isinstance(item, dict) for key in ("rope_type", "type")}
    is_plain = kinds <= {"default"} and "model_max_length" not in found
    return longest if is_plain and isinstance(longest, int) else None


def _rope_parameters(found: Any) -> list[Any]:
    """One set for all layers, or one for each kind of layer."""
    if not isinstance(found, dict):
        return []
    return [found] if "rope_type" in found or "rope_theta" in found else list(found.values())


def _tokenizer_class(model: str, revision: str | None) -> str | None:
    """The name of the class that `AutoTokenizer` would choose; None where that is not known here."""
    config = read_json(model, "config.json", revision)
    # Names decide about some models.
    names = [model, str(config.get("_name_or_path"))]
    if not _is_known(config) or "model_name" in config or any(n.lower().startswith("deepseek-ai/") for n in names):
        return None
    settings = read_json(model, "tokenizer_config.json", revision)
    named = settings.get("tokenizer_class")
    if "auto_map" in settings or not isinstance(named, str):
        return None
    named = named.removesuffix("Fast")
    if named not in KNOWN_CLASSES | GENERIC_CLASSES:
        return None
    registered = REGISTERED_CLASSES[config["model_type"]]
    if registered in GENERIC_CLASSES or (registered is not None and config["model_type"] in REGISTERED_WINS):
        named = registered
    return "TokenizersBackend" if named in GENERIC_CLASSES else named


def _is_known(config: dict[str, Any]) -> bool:
    """Whether transformers reads a model's config.json by its own class for a model type in the table."""
    import transformers

    return (
        transformers.__version__.startswith(TRANSFORMERS_SERIES)
        and config.get("model_type") in REGISTERED_CLASSES
        and config.keys().isdisjoint({"auto_map", "configuration_files"})
    )


def read_json(model: str, name: str, revision: str | None) -> dict[str, Any]:
    """A file of the model's, from its folder or the hub; empty where it cannot be read."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(model, name, revision=revision)
        found = json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
