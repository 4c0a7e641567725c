"""Slow (`make test-slow`): every supervised token of 50 real conversations of two turns and more against an independent
forward pass, with the teacher in float32 and in bfloat16.

Shape legend: T tokens, V vocabulary, S supervised tokens, K targets per token.
"""

import asyncio
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.schemas import targets
from stillhouse.schemas.config import Config
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import load_teacher
from stillhouse.stages.teacher.chat import Chat
from tests.support.data import CONVERSATIONS, TEACHER
from tests.support.forward import forward
from tests.support.prompts import prompts

WANTED, ASKED = 50, 230


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def generated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any
) -> tuple[str, pa.Table]:
    """Completions of at least two turns each, by a real engine."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    raw = {
        "run_dir": "unused",
        "source": {"path": "unused"},
        "teacher": {
            "model": str(TEACHER), "dtype": request.param, "max_model_len": 2048,
            "engine": {"enforce_eager": True, "max_num_seqs": 128},
        },
        "sampling": {"max_tokens": 128, "temperature": 0.7, "seed": 3},
        "targets": {"top_k": 64},
    }  # fmt: skip
    conversations = pq.read_table(CONVERSATIONS, columns=["conversation"]).column(0).to_pylist()
    turns = [[m["content"] for m in messages if m["role"] == "user"][:3] for messages in conversations]
    turns = [t for t in turns if len(t) >= 2 and len(t[0]) < 400 and all(t)][:ASKED]
    chat = Chat(tokenizer)
    teacher = load_teacher(Config.model_validate(raw), chat.end_of_turn_ids())
    try:
        table = asyncio.run(Generate(Config.model_validate(raw), chat, teacher)(prompts(turns)))
    finally:
        teacher.shutdown()
    several = pa.array([len(reasons) >= 2 for reasons in table.column("finish_reasons").to_pylist()])
    return request.param, table.filter(several).slice(0, WANTED)


def test_every_supervised_token(generated: tuple[str, pa.Table]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    dtype, table = generated
    assert table.num_rows == WANTED
    exact = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    rounded = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.bfloat16).eval()
    errors: dict[str, list[np.ndarray]] = {"stored": [], "bfloat16": [], "shifted": []}
    wrong_margins: list[np.ndarray] = []
    for row, stored in zip(table.to_pylist(), targets.decode(table), strict=True):
        logprobs_SV, _ = forward(row, exact)
        ids_SK = stored.ids[:, :16].astype(np.int64)
        stored_SK = stored.logprobs[:, :16].astype(np.float32)
        exact_SK = np.take_along_axis(logprobs_SV, ids_SK, axis=1)
        rounded_SK = np.take_along_axis(forward(row, rounded)[0], ids_SK, axis=1)
        errors["stored"].append(np.abs(stored_SK - exact_SK).ravel())
        errors["bfloat16"].append(np.abs(rounded_SK - exact_SK).ravel())
        shifted_SK = np.take_along_axis(logprobs_SV[1:], ids_SK[:-1], axis=1)
        errors["shifted"].append(np.abs(stored_SK[:-1] - shifted_SK).ravel())
        top2 = np.partition(logprobs_SV, -2, axis=1)[:, -2:]
        wrong_margins.append((top2[:, 1] - top2[:, 0])[ids_SK[:, 0] != logprobs_SV.argmax(1)])
    mean = {name: float(np.concatenate(values).mean()) for name, values in errors.items()}
    num_tokens, wrong = sum(len(v) for v in errors["stored"]) // 16, np.concatenate(wrong_margins)
    turns = sum(map(len, table.column("finish_reasons").to_pylist()))
    print(
        f"\nteacher in {dtype}: {table.num_rows} conversations, {turns} turns, {num_tokens} tokens; mean |dlogp| of "
        f"the top 16 against float32: stored {mean['stored']:.5f} nats (transformers in bfloat16 "
        f"{mean['bfloat16']:.5f}), shifted by one {mean['shifted']:.2f} ({mean['shifted'] / mean['stored']:.0f}x); "
        f"top-1 differs at {len(wrong)} tokens, widest margin {max(wrong, default=0.0):.4f} nats"
    )
    if dtype == "float32":
        assert mean["stored"] < 0.005  # what float16 storage rounds off, and the order of summation
        assert max(wrong, default=0.0) < 0.01
    else:
        assert mean["stored"] < 1.25 * mean["bfloat16"]
        assert max(wrong, default=0.0) < 0.5
    assert mean["shifted"] > 20 * mean["stored"]


def test_ids_are_what_the_template_renders(generated: tuple[str, pa.Table], tokenizer: Any) -> None:
    _, table = generated
    for row in table.to_pylist():
        rendered = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert rendered.startswith(tokenizer.decode(row["input_ids"]))
