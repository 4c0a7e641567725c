"""Whole runs with the real engine on a GPU, in both of vLLM's model runners, against transformers in float32.

Shape legend: S supervised tokens, V vocabulary, K targets per token.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.schemas import targets
from tests.support.data import ROOT, TEACHER, make_raw_config
from tests.support.forward import exact_model, fit, forward, whole_distributions
from tests.support.scoring import make_raw_score_config

NUM_DRAWS = 64
CASES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "V2 bfloat16 graphs": ("1", "bfloat16", {}, "generate"),
    "V1 bfloat16 graphs": ("0", "bfloat16", {}, "generate"),
    "V2 float32 eager": ("1", "float32", {"enforce_eager": True}, "generate"),
    "V1 float32 eager": ("0", "float32", {"enforce_eager": True}, "generate"),
    "V2 bfloat16 graphs, scored": ("1", "bfloat16", {}, "score"),
    "V2 float32 eager, scored": ("1", "float32", {"enforce_eager": True}, "score"),
    "V1 float32 eager, scored": ("0", "float32", {"enforce_eager": True}, "score"),
    "two GPUs, tensor parallel": ("1", "float32", {"tensor_parallel_size": 2}, "generate"),
    "two GPUs, pipeline parallel by Ray": (
        "1",
        "float32",
        {"pipeline_parallel_size": 2, "distributed_executor_backend": "ray"},
        "generate",
    ),
}


class Published(NamedTuple):
    dtype: str
    table: pa.Table
    model: Path


def model_of_even_shape(folder: Path) -> Path:
    """A small Llama with random weights and the quick start's tokenizer, whose 9 heads two GPUs cannot share."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=49152, hidden_size=512, intermediate_size=1024, num_hidden_layers=4,
                        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=2048,
                        initializer_range=0.1, bos_token_id=1, eos_token_id=2)  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    for file in TEACHER.glob("*token*"):
        shutil.copy(file, folder)
    for file in TEACHER.glob("chat_template*"):
        shutil.copy(file, folder)
    return folder


def command(*arguments: str) -> dict[str, Any]:
    finished = subprocess.run(
        [sys.executable, "-m", "stillhouse", *arguments, "--json"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, f"{arguments[0]} ends with {finished.returncode}: {finished.stderr[-6000:]}"
    return json.loads(finished.stdout)


# A group each: otherwise two processes would make the same run.
@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CASES])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The rows of a run with `targets.method` both; one worker with the GPU, or with two."""
    import torch

    runner, dtype, engine, task = CASES[request.param]
    num_gpus = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
    if torch.cuda.device_count() < num_gpus:
        pytest.skip(f"torch sees fewer than {num_gpus} GPUs here")
    folder = tmp_path_factory.mktemp("run")
    raw = make_raw_config(folder) if task == "generate" else make_raw_score_config(folder, cut_long=True)
    model = TEACHER if num_gpus == 1 else model_of_even_shape(folder / "model")
    raw["teacher"] = {
        "model": str(model),
        "dtype": dtype,
        "max_model_len": 1024,
        # So little that all cases fit on one GPU at once.
        "engine": {"max_num_seqs": 64, "kv_cache_memory_bytes": 4 << 30, "gpu_memory_utilization": 0.2, **engine},
        "env": {"VLLM_USE_V2_MODEL_RUNNER": runner},
    }
    raw["ingest"] |= {"turns": "all"}
    if task == "generate":
        raw["sampling"] = {"max_tokens": 64, "temperature": 1.0, "seed": 5}
    raw["targets"] = {"method": "both", "top_k": 64, "num_draws": NUM_DRAWS, "probe_fraction": 0.2}
    raw["review"] |= {"drop_truncated": False}
    raw["resources"] = {task: {"num_gpus": num_gpus, "max_workers": 1, "shards_in_flight": 4}}
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(raw))
    command("run", str(file), *([] if "distributed_executor_backend" in engine else ["--local"]))
    command("verify", str(folder / "run"))
    files = sorted((Path(raw["run_dir"]) / "dataset/data").glob("*.parquet"))
    return Published(dtype, pa.concat_tables([pq.read_table(file) for file in files]), model)


def test_targets_are_those_of_a_forward_pass(published: Published) -> None:
    dtype, table, folder = published
    model = exact_model("cuda", folder)
    errors, written, shifted, tails = [], [], [], []
    for row, stored in zip(table.to_pylist()[:40], targets.decode(table), strict=False):
        logprobs_SV, tokens_S = forward(row, model)
        ids_SK = stored.ids.astype(np.int64)
        stored_SK = stored.logprobs.astype(np.float32)
        exact_SK = np.take_along_axis(logprobs_SV, ids_SK, axis=1)
        errors.append(np.abs(stored_SK - exact_SK)[:, :16].ravel())
        exact_next_SK = np.take_along_axis(logprobs_SV[1:], ids_SK[:-1], axis=1)
        shifted.append(np.abs(stored_SK[:-1] - exact_next_SK)[:, :16].ravel())
        written.append(np.abs(np.array(row["token_logprobs"]) - logprobs_SV[np.arange(len(tokens_S)), tokens_S]))
        tails.append(np.abs(np.exp(stored.tail.astype(np.float64)) - (1 - np.exp(exact_SK).sum(axis=1))))
    mean = {
        name: float(np.concatenate(values).mean())
        for name, values in {"stored": errors, "written": written, "tail": tails, "shifted": shifted}.items()
    }
    print(f"\n{dtype}: {table.num_rows} rows, mean |dlogp| in nats: {mean}")
    limit = 0.005 if dtype == "float32" else 0.1
    assert mean["stored"] < limit
    assert mean["written"] < limit
    assert mean["tail"] < limit
    assert mean["shifted"] > 20 * mean["stored"]


def test_draws_fit_the_whole_distribution(published: Published) -> None:
    """Exactly in float32; in bfloat16 the engine's distribution is another, so only the shift by one must show."""
    dtype, table, folder = published
    p_SV, counts_SV = whole_distributions(table, NUM_DRAWS, 2000, exact_model("cuda", folder))
    found, shifted = fit(p_SV, counts_SV), fit(p_SV[1:], counts_SV[:-1])
    print(f"\n{dtype}: {len(p_SV)} tokens x {NUM_DRAWS} draws, chi-square p {found}, shifted {shifted}")
    # In bfloat16 the engine's distribution is a little another than the float32 one asked here, which 2,000 tokens do
    # not show (p 0.31 and 0.80 on an H200).
    assert min(found) > 1e-3
    # Of what has next to no mass, no more is drawn than that mass.
    rare = p_SV < 1e-7
    wanted = float((p_SV * rare).sum()) * NUM_DRAWS
    assert float((counts_SV * rare).sum()) < wanted + 5 * max(wanted, 1.0) ** 0.5
    assert min(shifted) < 1e-6
