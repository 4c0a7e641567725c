"""How fast prompts are screened: the classifier of stages/filters beside Detoxify's own `predict`, side by side.

Detoxify's weights come from a release of their project; where they are not at hand, a model of the same shape (BERT
base, as `original`: 12 layers of 768, 110 million weights) with weights drawn at random takes exactly as long. Its head
is scaled so that scores spread over 0 to 1: else any two ways would agree.

`predict` gets batches of 32 prompts in the order of the file, as its own documentation has it, and cuts texts off after
512 tokens; the classifier reads all of them. Only prompts that fit into one window are compared.

    python -m benchmarks.screening [--rows 512] [--threads 2] [--checkpoint FILE --config FOLDER]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

QUICKSTART = Path("data/quickstart")
MAX_TOKENS = 512
BATCH = 32


def prompts_of_quickstart(num_rows: int) -> list[str]:
    conversations = pq.read_table(QUICKSTART / "conversations.parquet", columns=["conversation"]).column(0).to_pylist()
    turns = (next((m["content"] for m in rows if m["role"] == "user"), "") for rows in conversations)
    every = [turn for turn in turns if turn.strip()]
    step = max(1, len(every) // num_rows)
    return every[::step][:num_rows]


def stand_in(folder: Path, texts: list[str]) -> Path:
    """A checkpoint in Detoxify's format whose pieces of words are those of `texts`."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    from tests.support.tiny_bert import save

    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=30_522, show_progress=False)
    vocab = pieces.get_vocab()
    BertTokenizer(vocab=vocab, model_max_length=MAX_TOKENS).save_pretrained(folder)
    config = BertConfig(vocab_size=len(vocab), num_labels=6, initializer_range=0.04)
    config.save_pretrained(folder)
    torch.manual_seed(1)
    model = BertForSequenceClassification(config).eval()
    tokenizer = BertTokenizer.from_pretrained(folder)
    with torch.inference_mode():  # the head, so that logits have a mean of 0 and a deviation of 2
        sample = tokenizer(texts[:64], return_tensors="pt", truncation=True, padding=True, max_length=64)
        logits = model(**sample)[0]
        model.classifier.weight *= (2.0 / logits.std(dim=0)).unsqueeze(1)
        model.classifier.bias -= (model(**sample)[0]).mean(dim=0)
    names = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    return save(folder / "stand-in.ckpt", model, str(folder), names)


def measure(texts: list[str], checkpoint: Path, folder: Path) -> dict[str, Any]:
    import torch
    from detoxify import Detoxify

    from stillhouse.schemas.config import DetoxifyConfig
    from stillhouse.stages.filters.detoxify import DetoxifyClassifier

    config = DetoxifyConfig(
        name="detoxify",
        checkpoint=str(checkpoint),
        huggingface_config_path=str(folder),
        trust_checkpoint=True,
        thresholds={},
        batch_size=BATCH,
    )
    plain = Detoxify(checkpoint=str(checkpoint), huggingface_config_path=str(folder))
    classifier = DetoxifyClassifier(config)
    lengths = np.array([len(ids) for ids in plain.tokenizer(texts, verbose=False)["input_ids"]])
    plain.predict(texts[:2])
    classifier.score(texts[:2])  # both are warm
    started = time.monotonic()
    parts = [plain.predict(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    of_predict = time.monotonic() - started
    expected_NL = np.concatenate([np.array([part[label] for label in classifier.labels]).T for part in parts])
    started = time.monotonic()
    scores_NL = classifier.score(texts)
    of_classifier = time.monotonic() - started
    fits_N = lengths <= MAX_TOKENS
    return {
        "rows": len(texts),
        "threads": torch.get_num_threads(),
        "tokens": {
            "mean": round(float(lengths.mean())),
            "median": int(np.median(lengths)),
            "cut by predict": int((~fits_N).sum()),
        },
        "predict rows/s": round(len(texts) / of_predict, 2),
        "classifier rows/s": round(len(texts) / of_classifier, 2),
        "times as fast": round(of_predict / of_classifier, 2),
        "largest difference": float(np.abs(scores_NL - expected_NL)[fits_N].max()),
        "deviation of scores": round(float(expected_NL.std()), 3),
    }


def run(num_rows: int, threads: int, checkpoint: Path | None, config: Path | None) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(threads)
    texts = prompts_of_quickstart(num_rows)
    with tempfile.TemporaryDirectory() as name:
        folder = config or Path(name)
        return measure(texts, checkpoint or stand_in(folder, texts), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--config", type=Path, help="folder with the checkpoint's config and tokenizer")
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.rows, arguments.threads, arguments.checkpoint, arguments.config), indent=1))


if __name__ == "__main__":
    main()
