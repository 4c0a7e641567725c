"""How a run on a cluster scales: a teacher that takes time and no CPU, on virtual GPUs of a head of this machine.

Prints one line of JSON for each measurement. Each needs a folder that it may fill.

    python -m benchmarks.scale_out scale FOLDER [--replicas 1 2 8 32]   answers/s after the start, against one replica
    python -m benchmarks.scale_out tail FOLDER [--replicas 32]          shards that cost 1 to 10, which nobody knows
    python -m benchmarks.scale_out driver FOLDER [--shards 100 10000]   the driver's memory and CPU time a shard

In `scale` and `tail` each replica writes 8 answers at once, and none begins before all have started: on two cores that
takes long. Start is the time until all replicas answer; steady is from then until the first of them has nothing left to
do; to the end is from then until the last answer.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from tests.support.data import ROOT, make_raw_config
from tests.support.nodes import started_head
from tests.support.timed_teacher import NUM_SEATS, idle, spans_of

ROWS_PER_SHARD = 40
SECONDS_OF_ANSWER = 2.0
"""A shard keeps a replica for 10 s."""
PRIORITY = {"RAY_worker_niceness": "0"}
"""Ray's workers yield to all others (15), and this machine may have others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=["scale", "tail", "driver"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--replicas", type=int, nargs="+")
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--steady", type=float, default=60.0, help="seconds that all replicas are to be at work")
    arguments = parser.parse_args()
    if arguments.measurement == "driver":
        for number in arguments.shards:
            print(json.dumps(driver(arguments.folder / f"driver-{number}", number)), flush=True)
        return
    is_tail = arguments.measurement == "tail"
    one = None
    for number in arguments.replicas or ([32] if is_tail else [1, 2, 8, 32]):
        folder = arguments.folder / f"{arguments.measurement}-{number}"
        found = generated(folder, number, arguments.steady, is_unknown=is_tail)
        one = one or found
        if not is_tail:
            for name in ("steady", "to_the_end"):
                each = found[f"{name}_answers_per_s"] / number
                found[f"{name}_of_linear"] = round(each / (one["steady_answers_per_s"] / one["replicas"]), 3)
        print(json.dumps(found), flush=True)


def generated(folder: Path, num_replicas: int, steady_s: float, *, is_unknown: bool) -> dict[str, Any]:
    """A run up to generate with so many replicas, timed by what the teacher has written down."""
    shard_s = ROWS_PER_SHARD / NUM_SEATS * SECONDS_OF_ANSWER
    num_shards = int(num_replicas * steady_s / shard_s)
    workers = {"num_cpus": 0, "num_gpus": 1, "max_workers": num_replicas, "shards_in_flight": 2}
    file = configuration(folder, num_shards, ROWS_PER_SHARD, {"generate": workers})
    command("run", file, "--until", "screen", "--local")
    log = folder / "log"
    log.mkdir()
    timed = {
        "TIMED_TEACHER_LOG": str(log),
        "TIMED_TEACHER_S": str(SECONDS_OF_ANSWER / 5.5 if is_unknown else SECONDS_OF_ANSWER),
        "TIMED_TEACHER_UNKNOWN": "1" if is_unknown else "",
        "TIMED_TEACHER_WAITS_FOR": str(num_replicas),
    }
    gpus = (f"--num-gpus={num_replicas}", "--num-cpus=2")
    with started_head(folder / "head.log", *gpus, **PRIORITY, **timed) as head:
        began = time.time()
        command("run", file, "--until", "generate", **head.driver_environment)
        seconds = time.time() - began
    spans = spans_of(log)
    assert len(spans) == num_replicas, f"{len(spans)} replicas came to work"
    assert sum(len(span) for span in spans) == num_shards * ROWS_PER_SHARD
    all_began = max(span[:, 0].min() for span in spans)
    first_ended, last_ended = (pick(span[:, 1].max() for span in spans) for pick in (min, max))
    return {
        "replicas": num_replicas,
        "shards": num_shards,
        "seconds": round(seconds, 1),
        "start_s": round(all_began - began, 1),
        "steady_s": round(first_ended - all_began, 1),
        "steady_answers_per_s": round(answers(spans, all_began, first_ended) / (first_ended - all_began), 2),
        "to_the_end_s": round(last_ended - all_began, 1),
        "to_the_end_answers_per_s": round(answers(spans, all_began, last_ended) / (last_ended - all_began), 2),
        "under_half_at_work": round(idle(spans, all_began, last_ended), 4),
        "end_s": round(began + seconds - last_ended, 1),
        "load": os.getloadavg()[0],
    }


