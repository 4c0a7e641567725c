"""Distributions behind given tokens, on the driver's side: what is asked of the engine, and what came of it.

The engine's side is `scores_in_engine`.

Shape legend: T tokens of a conversation, S supervised tokens, V vocabulary, K targets kept per token, D draws per
token, Q more ids asked about per token.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.stages.teacher import Answer
from stillhouse.stages.teacher.draws import check_draws, whole_distribution

SCORED = "stillhouse_scored"
"""Key of a request's `extra_args` that holds a `Scored`, as a plain tuple."""
TOKENS_PER_PROBE = 128
"""A conversation of so many supervised tokens is probed with the chance `targets.probe_fraction`; so each token of each
conversation has the same one, as long as the conversation's is below 1."""


class Scored(NamedTuple):
    """What the driver asks the engine to keep for one conversation."""

    name: str
    seed: int
    probed: int  # number of the supervised token to probe, -1 for none
    num_draws: int
    top_k: int
    entropy: bool
    rows: bytes  # int32 [S], ascending: the place of the token before each supervised one, whose output predicts it
    tokens: bytes  # int32 [S]: the supervised tokens
    asked_ids: bytes  # int32 [S, Q]: more ids for each of them


class Part(NamedTuple):
    """What one of the engine's processes kept of a conversation, as bytes."""

    numbers: bytes  # int32 [n]: which supervised tokens these are
    target_ids: bytes  # int32 [n, K]
    target_logprobs: bytes  # float32 [n, K]
    token_logprobs: bytes  # float32 [n]
    draws: bytes  # int32 [n, D]
    asked_logprobs: bytes  # float32 [n, Q]
    entropies: bytes  # float32 [n], or none
    probe: bytes  # float32 [V]: log-probabilities of the probed token


def probed_of(seed: int, fraction: float, num_tokens: int) -> int:
    """Which of a conversation's supervised tokens to probe, or -1 for most conversations."""
    random = np.random.default_rng([seed, num_tokens])
    number = int(random.integers(num_tokens))
    return number if random.random() < fraction * num_tokens / TOKENS_PER_PROBE else -1


def scored_answer(parts: list[Part], asked: Scored) -> Answer:
    """The `Answer` that a conversation's parts make. Of a token that came twice (after preemption) the last counts.

    Raises RuntimeError when a supervised token is missing.
    """
    token_ids = np.frombuffer(asked.tokens, np.int32)
    S, K, D = len(token_ids), asked.top_k, asked.num_draws
    ids_SK, logprobs_SK = np.zeros((S, K), np.int32), np.zeros((S, K), np.float32)
    own_S, draws_SD = np.zeros(S, np.float32), np.zeros((S, D), np.int32)
    entropies_SE = np.zeros((S, int(asked.entropy)), np.float32)
    asked_SQ = np.zeros((S, len(asked.asked_ids) // len(asked.tokens)), np.float32)
    is_there_S = np.zeros(S, np.bool_)
    probe = None
    for part in parts:
        numbers = np.frombuffer(part.numbers, np.int32)
        for kept, values in (
            (ids_SK, np.frombuffer(part.target_ids, np.int32)),
            (logprobs_SK, np.frombuffer(part.target_logprobs, np.float32)),
            (own_S, np.frombuffer(part.token_logprobs, np.float32)),
            (draws_SD, np.frombuffer(part.draws, np.int32)),
            (entropies_SE, np.frombuffer(part.entropies, np.float32)),
            (asked_SQ, np.frombuffer(part.asked_logprobs, np.float32)),
        ):
            kept[numbers] = values.reshape(len(numbers), *kept.shape[1:])
        is_there_S[numbers] = True
        if part.probe:
            probe = (asked.probed, whole_distribution(part.probe))
    if missing := int((~is_there_S).sum()):
        raise RuntimeError(
            f"teacher: the engine told no distribution of {missing} of {S} tokens; this vLLM prefills otherwise than "
            "0.32, so install that one and report this"
        )
    if D:
        check_draws(draws_SD, token_ids, own_S)
    draws, more_SQ = draws_SD if D else None, asked_SQ if asked_SQ.size else None
    entropies_S = entropies_SE[:, 0] if asked.entropy else None
    return Answer(token_ids, ids_SK, logprobs_SK, own_S, "given", draws, probe, more_SQ, entropies_S)


def request_of(
    name: str,
    token_ids: npt.NDArray[np.int32],
    supervised: npt.NDArray[np.bool_],
    seed: int,
    probe_fraction: float,
    num_draws: int,
    top_k: int,
    asked_ids: npt.NDArray[np.int32] | None = None,
    entropy: bool = False,
) -> Scored:
    """What is asked about those of `token_ids` [T] that `supervised` [T] marks, and about `asked_ids` [S, Q] at each.
    Raises ValueError where these are none, or the first token is one."""
    places = np.flatnonzero(supervised).astype(np.int32)
    if not len(places) or places[0] == 0:
        raise ValueError("score: give at least one supervised token, and not the first, which nothing predicts")
    return Scored(
        name,
        seed,
        probed_of(seed, probe_fraction, len(places)),
        num_draws,
        top_k,
        entropy,
        (places - 1).tobytes(),
        token_ids[places].astype(np.int32).tobytes(),
        b"" if asked_ids is None else asked_ids.astype(np.int32).tobytes(),
    )
