"""How long the pages of `stillhouse view` take on a large dataset, and how much memory. No test.

    python benchmarks/view.py make RUN FOLDER --gigabytes 10   # a dataset of that size, from the answers of a small run
    python benchmarks/view.py measure FOLDER                   # serves it and asks; JSON on standard output
    rm -r FOLDER

Each row of the dataset is a row of the run under another id, with its words in another order and noise on its
log-probabilities: equal rows would compress to nothing. After `--distinct` files come copies of them under other names.
docs/view.md holds the figures.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
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


SQL = {
    "SQL, groups": "SELECT language, count(*), avg(num_target_tokens) FROM published GROUP BY ALL",
    "SQL, whole rows": "SELECT * FROM published",
    "SQL, too much": "SELECT list(target_logprobs) FROM published",
}


def make(run: Path, folder: Path, gigabytes: float, distinct: int) -> None:
    """Writes `folder/data/train-*.parquet` until they have `gigabytes`; goes on where there are some."""
    base = pq.read_table(sorted((run / "generate").glob("*.parquet"))).replace_schema_metadata(None)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    written, number = 0, 0
    while written < gigabytes * 1e9:
        file = data / f"train-{number:05d}-of-99999.parquet"
        if number >= distinct:
            shutil.copy(data / f"train-{number % distinct:05d}-of-99999.parquet", file)
        elif not file.exists():
            rng = np.random.default_rng(number)
            info = shard.ShardInfo("publish", f"{number:05d}.parquet", "", 0, 0)
            file.write_bytes(shard.encode(_rows(base, rng, number), info))
        written, number = written + file.stat().st_size, number + 1
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


def measure(folder: Path, repeat: int) -> None:
    """Asks a server for pages, filters and searches, each time other ones, and prints seconds and memory."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stillhouse", "view", str(folder), "--no-browser"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    began = time.perf_counter()
    address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
    results: dict[str, Any] = {"start": round(time.perf_counter() - began, 2)}
    try:
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        opener.open(address).read()
        base = address.partition("?")[0]

        def ask(path: str, **parameters: str) -> Any:
            with opener.open(f"{base}api/{path}?{urllib.parse.urlencode(parameters)}") as answer:
                return json.load(answer)

        def timed(name: str, path: str, *variants: dict[str, str]) -> None:
            seconds, before = list[float](), _cpu_seconds(process.pid)
            for n in range(repeat):
                began = time.perf_counter()
                answer = ask(path, stage="published", **variants[n % len(variants)])
                seconds.append(time.perf_counter() - began)
            found = {key: answer[key] for key in ("total", "rows") if isinstance(answer.get(key), int)}
            median = sorted(seconds)[len(seconds) // 2]
            results[name] = {"first": round(seconds[0], 2), "median": round(median, 2), "most": round(max(seconds), 2)}
            results[name]["cpu"] = round((_cpu_seconds(process.pid) - before) / repeat, 2)
            results[name] |= found | {"peak_gb": _peak_gb(process.pid)}
            print(name, results[name], file=sys.stderr, flush=True)

        timed("first page", "rows", {})
        timed("page far in", "rows", *({"page": str(page)} for page in (3000, 5000, 7000)))
        scores = [f"{start / 100:.2f}..{start / 100 + 0.02:.2f}" for start in (10, 20, 30)]
        timed("filter", "rows", *({"c.prompt_scores.profanity": score} for score in scores))
        timed(
            "filter by two",
            "rows",
            *({"c.language": "is:German", "c.num_target_tokens": f"{n}.."} for n in (20, 30, 40)),
        )
        timed(
            "page of a filter",
            "rows",
            *({"c.language": "is:German", "c.num_target_tokens": "20..", "page": n} for n in "579"),
        )
        timed(
            "filter and sort",
            "rows",
            *(
                {"c.language": "is:French", "sort": name}
                for name in ("-num_input_tokens", "source_row", "-prompt_scores.profanity")
            ),
        )
        timed("search", "rows", *({"q": word} for word in ("marketing", "photograph", "kubernetes")))
        timed(
            "search, two words",
            "rows",
            *({"q": word} for word in ("marketing agency", "greyscale image", "captain ships")),
        )
        timed("page of a search", "rows", *({"q": "marketing", "page": n} for n in "234"))
        for column in (
            "num_target_tokens",
            "prompt_scores.profanity",
            "language",
            "sample_id",
            "messages",
            "target_ids",
        ):
            timed(f"histogram of {column}", "histogram", {"column": column})
        timed("histogram in a filter", "histogram", {"column": "num_target_tokens", "c.language": "is:German"})
        timed("histogram in a search", "histogram", {"column": "num_target_tokens", "q": "marketing"})
        addresses = [f"{row['row']}" for row in ask("rows", stage="published", q="marketing")["rows"]]
        timed("row", "row", *({"row": address} for address in addresses[:3]))
        for name, sql in SQL.items():
            data = json.dumps({"sql": sql}).encode()
            began = time.perf_counter()
            with opener.open(
                urllib.request.Request(f"{base}api/sql", data, {"Content-Type": "application/json"})
            ) as found:
                answer = json.load(found)
            results[name] = {"seconds": round(time.perf_counter() - began, 2), "peak_gb": _peak_gb(process.pid)}
            results[name]["answer"] = answer.get("error") or f"{len(answer['rows'])} rows"
            print(name, results[name], file=sys.stderr, flush=True)
    finally:
        process.terminate()
        process.wait(30)
    results["files"] = sum(1 for _ in (folder / "data").iterdir())
    results["gb"] = round(sum(file.stat().st_size for file in (folder / "data").iterdir()) / 1e9, 2)
    print(json.dumps(results, indent=1))


def _cpu_seconds(pid: int) -> float:
    """What a process has had of all cores: says what a machine would take that does nothing else."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_gb(pid: int) -> float:
    """The most memory that a process has had."""
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return round(int(peak) / 1e6, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("make")
    command.add_argument("run", type=Path)
    command.add_argument("folder", type=Path)
    command.add_argument("--gigabytes", type=float, default=10.0)
    command.add_argument("--distinct", type=int, default=60, help="files that are made; the others are copies")
    command = commands.add_parser("measure")
    command.add_argument("folder", type=Path)
    command.add_argument("--repeat", type=int, default=3, help="times that each is asked; the median is given")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.run, arguments.folder, arguments.gigabytes, arguments.distinct)
    else:
        measure(arguments.folder, arguments.repeat)


if __name__ == "__main__":
    main()
