"""What a teacher needs of memory and disk, in bytes: from the headers of its files, nothing is loaded."""

from typing import Any, NamedTuple

from stillhouse.schemas.config import Config, is_local_path
from stillhouse.stages.teacher.pretrained import read_json

WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes of a number; safetensors' other types have one."""
FLOATS = frozenset({"F32", "F16", "BF16"})
"""Types that the engine turns into `teacher.dtype`; others, of quantized weights, stay as they are."""


class Footprint(NamedTuple):
    """All of it in one engine; None where the files do not say."""

    weight_bytes: int | None
    """In memory, over all GPUs."""
    file_bytes: int | None
    """On disk."""
    cache_bytes_per_token: int | None
    """Keys and values, over all GPUs; an upper bound where some layers look back a short way only."""


def footprint(config: Config) -> Footprint:
    """Of the configured teacher. Asks the hub where the weights are not a folder here."""
    width = 4 if config.teacher.dtype == "float32" else 2
    counts = _parameters(config)
    weights = sum(count * (width if kind in FLOATS else WIDTHS.get(kind, 1)) for kind, count in counts.items())
    files = sum(count * WIDTHS.get(kind, 1) for kind, count in counts.items())
    return Footprint(weights or None, files or None, _cache_bytes_per_token(config, width))


def _parameters(config: Config) -> dict[str, int]:
    """How many numbers of each type the weights hold; empty where there are no safetensors."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    teacher = config.teacher
    try:
        if is_local_path(teacher.model):
            found = huggingface_hub.get_local_safetensors_metadata(teacher.model)
        else:
            found = huggingface_hub.get_safetensors_metadata(teacher.model, revision=teacher.revision)
    except (OSError, ValueError, HfHubHTTPError, huggingface_hub.errors.NotASafetensorsRepoError):
        return {}
    return dict(found.parameter_count)


def _cache_bytes_per_token(config: Config, width: int) -> int | None:
    found = read_json(config.teacher.model, "config.json", config.teacher.revision)
    text: dict[str, Any] = found.get("text_config") or found
    try:
        layers = int(text["num_hidden_layers"])
        if "kv_lora_rank" in text:  # one compressed vector for all heads
            return layers * width * int(text["kv_lora_rank"] + text["qk_rope_head_dim"])
        heads = int(text["num_attention_heads"])
        head_size = int(text.get("head_dim") or text["hidden_size"] // heads)
        return 2 * layers * width * int(text.get("num_key_value_heads") or heads) * head_size
    except (KeyError, TypeError):
        return None
