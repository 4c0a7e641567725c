"""How long the pages of `stillhouse view` take on a large dataset, and how much memory. No test.

    python benchmarks/view.py make RUN FOLDER --gigabytes 10   # a dataset of that size, from the answers of a small run
    python benchmarks/view.py measure FOLDER                   # serves it and asks; JSON on standard output
    rm -r FOLDER

Each row of the dataset is a row of the run under another id, with its words in another order and noise on its
log-probabilities: equal rows would compress to nothing. docs/view.md holds the figures.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.pipeline.folder import shard
from stillhouse.schemas.lists import flat_lists, lists
from stillhouse.schemas.tables import MESSAGES

ROWS_PER_SHARD = 10_000
LANGUAGES = ["English", "German", "French", "Portuguese", "unknown", "Italian", "Spanish", "Russian"]
SHARES = [0.6, 0.08, 0.07, 0.06, 0.06, 0.05, 0.05, 0.03]


def make(run: Path, folder: Path, gigabytes: float) -> None:
    """Writes `folder/data/train-*.parquet` until they have `gigabytes`."""
    base = pq.read_table(sorted((run / "generate").glob("*.parquet"))).replace_schema_metadata(None)
    data = folder / "data"
    data.mkdir(parents=True)
    written, number = 0, 0
    while written < gigabytes * 1e9:
        rng = np.random.default_rng(number)
        encoded = shard.encode(_rows(base, rng, number), shard.ShardInfo("publish", f"{number:05d}.parquet", "", 0, 0))
        (data / f"train-{number:05d}-of-99999.parquet").write_bytes(encoded)
        written, number = written + len(encoded), number + 1
        print(f"{number} files, {written / 1e9:.2f} GB", file=sys.stderr)


def _rows(base: pa.Table, rng: np.random.Generator, number: int) -> pa.Table:
    table = base.take(pa.array(rng.integers(0, base.num_rows, ROWS_PER_SHARD)))
    names = pa.array([f"row-{number:05d}-{row:05d}" for row in range(ROWS_PER_SHARD)])
    logprobs = flat_lists(table["target_logprobs"])
    noisy = logprobs.values.to_numpy() + rng.normal(0, 0.1, len(logprobs.values))
    messages = [
        [{**turn, "content": _shuffled(turn["content"], rng)} for turn in turns]
        for turns in table["messages"].to_pylist()
    ]
    changed = {
        "sample_id": pc.binary_join_element_wise(names, pa.scalar("0"), "/"),
        "prompt_id": names,
        "cluster_id": names,
        "messages": pa.array(messages, MESSAGES),
        "target_logprobs": lists(logprobs.offsets.to_numpy(), pa.array(noisy.astype(np.float16).astype(np.float32))),
        "language": pa.array(rng.choice(LANGUAGES, ROWS_PER_SHARD, p=SHARES)),
        "cluster_size": pa.array(rng.geometric(0.7, ROWS_PER_SHARD).astype(np.int32)),
        "source_row": pa.array(np.arange(ROWS_PER_SHARD) + number * ROWS_PER_SHARD),
    }
    for name, column in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    scores = pa.array(rng.beta(1, 9, ROWS_PER_SHARD).astype(np.float32))
    for name in ("prompt_scores", "response_scores"):
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.StructArray.from_arrays([scores], ["profanity"]))
    return table.append_column("loop_tokens", pa.array(rng.geometric(0.5, ROWS_PER_SHARD).astype(np.int32) - 1))


def _shuffled(text: str, rng: np.random.Generator) -> str:
    words = text.split(" ")
    rng.shuffle(words)
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("make")
    command.add_argument("run", type=Path)
    command.add_argument("folder", type=Path)
    command.add_argument("--gigabytes", type=float, default=10.0)
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.run, arguments.folder, arguments.gigabytes)


if __name__ == "__main__":
    main()
