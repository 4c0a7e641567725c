"""How fast prompts are screened: the classifier of stages/filters beside Detoxify's own `predict`, side by side.

Detoxify's weights come from a release of their project; where they are not at hand, a model of the same shape (BERT
base, as `original`: 12 layers of 768, 110 million weights) with weights drawn at random takes exactly as long. Its head
is scaled so that scores spread over 0 to 1: else any two ways would agree.

`predict` gets batches of 32 prompts in the order of the file, as its own documentation has it, and cuts texts off after
512 tokens; the classifier reads all of them. Only prompts that fit into one window are compared.

`kinds` times language, code, task and topic on the same prompts: one core, and 64 topics of `--rows` of them repeated.

    python -m benchmarks.screening detoxify [--rows 512] [--threads 2] [--checkpoint FILE --config FOLDER]
    python -m benchmarks.screening kinds [--rows 100000]
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
MAX_CHARACTERS = 4000
"""Longer prompts are pasted files. `predict` would cut them off, and the classifier reads them: no comparison."""
MAX_TOKENS = 512
BATCH = 32


def prompts_of_quickstart(num_rows: int) -> list[str]:
    conversations = pq.read_table(QUICKSTART / "conversations.parquet", columns=["conversation"]).column(0).to_pylist()
    turns = (next((m["content"] for m in rows if m["role"] == "user"), "") for rows in conversations)
    every = [turn for turn in turns if turn.strip() and len(turn) <= MAX_CHARACTERS]
    step = max(1, len(every) // num_rows)
    return every[::step][:num_rows]


def stand_in(folder: Path, texts: list[str], layers: int = 12) -> Path:
    """A checkpoint in Detoxify's format whose pieces of words are those of `texts`."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    from tests.support.tiny_bert import save

    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=30_522, show_progress=False)
    vocab = pieces.get_vocab()
    BertTokenizer(vocab=vocab, model_max_length=MAX_TOKENS).save_pretrained(folder)
    config = BertConfig(vocab_size=len(vocab), num_labels=6, num_hidden_layers=layers, initializer_range=0.04)
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


def timed(function: Any) -> tuple[tuple[float, float], Any]:
    """Seconds of the clock and of all processors; on a busy machine only the latter tell."""
    started, cpu = time.monotonic(), time.process_time()
    result = function()
    return (time.monotonic() - started, time.process_time() - cpu), result


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
    of_predict, parts = timed(
        lambda: [plain.predict(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    )
    expected_NL = np.concatenate([np.array([part[label] for label in classifier.labels]).T for part in parts])
    of_classifier, scores_NL = timed(lambda: classifier.score(texts))
    fits_N = lengths <= MAX_TOKENS
    return {
        "rows": len(texts),
        "threads": torch.get_num_threads(),
        "tokens": {
            "mean": round(float(lengths.mean())),
            "median": int(np.median(lengths)),
            "cut by predict": int((~fits_N).sum()),
        },
        "seconds of predict": [round(value, 1) for value in of_predict],
        "seconds of the classifier": [round(value, 1) for value in of_classifier],
        "times as fast": [round(a / b, 2) for a, b in zip(of_predict, of_classifier, strict=True)],
        "largest difference": float(np.abs(scores_NL - expected_NL)[fits_N].max()),
        "deviation of scores": round(float(expected_NL.std()), 3),
    }


def beside(
    texts: list[str], threads: int, layers: int = 12, checkpoint: Path | None = None, config: Path | None = None
) -> dict[str, Any]:
    """Both on the same texts, in one process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = config or Path(name)
        return measure(texts, checkpoint or stand_in(folder, texts, layers), folder)


def kinds(num_rows: int) -> dict[str, Any]:
    import resource

    from stillhouse.stages.kinds.code import code_share
    from stillhouse.stages.kinds.language import Languages
    from stillhouse.stages.kinds.tasks import task
    from stillhouse.stages.kinds.topics import terms, topics

    texts = prompts_of_quickstart(num_rows)
    languages = Languages(0.5)
    found: dict[str, Any] = {"prompts": len(texts), "characters": round(sum(map(len, texts)) / len(texts))}
    for name, judge in (("language", languages.find), ("code", code_share), ("task", task), ("terms", terms)):
        started = time.process_time()
        for text in texts:
            judge(text)
        found[f"{name}, rows/s of a core"] = round(len(texts) / (time.process_time() - started))
    every = [terms(text) for text in texts]
    rng = np.random.default_rng(1)
    # Other rows than those: of each, half the words.
    parts = [
        np.sort(rng.permutation(every[i % len(every)])[: 1 + len(every[i % len(every)]) // 2]) for i in range(num_rows)
    ]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    topic = topics(parts, 64, 1)
    found |= {
        "rows in topics": num_rows,
        "CPU seconds": round(time.process_time() - started, 1),
        "MiB more at most": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10,
        "largest topic": int(np.bincount(topic[topic >= 0]).max()),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["detoxify", "kinds"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--layers", type=int, default=12, help="of the stand-in; all take the same time")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--config", type=Path, help="folder with the checkpoint's config and tokenizer")
    arguments = parser.parse_args()
    if arguments.what == "kinds":
        found = kinds(arguments.rows or 100_000)
    else:
        texts = prompts_of_quickstart(arguments.rows or 512)
        found = beside(texts, arguments.threads, arguments.layers, arguments.checkpoint, arguments.config)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
