"""How fast prompts are curated: conversations in the schema of LMSYS-Chat-1M through `run --until dedupe --local`.

The rows are made from the quick start's real conversations: runs of consecutive rounds of one, as many as LMSYS has on
average (2.0), each row with words of its own in every user turn. A known part of them repeats another row's user turns:
as they are, typed another way, or with a word changed. Prints wall and CPU seconds of each step, the most memory of all
processes together (resident pages counted in each process that shares them, with and without those of files), how many
of the known duplicates were dropped, and a hash of everything that was written.

The rows are made once; a smaller number takes the first of them. `libraries` times the plain way beside it, on a sample
of the same rows: every prompt counted by the tokenizer, and datasketch's MinHash and MinHashLSH over the same shingles.
`screening` times Detoxify's `predict` beside the classifier on first turns of them (`benchmarks/screening.py`).

    python benchmarks/curation.py run FOLDER [--rows 1000000] [--workers 2]
    python benchmarks/curation.py screening FOLDER [--rows 1000000] [--sample 512] [--layers 12]
    python benchmarks/curation.py libraries FOLDER [--rows 1000000] [--sample 20000]
"""

import argparse
import contextlib
import gc
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

QUICKSTART = Path("data/quickstart")
NUM_FILES = 6
MESSAGE = pa.struct([("content", pa.string()), ("role", pa.string())])
FLAG = pa.struct([("categories", pa.struct([("hate", pa.bool_())])), ("flagged", pa.bool_())])
LMSYS = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("model", pa.string()),
        ("conversation", pa.list_(MESSAGE)),
        ("turn", pa.int64()),
        ("language", pa.string()),
        ("openai_moderation", pa.list_(FLAG)),
        ("redacted", pa.bool_()),
    ]
)
REPEATED = {"exact": 0.10, "typed": 0.05, "near": 0.05}
"""The share of rows that repeat an earlier one, by how."""
MAX_CHARACTERS = 4000
"""Longer user turns are pasted files, of which LMSYS has few: its prompts have 70 tokens on average."""

Rounds = list[tuple[str, str]]


def rounds_of_quickstart() -> list[Rounds]:
    conversations = pq.read_table(QUICKSTART / "conversations.parquet", columns=["conversation"]).column(0).to_pylist()
    found = []
    for messages in conversations:
        pairs = pairwise(messages)
        rounds = [(a["content"], b["content"]) for a, b in pairs if (a["role"], b["role"]) == ("user", "assistant")]
        rounds = [pair for pair in rounds if len(pair[0]) <= MAX_CHARACTERS and pair[0].strip()]
        if rounds:
            found.append(rounds)
    return found