def answers(spans: list[npt.NDArray[np.float64]], since: float, until: float) -> float:
    """How many were written between two moments; those amid which one is count by their part."""
    of_all = np.concatenate(spans)
    inside = np.clip(np.minimum(of_all[:, 1], until) - np.maximum(of_all[:, 0], since), 0, None)
    return float((inside / (of_all[:, 1] - of_all[:, 0])).sum())


def driver(folder: Path, num_shards: int) -> dict[str, Any]:
    """A run up to dedupe over shards of one row: resident memory (MB) and CPU time of its driver while they come."""
    file = configuration(folder, num_shards, 1, {})
    seconds, cpu, sizes = dict[str, float](), dict[str, float](), dict[str, list[int]]()
    with started_head(folder / "head.log", "--num-cpus=2", **PRIORITY) as head:
        process = started("run", file, "--until", "dedupe", **head.driver_environment)
        step, began, used = "ingest", time.monotonic(), 0.0
        for line in lines(process):
            if ".parquet:" not in line:
                continue
            name = line.partition(".parquet:")[0].rpartition(" ")[0]
            if name != step:
                step, began, used = name, time.monotonic(), cpu_seconds(process.pid)
            seconds[step], cpu[step] = time.monotonic() - began, cpu_seconds(process.pid) - used
            of_step = sizes.setdefault(step, [])
            of_step.append(megabytes(process.pid))
            if len(of_step) % 1000 == 0:
                print(f"{step}: {len(of_step)} shards, {of_step[-1]} MB, {seconds[step]:.0f} s", file=sys.stderr)
        assert process.wait() == 0
    return {
        "shards": num_shards,
        "driver_mb": {
            step: {str(n): found[n - 1] for n in (1, 100, 1000, 10_000) if n <= len(found)}
            for step, found in sizes.items()
        },
        "ms_a_shard": {step: round(1000 * taken / num_shards, 2) for step, taken in seconds.items()},
        "driver_cpu_ms_a_shard": {step: round(1000 * taken / num_shards, 2) for step, taken in cpu.items()},
        "load": os.getloadavg()[0],
    }


def megabytes(pid: int) -> int:
    """Resident memory of a process."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) // 1024


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def configuration(folder: Path, num_shards: int, rows_per_shard: int, resources: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    raw = make_raw_config(folder)
    source = folder / "source.jsonl"
    with source.open("w") as file:
        for number in range(num_shards * rows_per_shard):
            said = [{"role": "user", "content": f"What is {number} times {number}?"}]
            file.write(json.dumps({"conversation_id": f"id-{number}", "conversation": said}) + "\n")
    raw |= {
        "source": {"path": str(source), "name": "numbers"},
        "ingest": {"rows_per_shard": rows_per_shard},
        "dedupe": {"threshold": 1.0},
        "screen": {"classifiers": []},
        "resources": resources,
    }
    raw["teacher"]["backend"] = "tests.support.timed_teacher:TimedTeacher"
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def started(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "stillhouse", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    assert process.stderr is not None
    yield from process.stderr


def command(*arguments: object, **environment: str) -> None:
    process = started(*arguments, **environment)
    said = [*lines(process)]
    assert process.wait() == 0, "".join(said[-20:])


if __name__ == "__main__":
    main()
