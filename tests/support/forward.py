"""A transformers forward pass over a row: the oracle for what the engine says of a distribution.

Shape legend: T tokens, V vocabulary, S supervised tokens.
"""

from typing import Any

import numpy as np


def forward(row: dict[str, Any], model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [S, V] float32 of each supervised token's own distribution, and the tokens [S]."""
    import torch

    tokens = np.array(row["input_ids"])
    supervised = np.flatnonzero(np.array(row["labels"]) != -100)
    with torch.no_grad():
        logits_TV = model(torch.tensor(tokens[None])).logits[0].float()
    return torch.log_softmax(logits_TV[supervised - 1], dim=-1).numpy(), tokens[supervised]
