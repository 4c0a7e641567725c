"""`teacher_entropy` of a published row, and which tokens have targets because of it.

Shape legend: S supervised tokens of a row, K targets per token, V vocabulary.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.pipeline.dataset.checks.findings import RowError
from stillhouse.schemas.lists import supervised_runs
from stillhouse.schemas.targets import Targets
from stillhouse.stages.teacher.kept import num_kept

SLACK = 0.01
"""Nats that an entropy may be off, and its part of itself: it is a float16, of sums of float32."""


def check_entropies(entropies_S: npt.NDArray[np.float32], probe: dict[str, Any] | None, vocab_size: int) -> None:
    """Each is one of `vocab_size` choices, and at the probe that of the whole distribution."""
    most = math.log(vocab_size)
    if not ((entropies_S >= 0) & (entropies_S <= most + SLACK * (1 + most))).all():  # NaN is not
        raise RowError(f"teacher_entropy holds numbers outside of 0 to {most:.2f} nats, the vocabulary's")
    if probe is not None:
        off = abs(entropies_S[probe["token"]] - probe["entropy"])
        if off > SLACK * (1 + probe["entropy"]):
            raise RowError(f"teacher_entropy is {off:.4g} nats from that of its probe")


def check_against_top_k(
    entropies_S: npt.NDArray[np.float64], targets: Targets, vocab_size: int, precision: float
) -> None:
    """The entropy of a distribution lies between what its top K and tail leave open: all of the tail in as few tokens
    as none of them is more probable than the last of the K, or spread over all others alike."""
    logprobs_SK = targets.logprobs.astype(np.float64)
    is_kept_SK = logprobs_SK > -np.inf
    tail_S = targets.tail.astype(np.float64)
    rest_S = np.exp(tail_S)
    terms_SK = np.where(is_kept_SK, np.exp(logprobs_SK) * np.where(is_kept_SK, logprobs_SK, 0.0), 0.0)
    together_S = -terms_SK.sum(axis=1) - rest_S * tail_S
    last_S = np.where(is_kept_SK, logprobs_SK, np.inf).min(axis=1)
    others_S = np.maximum(vocab_size - is_kept_SK.sum(axis=1), 1)
    least_S = together_S + rest_S * np.maximum(tail_S - last_S, 0.0)
    most_S = together_S + rest_S * np.log(others_S)
    # Rounding moves every logarithm, and p log p by (1 + log p) times that.
    allowed_S = (SLACK + precision) * (1 + most_S)
    wrong_S = (entropies_S < least_S - allowed_S) | (entropies_S > most_S + allowed_S)
    if wrong_S.any():
        s = int(wrong_S.argmax())
        raise RowError(
            f"teacher_entropy of {int(wrong_S.sum())} of {len(wrong_S)} tokens disagrees with targets and tail: "
            f"{entropies_S[s]:.3f} nats where they leave {least_S[s]:.3f} to {most_S[s]:.3f}; rows belong to other "
            "tokens"
        )


def check_choice(row: dict[str, Any], has_targets_S: npt.NDArray[np.bool_], keep: dict[str, float]) -> None:
    """The tokens with targets are those that `targets.keep` names, answer by answer."""
    entropies_S = row["teacher_entropy"]
    starts, ends = supervised_runs(row["labels"])
    lengths = ends - starts
    done = np.cumsum(lengths)
    for number, (start, end) in enumerate(zip((done - lengths).tolist(), done.tolist(), strict=True)):
        found_A, entropies_A = has_targets_S[start:end], entropies_S[start:end]
        if "entropy_above" in keep:
            chosen_A = entropies_A > keep["entropy_above"]
        else:
            count = int(found_A.sum())
            # Of an answer that another turn follows, the end may be the template's, and what the teacher wrote there
            # is gone: with it the answer had one token more.
            allowed = {num_kept(end - start, keep["fraction"])}
            if number < len(lengths) - 1:
                allowed |= {num_kept(end - start + 1, keep["fraction"]) - less for less in (0, 1)}
            if count not in allowed:
                raise RowError(
                    f"{count} of an answer's {end - start} tokens have targets, and targets.keep.fraction is "
                    f"{keep['fraction']:g}"
                )
            order = sorted(range(end - start), key=lambda i: (-entropies_A[i], i))
            chosen_A = np.isin(np.arange(end - start), order[:count])
        if wrong := int((found_A != chosen_A).sum()):
            raise RowError(f"{wrong} of an answer's {end - start} tokens have targets, or none, against targets.keep")