def worded(text: str, rng: random.Random) -> str:
    """`text` with one word in eight, and at least three, replaced by words that no other row has."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), min(len(words), max(3, len(words) // 8))):
        words[place] = f"w{rng.getrandbits(40):x}"
    return " ".join(words) + f" {rng.getrandbits(40):x}"


def rows(num_rows: int) -> Iterator[tuple[str, list[str], list[str]]]:
    """How a row came to be (new, exact, typed, near), its user turns and its answers."""
    rng = random.Random(20260)
    real = rounds_of_quickstart()
    earlier: list[list[str]] = []
    for _ in range(num_rows):
        conversation = rng.choice(real)
        num_rounds = min(len(conversation), 1 + int(rng.expovariate(0.75)))
        start = rng.randrange(len(conversation) - num_rounds + 1)
        chosen = conversation[start : start + num_rounds]
        answers = [answer for _, answer in chosen]
        kind = rng.choices(["new", *REPEATED], [1 - sum(REPEATED.values()), *REPEATED.values()])[0]
        if kind == "new" or not earlier:
            kind, turns = "new", [worded(turn, rng) for turn, _ in chosen]
            if len(earlier) < 20_000:
                earlier.append(turns)
            else:
                earlier[rng.randrange(20_000)] = turns
        else:
            turns = list(rng.choice(earlier))
            if kind == "typed":
                turns[0] = f"  {turns[0]}\u200b \n"
            elif kind == "near":
                turns[0] += f" {rng.getrandbits(20):x}"
        yield kind, turns, (answers * len(turns))[: len(turns)]


def make(folder: Path, num_rows: int) -> None:
    """The rows as Parquet files, and how each came to be in `kinds.json`."""
    source, kinds, stream = folder / "source", [], rows(num_rows)
    source.mkdir(parents=True, exist_ok=True)
    per_file = -(-num_rows // NUM_FILES)
    for number in range(NUM_FILES):
        with pq.ParquetWriter(source / f"train-{number}.parquet", LMSYS, compression="zstd") as file:
            part = islice(stream, per_file)
            while batch := list(islice(part, 10_000)):
                records = []
                for kind, turns, answers in batch:
                    messages = [
                        {"role": role, "content": text}
                        for pair in zip(turns, answers, strict=True)
                        for role, text in zip(("user", "assistant"), pair, strict=True)
                    ]
                    records.append(
                        {
                            "conversation_id": hashlib.blake2b(f"{len(kinds)}".encode(), digest_size=16).hexdigest(),
                            "model": "vicuna-13b",
                            "conversation": messages,
                            "turn": len(turns),
                            "language": "English",
                            "openai_moderation": [{"categories": {"hate": False}, "flagged": False}] * len(messages),
                            "redacted": False,
                        }
                    )
                    kinds.append(kind)
                file.write_table(pa.Table.from_pylist(records, LMSYS), row_group_size=10_000)
    (folder / "kinds.json").write_text(json.dumps(kinds))


def raw_config(folder: Path, run: str, num_rows: int, workers: int) -> dict[str, Any]:
    return {
        "run_dir": str(folder / run),
        "source": {"path": str(folder / "source"), "name": "lmsys", "limit": num_rows},
        "ingest": {"rows_per_shard": 2000, "max_dropped_fraction": 1.0},
        "dedupe": {"max_dropped_fraction": 1.0},
        "teacher": {
            "model": str((QUICKSTART / "SmolLM2-135M-Instruct").resolve()),
            "max_model_len": 8192,
            "backend": "benchmarks.verification:Quick",
        },
        "sampling": {"max_tokens": 1024},
        "targets": {"top_k": 20},
        "resources": {"ingest": {"max_workers": workers}, "dedupe": {"max_workers": workers}},
    }


def tree(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(inner for child in children for inner in tree(int(child)))]


class Watch:
    """The most memory that a process and all it started held together, and the CPU seconds of each of them.
    `peak_own_bytes` is without the pages of files, which the kernel may take back."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = self.peak_own_bytes = 0
        self.cpu_seconds: dict[int, float] = {}
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        page, tick = resource.getpagesize(), os.sysconf("SC_CLK_TCK")
        while not self._over.wait(0.2):
            total = of_files = 0
            for pid in tree(self._pid):
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    self.cpu_seconds[pid] = (int(fields[11]) + int(fields[12])) / tick
                    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
                    total += int(resident) * page
                    of_files += int(shared) * page
            self.peak_bytes = max(self.peak_bytes, total)
            self.peak_own_bytes = max(self.peak_own_bytes, total - of_files)

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def run(folder: Path, num_rows: int, workers: int) -> None:
    name = f"run-{num_rows}-{workers}"
    config = folder / f"{name}.json"  # which is YAML too
    config.write_text(json.dumps(raw_config(folder, name, num_rows, workers)))
    command = [sys.executable, "-m", "stillhouse", "run", str(config), "--until", "dedupe", "--local"]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid)
    code = process.wait()
    seconds = time.monotonic() - started
    watch.end()
    assert code == 0, code
    cpu, peak, own = sum(watch.cpu_seconds.values()), watch.peak_bytes / 2**30, watch.peak_own_bytes / 2**30
    print(
        f"{num_rows:,} rows, {workers} workers: {seconds:.0f} s, {cpu:.0f} CPU s, {peak:.2f} GiB at most, "
        f"{own:.2f} GiB without pages of files"
    )
    timeline = pa.concat_tables(pq.read_table(path) for path in (folder / name / "state/timeline").glob("*.parquet"))
    for stage, step in (("ingest", "transform"), ("dedupe", "sketch"), ("dedupe", "transform")):
        ended = [
            (row["started"], row["ended"])
            for row in timeline.to_pylist()
            if (row["stage"], row["step"]) == (stage, step)
        ]
        wall = (max(end for _, end in ended) - min(start for start, _ in ended)).total_seconds()
        print(f"  {stage} {step}: {wall:.0f} s, {num_rows / max(wall, 1e-9):,.0f} rows/s")
    load = os.getloadavg()[1]
    print(f"  load of the machine over five minutes: {load:.1f}; this run's own is at most {workers}")
    kinds = json.loads((folder / "kinds.json").read_text())[:num_rows]
    dropped = pa.concat_tables(
        pq.read_table(path, columns=["reason"]) for path in sorted((folder / name / "ledger/dedupe").glob("*.parquet"))
    )
    made = {kind: kinds.count(kind) for kind in REPEATED}
    reasons = dropped["reason"].to_pylist()
    print(f"  made: {made}; dropped: { ({reason: reasons.count(reason) for reason in sorted(set(reasons))}) }")
    digest = hashlib.sha256()
    for path in sorted((folder / name).rglob("*.parquet")):
        if "timeline" not in path.parts:
            digest.update(str(path.relative_to(folder / name)).encode() + hashlib.sha256(path.read_bytes()).digest())
    print(f"  all shards: sha256 {digest.hexdigest()[:16]}", flush=True)


