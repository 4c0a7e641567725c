"""verl 0.9.1: its forward KL over the top K, and its slicing of responses."""

from typing import Any

import pytest
import torch
from conftest import NOISE, SHIFTED, reference, rows, step, teacher
from tensordict import TensorDict
from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk
from verl.workers.config import DistillationConfig, DistillationLossConfig
from verl.workers.utils.padding import no_padding_2_padding


def nested(values: list[Any]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(value) for value in values], layout=torch.jagged)


def loss(model: Any, kind: str, shift: int = 0, num_rows: int = 4) -> torch.Tensor:
    """Mean over the tokens that `response_mask` marks."""
    records = rows(kind, "verl", num_rows)
    for row in records:
        for name in ("teacher_ids", "teacher_logprobs"):
            row[name] = row[name][-shift:] + row[name][:-shift] if shift else row[name]
    data = TensorDict(
        {name: nested([row[name] for row in records]) for name in ("prompts", "responses")}, batch_size=len(records)
    )
    logits = torch.cat([model(torch.tensor([row["prompts"] + row["responses"]])).logits[0] for row in records])
    settings = DistillationLossConfig(
        loss_mode="forward_kl_topk", topk=len(records[0]["teacher_ids"][0]), use_policy_gradient=False,
        log_prob_min_clamp=None,
    )  # fmt: skip
    config = DistillationConfig(distillation_loss=settings)
    outputs = compute_forward_kl_topk(
        logits.unsqueeze(0),
        nested([row["teacher_logprobs"] for row in records]),
        nested([row["teacher_ids"] for row in records]).long(),
        config,
        "thd",
    )
    losses = no_padding_2_padding(outputs["distillation_losses"].squeeze(0), data)
    mask = nested([row["response_mask"] for row in records]).to_padded_tensor(0)
    return (losses * mask).sum() / mask.sum()


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_the_teacher_loses_nothing_and_shifted_rows_much(kind: str) -> None:
    with torch.no_grad():
        right = float(loss(teacher(), kind, num_rows=6))
        assert right == pytest.approx(reference(kind), abs=1e-3)
        assert kind == "sampled" or abs(right) < NOISE
        for shift in (1, -1):
            assert float(loss(teacher(), kind, shift, num_rows=6)) > right + SHIFTED


def test_a_step(tiny: Any) -> None:
    step(tiny, lambda: loss(tiny, "top_k"))
