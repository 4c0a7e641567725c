"""Tinker 0.38.0: its `Datum`; the loss, which runs on its servers, is `cross_entropy`: minus the sum of weight times
log-probability."""

from typing import Any

import pytest
import tinker
import torch
from conftest import SHIFTED, mean_log_mass, reference, rows, step, teacher


def datums(kind: str, shift: int = 0) -> list[tinker.Datum]:
    found = []
    for row in rows(kind, "tinker"):
        columns = {name: torch.tensor(row[name]).roll(shift, dims=0) for name in ("target_tokens", "weights")}
        found.append(tinker.Datum(model_input=tinker.ModelInput.from_ints(row["input_ids"]), loss_fn_inputs=columns))
    return found


def loss(model: Any, data: list[tinker.Datum]) -> torch.Tensor:
    """Cross-entropy less the entropy of the weights: KL(weights || student) per supervised token."""
    total, count = torch.tensor(0.0), 0
    for datum in data:
        logprobs = torch.log_softmax(model(torch.tensor([datum.model_input.to_ints()])).logits[0], dim=-1)
        tokens = datum.loss_fn_inputs["target_tokens"].to_torch()
        weights = datum.loss_fn_inputs["weights"].to_torch()
        assert tokens.shape == weights.shape
        assert len(tokens) == len(logprobs)
        total = total - (weights * logprobs.gather(1, tokens)).sum() - torch.special.entr(weights).sum()
        count += int(weights.any(dim=1).sum())
    return total / count


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_the_teacher_loses_what_it_must_and_shifted_rows_more(kind: str) -> None:
    """Of sampled targets their scatter; of the top K, renormalised, minus the mean logarithm of their mass."""
    must = reference("sampled") if kind == "sampled" else -mean_log_mass()
    with torch.no_grad():
        right = float(loss(teacher(), datums(kind)))
        assert right == pytest.approx(must, abs=0.03)
        for shift in (1, -1):
            assert float(loss(teacher(), datums(kind, shift))) > right + SHIFTED


def test_a_step(tiny: Any) -> None:
    data = datums("sampled")
    step(tiny, lambda: loss(tiny, data))
