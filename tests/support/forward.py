"""A transformers forward pass over a row: the oracle for what the engine says of a distribution.

Shape legend: T tokens, V vocabulary, S supervised tokens, D draws per token.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import chisquare

from stillhouse.schemas import targets
from stillhouse.schemas.tables import IGNORE_INDEX
from tests.support.data import TEACHER


def exact_model(device: str = "cpu", folder: Path = TEACHER) -> Any:
    """The quick start's teacher in float32, or another."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)


def forward(row: dict[str, Any], model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [S, V] float32 of each supervised token's own distribution, and the tokens [S]."""
    import torch

    tokens = np.array(row["input_ids"])
    supervised = np.flatnonzero(np.array(row["labels"]) != IGNORE_INDEX)
    with torch.no_grad():  # the output layer is most of the work, and only these positions need it
        kept = torch.tensor(supervised - 1, device=model.device)
        logits_SV = model(torch.tensor(tokens[None], device=model.device), logits_to_keep=kept).logits[0].float()
    return torch.log_softmax(logits_SV, dim=-1).cpu().numpy(), tokens[supervised]


def whole_distributions(
    generated: pa.Table, num_draws: int, limit: int, model: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The full distributions of the first `limit` tokens by transformers in float32 [S, V], and the counts of their
    draws."""
    model = exact_model() if model is None else model
    p, counts, total = [], [], 0
    for row, drawn in zip(generated.to_pylist(), targets.decode(generated, "draw"), strict=True):
        logprobs_SV, _ = forward(row, model)
        counts_SV = np.zeros(logprobs_SV.shape, dtype=np.int32)
        kept = drawn.logprobs > -np.inf
        tokens = np.broadcast_to(np.arange(len(kept))[:, None], kept.shape)[kept]
        counts_SV[tokens, drawn.ids[kept]] = np.round(np.exp(drawn.logprobs[kept]) * num_draws)
        assert (counts_SV.sum(axis=1) == num_draws).all()
        p.append(np.exp(logprobs_SV))
        counts.append(counts_SV)
        total += len(logprobs_SV)
        if total >= limit:
            break
    return np.concatenate(p)[:limit], np.concatenate(counts)[:limit]


def entropy_errors(table: pa.Table, limit: int, model: Any = None) -> tuple[float, float]:
    """Mean difference in nats of `teacher_entropy` of the first `limit` tokens or so from the entropies that
    transformers gives, in float64; and from those of the tokens after."""
    model = exact_model() if model is None else model
    own, shifted, total = [], [], 0
    for row in table.to_pylist():
        logprobs_SV = forward(row, model)[0].astype(np.float64)
        entropies_S = -(np.exp(logprobs_SV) * logprobs_SV).sum(axis=1)
        told_S = np.array(row["teacher_entropy"])
        assert told_S.shape == entropies_S.shape
        own.append(np.abs(told_S - entropies_S))
        shifted.append(np.abs(told_S[:-1] - entropies_S[1:]))
        total += len(told_S)
        if total >= limit:
            break
    return float(np.concatenate(own).mean()), float(np.concatenate(shifted).mean())


def fit(p_SV: np.ndarray, counts_SV: np.ndarray) -> tuple[float, float]:
    """p-values of chi-square over all tokens, with the tokens of the vocabulary pooled by rank and by id."""
    V = p_SV.shape[1]
    num_draws_S = counts_SV.sum(axis=1).astype(np.float32)
    edges = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096]
    # Sorted at the edges, and between them only grouped: much cheaper than an order of all.
    grouped_SV = -np.partition(-p_SV, edges, axis=1)
    rows, ids = np.nonzero(counts_SV)
    group = (p_SV[rows, ids][:, None] <= grouped_SV[:, edges][rows]).sum(axis=1)
    by_rank = (
        np.add.reduceat(num_draws_S @ grouped_SV, [0, *edges]),
        np.bincount(group, weights=counts_SV[rows, ids], minlength=len(edges) + 1),
    )
    wanted_V, seen_V = num_draws_S @ p_SV, counts_SV.sum(axis=0)
    by_id = tuple(np.bincount(np.arange(V) % 97, weights=pooled_V) for pooled_V in (wanted_V, seen_V))
    return tuple(_chi_square(wanted, seen) for wanted, seen in (by_rank, by_id))  # type: ignore[return-value]


def _chi_square(wanted: np.ndarray, seen: np.ndarray) -> float:
    wanted = wanted.astype(np.float64)
    return float(chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue)
