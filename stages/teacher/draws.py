"""Draws from the teacher's distribution, on the driver's side: what is asked of the engine, and what came of it.

The engine's side is `draws_in_engine`.

Shape legend: S tokens written, V vocabulary, K targets kept per token, D draws per token.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import Config, TargetsConfig
from stillhouse.stages.teacher import Answer

REQUEST = "stillhouse"
"""Key of a request's `extra_args` that holds a `Request`, as a plain tuple."""


class Request(NamedTuple):
    """What the driver asks the engine to keep for one answer."""

    name: str
    seed: int
    probed: int  # number of the token to probe, -1 for none
    num_draws: int  # 0: none
    entropy: bool = False


def num_top_k(targets: TargetsConfig) -> int:
    """How many of the most probable tokens the engine must return; 0 when only its draws are kept."""
    return 0 if targets.method == "sampled" and targets.draws_from == "engine" else targets.top_k


def num_engine_draws(targets: TargetsConfig) -> int:
    """Draws per token that the engine takes; 0 when none are kept or they are taken from its top K."""
    return targets.num_draws if targets.method != "top_k" and targets.draws_from == "engine" else 0


def uses_draws(config: Config) -> bool:
    """Whether the engine needs `draws_in_engine`, for draws or for probes."""
    if "speculative_config" in config.teacher.engine:  # vLLM runs no logits processors then; the config refused draws
        return False
    return bool(num_engine_draws(config.targets) or config.targets.probe_fraction or config.targets.has_entropy)


def probed_token(seed: int, fraction: float, max_tokens: int) -> int:
    """Which token of an answer to probe, or -1 for most answers. It may lie beyond the answer's end: so every token of
    every answer has the same chance."""
    random = np.random.default_rng([seed, max_tokens])
    return int(random.integers(max_tokens)) if random.random() < fraction else -1


def join_draws(parts: list[bytes], num_tokens: int, num_draws: int) -> npt.NDArray[np.int32]:
    """An answer's draws [S, D], joined from what each worker saw of it (`DrawBuffer.take`).

    The engine may have begun a token more before it heard that the answer ended. Raises RuntimeError when a token of
    the answer has no draws.
    """
    draws_SD = np.full((num_tokens, num_draws), -1, dtype=np.int32)
    for part in parts:
        seen = np.frombuffer(part, dtype=np.int32).reshape(-1, num_draws)[:num_tokens]
        draws_SD[: len(seen)] = np.where(seen >= 0, seen, draws_SD[: len(seen)])
    missing = int((draws_SD < 0).any(axis=1).sum())
    if missing:
        raise RuntimeError(
            f"teacher: {missing} of an answer's {num_tokens} tokens have no draws; this vLLM calls logits processors "
            "otherwise than 0.32, so install that one or set targets.draws_from to top_k"
        )
    return draws_SD


def check_draws(
    draws_SD: npt.NDArray[np.int32], token_ids: npt.NDArray[np.int32], token_logprobs: npt.NDArray[np.float32]
) -> None:
    """Raises RuntimeError when the draws do not belong to the tokens, such as when they are shifted by one.

    vLLM reports the probability of every token written by another path. The token must be among the draws of its row
    that often, within 10 standard deviations.
    """
    num_draws = draws_SD.shape[1]
    p = np.exp(token_logprobs.astype(np.float64))
    expected, drawn = p.sum(), float((draws_SD == token_ids[:, None]).sum()) / num_draws
    deviation = np.sqrt(((p * (1 - p)).sum() + 1.0) / num_draws)
    if abs(drawn - expected) > 10 * deviation:
        raise RuntimeError(
            f"teacher: of {len(token_ids)} tokens written {drawn:.1f} are among their own draws where {expected:.1f} "
            f"are expected (deviation {deviation:.2f}); the draws belong to other tokens, so set targets.draws_from to "
            "top_k and report this"
        )


def join_entropies(parts: list[bytes], num_tokens: int) -> npt.NDArray[np.float32]:
    """An answer's entropies [S], joined as by `join_draws`."""
    entropies_S = np.full(num_tokens, np.nan, dtype=np.float32)
    for part in parts:
        seen = np.frombuffer(part, dtype=np.float32)[:num_tokens]
        entropies_S[: len(seen)] = np.where(np.isnan(seen), entropies_S[: len(seen)], seen)
    return entropies_S


def with_draws(answer: Answer, parts: list[tuple[bytes, bytes, bytes]], asked: Request) -> Answer:
    """`answer` with its draws, its probe and its entropies, from what each of the engine's workers kept for it
    (`DrawBuffer.take`). A token whose entropy is missing has NaN, which `fault` finds."""
    draws_SD = probe = entropies_S = None
    S = len(answer.token_ids)
    if asked.num_draws:
        draws_SD = join_draws([drawn for drawn, _, _ in parts], S, asked.num_draws)
        check_draws(draws_SD, answer.token_ids, answer.token_logprobs)
    logits = [kept for _, kept, _ in parts if kept]
    if logits and asked.probed < S:
        probe = (asked.probed, whole_distribution(logits[0]))
    if asked.entropy:
        entropies_S = join_entropies([entropies for _, _, entropies in parts], S)
    return replace(answer, draws=draws_SD, probe=probe, entropies=entropies_S)


def whole_distribution(logits: bytes) -> npt.NDArray[np.float32]:
    """Log-probabilities [V] of float32 logits."""
    logits_V = np.frombuffer(logits, dtype=np.float32)
    logits_V = logits_V - logits_V.max()
    whole: npt.NDArray[np.float32] = logits_V - np.log(np.exp(logits_V.astype(np.float64)).sum()).astype(np.float32)
    return whole


def draw_from_top_k(answer: Answer, num_draws: int, seed: int) -> npt.NDArray[np.int32]:
    """Independent draws [S, D] from the top K of each token; -1 where a draw fell outside of them.

    For engines that cannot draw themselves. Unbiased for the K tokens and blind to all others: the share of draws that
    are -1 is the mass of the tail.
    """
    random_SD = np.random.default_rng(seed).random((len(answer.token_ids), num_draws))
    mass_SK = np.exp(answer.target_logprobs.astype(np.float64)).cumsum(axis=1)
    draws_SD = np.full(random_SD.shape, -1, dtype=np.int32)
    for s, (mass_K, random_D) in enumerate(zip(mass_SK, random_SD, strict=True)):
        place_D = np.searchsorted(mass_K, random_D, side="right")
        inside_D = place_D < len(mass_K)
        draws_SD[s, inside_D] = answer.target_ids[s, place_D[inside_D]]
    return draws_SD
