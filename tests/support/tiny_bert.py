"""A tiny BERT in Detoxify's format, made here: its weights are known without loading them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stillhouse.schemas.config import DetoxifyConfig

LABELS = ("toxicity", "severe_toxicity", "threat")
MAX_TOKENS = 96
NUM_OUTPUTS = 5
"""More than labels, as in Detoxify's `unbiased`, whose 16 outputs have 7 names."""


class Tiny(NamedTuple):
    folder: Path
    checkpoint: Path
    model: Any
    """The model the checkpoint was made from, never loaded from it."""

    def config(self, **changes: Any) -> DetoxifyConfig:
        values: dict[str, Any] = {
            "checkpoint": str(self.checkpoint),
            "huggingface_config_path": str(self.folder),
            "thresholds": {},
        }
        values["trust_checkpoint"] = True
        return DetoxifyConfig(name="detoxify", **(values | changes))


def make_tiny(folder: Path, texts: Sequence[str]) -> Tiny:
    """Its vocabulary has the most frequent words of `texts`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    words = [word for word, _ in Counter(" ".join(texts).lower().split()).most_common(2000) if word.isalpha()]
    characters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), *words]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    BertTokenizer(vocab=vocab).save_pretrained(folder)  # without a model_max_length
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS,
        num_labels=NUM_OUTPUTS,
        initializer_range=0.3,
    )
    config.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = BertForSequenceClassification(config).eval()
    return Tiny(folder, save(folder / "released.ckpt", model, "bert-base-uncased"), model)


def save(path: Path, model: Any, model_type: str, classes: Sequence[str] = ("toxic", "severe_toxic", "threat")) -> Path:
    """A checkpoint as Detoxify publishes them: it names its config on the hub, and its first labels by old names."""
    import torch

    arch = {
        "model_type": model_type,
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": NUM_OUTPUTS,
    }
    config = {"dataset": {"args": {"classes": list(classes)}}, "arch": {"args": arch}}
    torch.save({"config": config, "state_dict": model.state_dict(), "epoch": 3}, path)
    return path
