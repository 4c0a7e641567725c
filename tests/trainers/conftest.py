"""What `make test-trainers` made in the main environment: a dataset of a real teacher's targets (top-K and draws beside
each other), its exports, and the teacher's weights. The tests run in an environment that holds the trainers and
`stillhouse_targets`, and nothing else of this project.

Each trainer's own collator and loss must say of its export: a student that is the teacher loses about nothing, rows
shifted by one token lose much, and a step of an optimiser goes through.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_DISABLED"] = "true"
ROOT = Path(__file__).parents[2]
MADE = ROOT / "data/trainers"
TEACHER = ROOT / "data/quickstart/SmolLM2-135M-Instruct"
NUM_ROWS = 6
NOISE = 0.03
"""Nats per token that a float32 student may differ from a teacher that ran in bfloat16 (docs/generation.md)."""
SHIFTED = 1.0
"""Nats per token that rows shifted by one token lose at least."""


def manifest(kind: str, layout: str) -> dict[str, Any]:
    return json.loads((MADE / kind / layout / "manifest.json").read_text())


def rows(kind: str, layout: str, num_rows: int = NUM_ROWS) -> list[dict[str, Any]]:
    """The first rows of an export, as `datasets` loads the folder."""
    import datasets

    loaded = datasets.load_dataset(str(MADE / kind / layout), split="train")
    return [loaded[n] for n in range(num_rows)]


@cache
def published() -> list[dict[str, Any]]:
    """The first rows of the dataset that the exports were made of, with their `Targets` of both kinds."""
    import pyarrow.parquet as pq
    from stillhouse_targets import decode

    table = pq.read_table(sorted((MADE / "run/dataset/data").glob("*.parquet"))[0]).slice(0, NUM_ROWS)
    return [
        row | {"top_k": top_k, "sampled": sampled}
        for row, top_k, sampled in zip(table.to_pylist(), decode(table, "target"), decode(table, "draw"), strict=True)
    ]


@cache
def teacher() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TEACHER)


@cache
def reference(kind: str) -> float:
    """Mean over supervised tokens of the sum of p (log p - log q) over a token's targets p, q the teacher's own
    probability in float32: about 0 for the top K, the scatter of the draws for sampled targets."""
    total, count = 0.0, 0
    for row in published():
        with torch.no_grad():
            logprobs_TV = torch.log_softmax(teacher()(torch.tensor([row["input_ids"]])).logits[0].double(), dim=-1)
        before = torch.tensor([t - 1 for t, label in enumerate(row["labels"]) if label != -100])
        p_log = torch.tensor(row[kind].logprobs).double()
        q_log = logprobs_TV[before].gather(1, torch.tensor(row[kind].ids).long())
        terms = torch.where(p_log > -torch.inf, p_log.exp() * (p_log - q_log), 0.0)
        total, count = total + float(terms.sum()), count + len(before)
    return total / count


@cache
def mean_log_mass() -> float:
    """Mean over supervised tokens of the logarithm of the mass that the top K hold."""
    masses = torch.cat([torch.tensor(row["top_k"].logprobs).double().exp().sum(1) for row in published()])
    return float(masses.log().mean())


@pytest.fixture
def tiny() -> Any:
    """A student of random weights with the teacher's vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=49152, num_key_value_heads=2, **size))


def step(model: Any, loss: Any) -> None:
    """One optimiser step on `loss()`, which must be finite and fall."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = loss()
    assert torch.isfinite(first)
    first.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    optimizer.step()
    with torch.no_grad():
        assert loss() < first
