"""Draws by need: does giving tokens another number of draws by their entropy save bytes at the same error? No test.

    python benchmarks/storage.py collect           # once
    python benchmarks/draws_by_need.py --answers 32

What an error is: the scatter of a student's gradient, as in `storage.py gradient`. That of different tokens is
independent, so its square is the sum over tokens of v / D, with v that of one draw of the token. Measured are, for
groups of tokens of like entropy, v and how many distinct ids D draws have, which is what they cost; from both follows
the best number for each group, and with it the most that any rule by entropy can save. Then rules as they would be
used, in bytes of the file and in error. Results are JSON on stdout; docs/targets.md reads them.

Shape legend: S tokens, V vocabulary, D draws per token, G groups.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.storage import Collected, bytes_per_token, log_predictions, student
from stillhouse.schemas import tables, targets

GROUPS = 6
LADDER = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
Floats = npt.NDArray[np.float64]


def clipped(low: int, high: int, of_entropy: Callable[[Floats], Floats]) -> Callable[[Floats], npt.NDArray[np.int64]]:
    """A rule: a function of the entropy, rounded, between `low` and `high`."""
    return lambda entropies_S: np.clip(np.round(of_entropy(entropies_S)), low, high).astype(np.int64)


RULES: dict[str, Callable[[Floats], npt.NDArray[np.int64]]] = {
    **{f"{D} for each": clipped(D, D, np.zeros_like) for D in (32, 48, 64, 96)},
    "[16, 128], 24 per nat": clipped(16, 128, lambda h: 24 * h),
    "[32, 128], 24 per nat": clipped(32, 128, lambda h: 24 * h),
    "[32, 96], 64 at 3 nats, by the root": clipped(32, 96, lambda h: 64 * np.sqrt(h / 3)),
    "[32, 128], 64 at 3 nats, by the inverse root": clipped(32, 128, lambda h: 64 / np.sqrt(np.maximum(h, 0.01) / 3)),
}


class Sampler:
    """Draws from the whole distributions of the answers collected."""

    def __init__(self, data: Collected, seed: int) -> None:
        self._data, self._random = data, np.random.default_rng(seed)

    def draws(self, s: int, number: int) -> npt.NDArray[np.int32]:
        """`number` draws of token `s`."""
        cumulative = np.cumsum(np.exp(self._data.full_SV[s].astype(np.float64)))
        at = np.searchsorted(cumulative, self._random.random(number) * cumulative[-1], side="right")
        return np.minimum(at, len(cumulative) - 1).astype(np.int32)


def entropies(data: Collected, num_tokens: int) -> Floats:
    found = np.empty(num_tokens)
    for s in range(num_tokens):
        logprobs = data.full_SV[s].astype(np.float64)
        p = np.exp(logprobs)
        found[s] = -(p * np.where(p > 0, logprobs, 0.0)).sum()
    return found


def scatter(
    data: Collected, model: Any, parameters: list[Any], num_answers: int, picked: dict[str, dict[int, Any]]
) -> dict[str, float]:
    """By name the squared length of (gradient with these draws - gradient with the whole distribution), and of the
    whole gradient (`full`); `picked[name][s]` are the draws of token s, and other tokens say nothing."""
    import torch

    sums = {name: [torch.zeros_like(p) for p in parameters] for name in [*picked, "full"]}
    for number, span in enumerate(data.answers()[:num_answers]):
        logq_SV = log_predictions(model, data, number)
        p_SV = torch.tensor(data.full_SV[span].astype(np.float32)).exp()
        for name, total in sums.items():
            loss = torch.zeros(())
            if name == "full":
                loss = -(p_SV * logq_SV).sum()
            else:
                rows = [s for s in range(span.start, span.stop) if s in picked[name]]
                if not rows:
                    continue
                at = torch.tensor([s - span.start for s in rows])
                loss = (p_SV[at] * logq_SV[at]).sum()
                for s in rows:
                    drawn = torch.tensor(picked[name][s].astype(np.int64))
                    loss = loss - logq_SV[s - span.start, drawn].mean()
            for kept, g in zip(total, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
                kept += g
        print(f"answer {number + 1} of {num_answers}", file=sys.stderr)
    return {name: float(sum((g.double() ** 2).sum() for g in total)) for name, total in sums.items()}


def num_bytes(picked: dict[int, Any], most: int) -> float:
    """Per token, of the draws' columns in the file that a run would write: the number of a token's draws is the sum of
    its counts, and needs no column."""
    draws_SD = np.full((len(picked), most), -1, dtype=np.int32)
    for row, drawn in zip(draws_SD, picked.values(), strict=True):
        row[: len(drawn)] = drawn
    encoded = targets.encode_draws(draws_SD)
    columns = {f"draw_{name}": [value] for name, value in encoded._asdict().items()} | {"num_draws": [most]}
    table = pa.table([pa.array(columns[f.name], f.type) for f in tables.DRAWS], schema=tables.DRAWS)
    return bytes_per_token(table, len(picked))


def best_numbers(weight_G: Floats, distinct_GL: Floats, share_G: Floats, wanted: float) -> npt.NDArray[np.int64]:
    """For each group the number of draws in `LADDER` that makes the ids fewest at a squared error of `wanted`: of all
    prices of an error, the lowest that is enough."""
    ladder = np.array(LADDER)
    for price in np.geomspace(1e-6, 1e12, 4000):
        best_G = (share_G[:, None] * distinct_GL + price * weight_G[:, None] / ladder).argmin(axis=1)
        if (weight_G / ladder[best_G]).sum() <= wanted:
            break
    return ladder[best_G]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = Collected("SmolLM2-135M-Instruct")
    S = int(data.lengths[: options.answers].sum())
    entropies_S = entropies(data, S)
    edges = np.quantile(entropies_S, np.linspace(0, 1, GROUPS + 1))
    group_S = np.clip(np.searchsorted(edges, entropies_S, side="right") - 1, 0, GROUPS - 1)
    samplers = [Sampler(data, seed) for seed in range(options.seeds)]
    # One draw set of 256 for each token and seed; a rule takes its first ones.
    sets = [[sampler.draws(s, max(LADDER)) for s in range(S)] for sampler in samplers]
    picked: dict[str, dict[int, Any]] = {}
    for seed, drawn in enumerate(sets):
        for g in range(GROUPS):
            picked[f"group {g}/{seed}"] = {s: drawn[s][:64] for s in np.flatnonzero(group_S == g).tolist()}
    numbers = {name: rule(entropies_S) for name, rule in RULES.items()}
    for name, number_S in numbers.items():
        for seed, drawn in enumerate(sets):
            picked[f"{name}/{seed}"] = {s: drawn[s][: number_S[s]] for s in range(S)}
    model, parameters = student(data.name)
    squares = scatter(data, model, parameters, options.answers, picked)

    def square(name: str) -> float:
        return float(np.mean([squares[f"{name}/{seed}"] for seed in range(options.seeds)])) / squares["full"]

    share_G = np.bincount(group_S, minlength=GROUPS) / S
    weight_G = np.array([square(f"group {g}") * 64 for g in range(GROUPS)])
    distinct_GL = np.zeros((GROUPS, len(LADDER)))
    for g in range(GROUPS):
        for j, D in enumerate(LADDER):
            members = np.flatnonzero(group_S == g)
            distinct_GL[g, j] = np.mean([len(np.unique(drawn[s][:D])) for drawn in sets for s in members])
    best_G = best_numbers(weight_G, distinct_GL, share_G, float(weight_G.sum()) / 64)
    at_64, at_best = LADDER.index(64), [LADDER.index(D) for D in best_G.tolist()]
    ids_64 = float((share_G * distinct_GL[:, at_64]).sum())
    ids_best = float((share_G * distinct_GL[np.arange(GROUPS), at_best]).sum())
    print(
        json.dumps(
            {
                "tokens": S,
                "groups": [
                    {
                        "entropy": [round(float(edges[g]), 2), round(float(edges[g + 1]), 2)],
                        "share_of_squared_error": round(float(weight_G[g] / weight_G.sum()), 4),
                        "distinct_ids_of_64": round(float(distinct_GL[g, at_64]), 1),
                        "best_number": int(best_G[g]),
                    }
                    for g in range(GROUPS)
                ],
                "ids_per_token": {"64 for each": round(ids_64, 2), "best of groups": round(ids_best, 2)},
                "rules": {
                    name: {
                        "draws_per_token": round(float(number_S.mean()), 1),
                        "difference": round(square(name) ** 0.5, 5),
                        "differences": [
                            round((squares[f"{name}/{seed}"] / squares["full"]) ** 0.5, 5)
                            for seed in range(options.seeds)
                        ],
                        "bytes": round(num_bytes(picked[f"{name}/0"], max(LADDER)), 2),
                    }
                    for name, number_S in numbers.items()
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