def timed(name: str, num_rows: int, function: Any, *arguments: Any) -> Any:
    gc.collect()  # so that nobody pays for what another left
    started, cpu = time.monotonic(), time.process_time()
    result = function(*arguments)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    print(f"{name:50} {seconds:6.1f} s {cpu:6.1f} CPU s {num_rows / cpu:9,.0f} rows per CPU s", flush=True)
    return result


def libraries(folder: Path, sample: int) -> None:
    """Both ways on the same rows, in one process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import functools

    from datasketch import MinHash, MinHashLSH

    from stillhouse.pipeline import flow
    from stillhouse.schemas.config import Config
    from stillhouse.stages import dedupe
    from stillhouse.stages.ingest import Ingest
    from stillhouse.stages.sources import read_rows
    from stillhouse.stages.text.reading import reading
    from stillhouse.stages.text.shingles import shingles

    config = Config.model_validate(raw_config(folder, "unused", sample, 1))
    count = flow.prompt_counter(config)
    short = functools.partial(count, short=config.max_prompt_tokens)
    timed("ingest, all prompts counted", sample, lambda: list(Ingest(config, count)(read_rows(config.source))))
    tables = timed("ingest", sample, lambda: list(Ingest(config, short)(read_rows(config.source))))
    table = pa.concat_tables(tables).drop_columns(["drop_reason"])
    texts = [turns[0] for turns in table["user_turns"].to_pylist()]
    print(f"characters of a user turn: {sum(map(len, texts)) / len(texts):.0f} on average")

    def plain(said: list[str]) -> int:
        lsh, num = MinHashLSH(threshold=config.dedupe.threshold, num_perm=config.dedupe.num_perm), 0
        for i, text in enumerate(said):
            minhash = MinHash(num_perm=config.dedupe.num_perm, scheme="affine32", hashfunc=zlib.crc32)
            minhash.update_batch(shingles(text, config.dedupe.ngram))
            if lsh.query(minhash):
                num += 1
            else:
                lsh.insert(i, minhash)
        return num

    def as_documented(said: list[str]) -> int:
        """The README's way: no scheme, no batch, a shingle at a time."""
        lsh, num = MinHashLSH(threshold=config.dedupe.threshold, num_perm=config.dedupe.num_perm), 0
        for i, text in enumerate(said):
            minhash, words = MinHash(num_perm=config.dedupe.num_perm), text.split()
            for shingle in {" ".join(words[j : j + 5]) for j in range(max(len(words) - 4, 1))}:
                minhash.update(shingle.encode())
            if lsh.query(minhash):
                num += 1
            else:
                lsh.insert(i, minhash)
        return num

    def ours() -> int:
        sketch = dedupe.Sketch(config.dedupe)
        assignments = dedupe.assign([sketch(table.slice(i, 2000)) for i in range(0, sample, 2000)], config.dedupe)
        return sum(len(part) - part["drop_reason"].null_count for part in assignments)

    part = texts[: sample // 5]
    print("dropped", timed("datasketch as its README has it, words of the text", len(part), as_documented, part))
    said = timed("readings", sample, lambda: [reading(text) for text in texts])
    print("dropped", timed("shingles, datasketch's MinHash and MinHashLSH", sample, plain, said))
    print("dropped", timed("dedupe, readings and shingles included", sample, ours))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "libraries", "screening"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--layers", type=int, default=12, help="of the stand-in for Detoxify")
    arguments = parser.parse_args()
    if not (arguments.folder / "kinds.json").exists():
        make(arguments.folder, arguments.rows)
    if arguments.what == "run":
        run(arguments.folder, arguments.rows, arguments.workers)
    elif arguments.what == "screening":
        from benchmarks.screening import beside

        tables = pq.read_table(arguments.folder / "source" / "train-0.parquet", columns=["conversation"])
        turns = (messages[0]["content"] for messages in tables.column(0).to_pylist())
        texts = list(islice(turns, min(arguments.sample or 512, arguments.rows)))
        print(json.dumps(beside(texts, arguments.workers, arguments.layers), indent=1))
    else:
        libraries(arguments.folder, min(arguments.sample or 20_000, arguments.rows))


if __name__ == "__main__":
    main()
