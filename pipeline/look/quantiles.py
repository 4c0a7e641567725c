"""Quantiles of a column: one definition for everything that shows some."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
FEW = 20
"""With fewer values there is no 5th percentile to speak of."""


def quantiles(known: NDArray[Any]) -> dict[str, float]:
    """`QUANTILES` of values that are all there, at least one; between two of them on the straight line (NumPy's
    default)."""
    return dict(zip(QUANTILES, np.quantile(known, [*QUANTILES.values()]).tolist(), strict=True))


def shown(num_values: int) -> tuple[str, ...]:
    """Which of `QUANTILES` are shown for so many values."""
    return ("min", "p50", "max") if num_values < FEW else tuple(QUANTILES)


def title(name: str) -> str:
    """A quantile's name for people."""
    return {"p50": "median"}.get(name, f"{name[1:]} %" if name.startswith("p") else name)
