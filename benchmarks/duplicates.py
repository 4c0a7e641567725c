"""What near-duplicate tools merge of the same pairs of prompts: ours, datatrove's, rensa's, text-dedup's.

`cases` writes the pairs: one question typed in two ways, and two questions that look like one (tests/support/
questions.py); questions in 14 languages and code that differ in one detail, alone and inside of a long text
(tests/support/details.py); passages in 14 languages that are 0.9 alike. The other words run one tool on them, in an
environment that has it, and print as JSON of how many pairs of each kind it dropped one. Pairs of one kind share no
text; tools that want files get all pairs of a kind as one data set.

    python benchmarks/duplicates.py cases cases.json      # with PYTHONPATH=., in this repository's environment
    python benchmarks/duplicates.py stillhouse cases.json
    python benchmarks/duplicates.py datatrove cases.json  # elsewhere: datatrove[io,processing]
    python benchmarks/duplicates.py rensa cases.json      # rensa
    python benchmarks/duplicates.py text-dedup cases.json
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

THRESHOLD = 0.8


def cases() -> list[dict[str, Any]]:
    from tests.support.details import QUESTIONS, differing, passage
    from tests.support.near_duplicates import jaccard, oracle_shingles, varied
    from tests.support.questions import DIFFERENT, SAME

    rng = random.Random(0)
    found = [{"kind": "same question, typed in two ways", "texts": pair} for pair in SAME]
    found += [{"kind": "two questions, alike to the eye", "texts": pair} for pair in DIFFERENT]
    for language, detail, *texts in differing():
        found.append({"kind": f"other {detail}, alone", "texts": texts})
        around = passage("en" if language == "code" else language, 150, rng)
        found.append({"kind": f"other {detail}, in 150 words", "texts": [f"{text}\n{around}" for text in texts]})
    for language in [*QUESTIONS] * 10:
        text = passage(language, rng.randint(100, 200), rng)
        copy = text
        while copy == text or jaccard(oracle_shingles(text), oracle_shingles(copy)) < 0.9:
            copy = varied(text, 0.91, rng)
        found.append({"kind": "passages, at least 0.9 alike", "texts": [text, copy]})
    return found


def stillhouse(pairs: list[list[str]]) -> list[bool]:
    from tests.support.near_duplicates import reasons

    return [reasons(*pair) != [None, None] for pair in pairs]


def datatrove(pairs: list[list[str]]) -> list[bool]:
    """Its example, with its defaults: 5-grams of words by its English tokenizer, 14 buckets of 8 hashes."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    config, folder = MinhashConfig(), Path(tempfile.mkdtemp())
    documents = [Document(text=text, id=str(i)) for i, text in enumerate(chain.from_iterable(pairs))]
    names = ("signatures", "buckets", "remove", "kept", "logs")
    signatures, buckets, remove, kept, logs = (str(folder / name) for name in names)
    steps: list[tuple[list[Any], int]] = [
        ([documents, MinhashDedupSignature(signatures, config=config)], 1),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets),
        ([MinhashDedupCluster(buckets, remove, config=config)], 1),
        ([documents, MinhashDedupFilter(remove), JsonlWriter(kept, compression=None)], 1),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline, tasks=tasks, logging_dir=f"{logs}/{number}").run()
    left = {int(json.loads(line)["id"]) for file in Path(kept).glob("*") for line in file.read_text().splitlines()}
    return [not {2 * i, 2 * i + 1} <= left for i in range(len(pairs))]


def rensa(pairs: list[list[str]]) -> list[bool]:
    """Its README: sets of words, 128 permutations, 16 bands, its own deduplicator at the threshold."""
    from rensa import RMinHash, RMinHashDeduplicator

    found = []
    for pair in pairs:
        deduplicator = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=128, use_lsh=True, num_bands=16)
        is_new = []
        for i, text in enumerate(pair):
            minhash = RMinHash(num_perm=128, seed=42)
            minhash.update(text.split())
            is_new.append(deduplicator.add(str(i), minhash))
        found.append(not all(is_new))
    return found


def text_dedup(pairs: list[list[str]]) -> list[bool]:
    """Its command, with its defaults (5-grams of words, 250 permutations) but the threshold."""
    from datasets import load_from_disk

    folder = Path(tempfile.mkdtemp())
    rows = [{"number": i, "text": text} for i, text in enumerate(chain.from_iterable(pairs))]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [
        "--path",
        "json",
        "--data_files",
        f"{folder}/texts.jsonl",
        "--split",
        "train",
        "--cache_dir",
        f"{folder}/c",
    ]
    settings = ["--column", "text", "--threshold", str(THRESHOLD), "--batch_size", "1000", "--num_proc", "1"]
    command = [sys.executable, "-m", "text_dedup.minhash", *places, *settings, "--output", f"{folder}/out"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    left = set(load_from_disk(f"{folder}/out")["number"])
    return [not {2 * i, 2 * i + 1} <= left for i in range(len(pairs))]


TOOLS = {"stillhouse": stillhouse, "datatrove": datatrove, "rensa": rensa, "text-dedup": text_dedup}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cases", *TOOLS])
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "cases":
        arguments.file.write_text(json.dumps(cases()))
        return
    kinds: dict[str, list[list[str]]] = {}
    for case in json.loads(arguments.file.read_text()):
        kinds.setdefault(case["kind"], []).append(case["texts"])
    kinds.update({f"{kind}: {len(pairs)} pairs": kinds.pop(kind) for kind, pairs in list(kinds.items())})
    merged = {kind: TOOLS[arguments.what](pairs) for kind, pairs in kinds.items()}
    print(json.dumps({kind: sum(found) for kind, found in merged.items()}, indent=1))


if __name__ == "__main__":
    main()
