"""How long answers are, from some that ended and some that were cut: survival analysis, with tokens for time.

An answer that was cut says only that it is at least so long. Kaplan and Meier's estimate (1958) uses that; beyond the
longest answer that was seen nothing is known but `sampling.max_tokens`, and the interval says so.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Z = 1.96
"""Standard errors on each side of an interval that holds the mean 95 times of 100."""


class Lengths(NamedTuple):
    """Tokens of an answer, on average over all answers."""

    mean: float
    """Where no answer was cut the mean; else with what lies beyond the cuts as if answers went on to end at the rate at
    which they did before."""
    low: float
    """As if every answer that was as long as the longest cut ended there; less `Z` standard errors."""
    high: float
    """As if all of them went on to `sampling.max_tokens`; and `Z` standard errors."""
    num_ended: int
    num_cut: int
    share_longer: float
    """Of all answers, those longer than the longest cut; 0 where none was cut."""


def lengths(tokens_N: npt.NDArray[np.int64], is_cut_N: npt.NDArray[np.bool_], max_tokens: int) -> Lengths:
    """Of N answers with so many tokens, of which some were cut there; none gets longer than `max_tokens`.

    Standard errors are Greenwood's, of the area under the survival curve.
    """
    ends_E = np.unique(tokens_N[~is_cut_N])
    ended_E = np.array([(~is_cut_N & (tokens_N == end)).sum() for end in ends_E], np.float64)
    at_risk_E = np.array([(tokens_N >= end).sum() for end in ends_E], np.float64)
    survival_E = np.cumprod(1 - ended_E / at_risk_E)
    longest = float(tokens_N.max())
    beyond = float(survival_E[-1]) if len(ends_E) else 1.0
    edges = np.concatenate([[0.0], ends_E, [longest]])
    areas = np.concatenate([[1.0], survival_E]) * np.diff(edges)
    room = max_tokens - longest if is_cut_N.any() else 0.0
    rate = float(ended_E.sum()) / max(float(tokens_N.sum()), 1.0)
    rest = beyond * (-np.expm1(-rate * room) / rate if rate else room)
    known = float(areas.sum())
    # That the last few who could have been seen longer were not says little: so large a share of them may be (95 %).
    before, last = (float([1.0, *survival_E][-2]), at_risk_E[-1]) if len(ends_E) else (1.0, len(tokens_N))
    at_most = max(beyond, before * (1 - 0.05 ** (1 / last)))
    return Lengths(
        known + rest,
        max(1.0, known - Z * _standard_error(areas, ended_E, at_risk_E)),
        min(
            float(max_tokens),
            known + at_most * room + Z * _standard_error([*areas, at_most * room], ended_E, at_risk_E),
        ),
        int((~is_cut_N).sum()),
        int(is_cut_N.sum()),
        beyond if is_cut_N.any() else 0.0,
    )


def _standard_error(
    areas: npt.NDArray[np.float64] | list[float], ended_E: npt.NDArray[np.float64], at_risk_E: npt.NDArray[np.float64]
) -> float:
    """Of the sum of `areas`: under the survival curve before the first end, after each, and beyond."""
    after_E = np.cumsum(np.asarray(areas)[::-1])[::-1][1 : len(ended_E) + 1]
    left_E = at_risk_E - ended_E
    terms = np.where(left_E > 0, after_E**2 * ended_E / (at_risk_E * np.maximum(left_E, 1)), 0.0)
    return float(np.sqrt(terms.sum()))
