"""Do rows belong to their tokens? Judged on the numbers, where nothing exact is at hand.

Two tests, both by bounds and not by approximations: on right data they raise an alarm at most as often as stated.

- `own_token`, `is_misaligned`: tokens drawn from their rows are seldom outside of them or far down, and others' tokens
  mostly are. The ratio of both likelihoods exceeds x with a probability of at most 1/x (Ville 1939). And a token drawn
  from a distribution q has on average the probability sum q^2 there; the bound is Bernstein's for martingales
  (Freedman 1975). At a lower temperature tokens are more probable than that, so an alarm means the same at every
  temperature up to 1, and with top-p, top-k and min-p.
- `rarity`, `are_rare`: draws hold the token written as often as its log-probability says. The bound is Chernoff's.

Shape legend: S rows (supervised tokens), K targets per row.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.layouts.records import Conversation

LOG_ROW = float(np.log(1e9))
"""A right conversation, file or export is taken for a wrong one at most once in 1e9."""
LOG_TOKEN = float(np.log(1e12))
"""The same for a single token."""
MIN_TOKENS = 100
"""With fewer supervised tokens than these, rows are not compared with their neighbours: those might win by chance."""
ROUNDING = 2e-3
"""What float16's rounding of K log-probabilities may take from the mass outside of them."""
SLACK = 0.01
"""Of an expectation: what the arithmetic of an engine may be off."""


def own_token(row: Conversation, *, is_draws: bool, is_normalised: bool) -> npt.NDArray[np.float64]:
    """Sums over the rows of a conversation: the probability that its own token is expected to have at least, the
    variance of that, the probability that it has; the evidence that own tokens are others', a logarithm of a ratio of
    likelihoods.

    With `is_draws` `probs` are frequencies of draws, whose squares are too large by chance; with `is_normalised` they
    were divided by their sum, which is taken to be at least a half on average. Draws give no such evidence: too many
    tokens are never drawn.
    """
    probs_SK = row.probs
    found_S = given_to_own(row)
    square_S, cube_S = (probs_SK**2).sum(axis=1), (probs_SK**3).sum(axis=1)
    evidence = 0.0
    width_S = np.maximum((probs_SK > 0).sum(axis=1), 1)
    if is_draws:
        smallest = probs_SK[probs_SK > 0].min(initial=1.0)
        num_draws = max(1.0 / smallest, 2.0)  # or fewer than there were, which expects less
        square_S = np.clip((num_draws * square_S - 1) / (num_draws - 1), 0.0, 1.0)
        variance_S = 2 * np.maximum(square_S * (1 - square_S), 1 / num_draws)
    elif is_normalised:
        # With a mass M in the row the variance is M cube - (M square)^2; the M that makes it largest:
        mass_S = np.clip(cube_S / (2 * square_S**2), 0.5, 1.0)
        square_S, variance_S = square_S / 2, mass_S * cube_S - (mass_S * square_S) ** 2
        evidence = float(-np.log((width_S * found_S)[found_S > 0]).sum())  # inside alone: the tail is not known
    else:
        variance_S = np.maximum(cube_S - square_S**2, 0.0)
        tail_S = np.clip(1 - probs_SK.sum(axis=1), 0.0, 1.0) + ROUNDING
        # Others' tokens are taken to be outside half of the time, or as often as right ones where that is more, and
        # anywhere in the row else. Capped, so that no token says more than one outside, whatever the temperature.
        others_S = np.clip(tail_S, 0.5, 1.0)
        outside_S = np.log(others_S / tail_S)
        within_S = (1 - others_S) / width_S
        inside_S = np.log(np.maximum(within_S, 1e-30) / np.where(found_S > 0, found_S, 1.0))
        evidence = float(np.where(found_S > 0, np.minimum(inside_S, outside_S), outside_S).sum())
    return np.array([square_S.sum() * (1 - SLACK), variance_S.sum(), found_S.sum(), evidence])


def is_misaligned(surplus: npt.NDArray[np.float64]) -> bool:
    """Whether a sum of `own_token` is too low for rows that belong to their tokens."""
    expected, variance, found, evidence = surplus.tolist()
    missing = expected - found
    is_low = missing > 0 and missing**2 > 2 * (LOG_ROW + np.log(2)) * (variance + missing / 3)
    return bool(is_low or evidence > LOG_ROW + np.log(2))


def rarity(counts_S: npt.NDArray[np.float64], probs_S: npt.NDArray[np.float64], num_draws: int) -> npt.NDArray[Any]:
    """[S] how rare it is to draw a token as seldom as `counts_S` times in `num_draws` draws with probability `probs_S`:
    minus the logarithm of Chernoff's bound, at least 0, and above x with a probability of at most exp(-x)."""
    probs_S = np.clip(probs_S, 1e-9, 1.0) * (1 - SLACK)
    found_S = counts_S / num_draws
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn_S = np.where(found_S > 0, found_S * np.log(found_S / probs_S), 0.0)
        others_S = np.where(found_S < 1, (1 - found_S) * np.log((1 - found_S) / (1 - probs_S)), 0.0)
    return np.where(found_S < probs_S, num_draws * (drawn_S + others_S), 0.0)


def are_rare(rarities_S: npt.NDArray[np.float64]) -> bool:
    """Whether `rarity` of the tokens of a row or file is more than chance gives: their sum is at most that of as many
    exponential variables, whose tail has Chernoff's bound too."""
    S, total = len(rarities_S), float(rarities_S.sum())
    return bool(S and total > S and total - S - S * np.log(total / S) > LOG_ROW)


def given_to_own(row: Conversation, shift: int = 0) -> npt.NDArray[np.float64]:
    """[S] the probability that each row gives to the token which it is to predict, or `shift` tokens further; 0 where
    there is none."""
    at = np.flatnonzero(row.is_row) + 1 + shift
    is_inside = (at >= 0) & (at < len(row.input_ids))
    tokens = np.where(is_inside, row.input_ids[np.clip(at, 0, len(row.input_ids) - 1)], IGNORE_INDEX)
    return np.asarray((row.probs * (row.ids == tokens[:, None])).sum(axis=1))


def tried_shifted(row: Conversation) -> tuple[npt.NDArray[np.float64], int]:
    """Sums of what rows give to the tokens before, at and after the one that they are to predict, and of how many."""
    sums = [given_to_own(row, shift).sum() for shift in (-1, 0, 1)]
    return np.array(sums), int(row.is_row.sum())
