"""What storing a distribution costs: measured against whole distributions at probed tokens, and over all tokens.

Not the teacher's own error (bfloat16 and the like), which no stored number can show: tests/slow/test_alignment.py
measures that.

Shape legend: V vocabulary, K stored targets of a token, S tokens, N targets of all of them.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas import tables, targets
from stillhouse.schemas.lists import flat_lists
from stillhouse.schemas.targets import Draws, TopK

BINS_PER_NAT = 10
"""Resolution of the histograms from which quantiles are taken."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def probe(
    logprobs_V: npt.NDArray[np.float32], top_k: TopK | None, draws: Draws | None, token: int, precision: float
) -> dict[str, Any]:
    """A value of `schemas.tables.PROBE`: supervised token `token` of what is stored, against its whole distribution. No
    KL where nothing is stored of it (`targets.keep`)."""
    logprobs_V = np.maximum(logprobs_V, targets.LOWEST_LOGPROB)  # 0 log 0 is 0
    p_V = np.exp(logprobs_V.astype(np.float64))
    found: dict[str, Any] = {
        "token": token,
        "entropy": float(-(p_V * logprobs_V).sum()),
        "kl_top_k": None,
        "kl_top_k_tail": None,
        "kl_draws": None,
    }
    if top_k is not None and top_k.lengths[token]:
        row = _row(top_k.lengths, token)
        if top_k.gaps is not None:
            logprobs_K = np.cumsum(top_k.gaps[row].astype(np.float64)) * -precision
        else:
            assert top_k.logprobs is not None
            logprobs_K = top_k.logprobs[row].astype(np.float64)
        tail = float(top_k.tail[token])
        p_K = p_V[top_k.ids[row]]
        found["kl_top_k"] = _kl(np.exp(logprobs_K), p_K)
        # What a float32 softmax cannot tell from nothing is the same nothing on both sides.
        rest = max(1.0 - p_K.sum(), np.exp(targets.TAIL_FLOOR))
        found["kl_top_k_tail"] = _kl(np.append(np.exp(logprobs_K), np.exp(tail)), np.append(p_K, rest))
    if draws is not None and draws.lengths[token]:
        row = _row(draws.lengths, token)
        found["kl_draws"] = _kl(draws.counts[row].astype(np.float64), p_V[draws.ids[row]])
    return found


def _row(lengths: npt.NDArray[np.int32], token: int) -> slice:
    start = int(lengths[:token].sum())
    return slice(start, start + int(lengths[token]))


def _kl(weights: npt.NDArray[np.float64], p: npt.NDArray[np.float64]) -> float:
    """KL(weights, made to sum to 1 || p) in nats; p may sum to less."""
    is_any = weights > 0  # 0 log 0 is 0
    q = weights[is_any] / weights.sum()
    return float((q * np.log(q / np.maximum(p[is_any], 1e-45))).sum())


def statistics(table: pa.Table) -> dict[str, Any]:
    """Counts over the supervised tokens of a completions table, to be added up over shards (`merged`).

    Histograms have a bin for each 1/`BINS_PER_NAT` nat. `entropy` is of what is stored: for the top K with everything
    else as one event, so a little low; for draws of their frequencies, which is lower still. `teacher_entropy` is of
    the whole distribution, where the table has it. Tokens that `targets.keep` left out are counted (`…_left_out`) and
    are in no figure about targets.
    """
    found: dict[str, Any] = {"tokens": 0, "probes": []}
    if table.num_rows == 0 or "token_logprobs" not in table.column_names:
        return found
    found["probes"] = [value for value in table.column("probe").to_pylist() if value is not None]
    logprobs_S = table.column("token_logprobs").combine_chunks().flatten().to_numpy()
    found["tokens"] = len(logprobs_S)
    found["surprisal"] = _histogram(-logprobs_S)
    has_entropy = tables.ENTROPY.name in table.column_names
    if has_entropy:
        found["teacher_entropy"] = _histogram(flat_lists(table.column(tables.ENTROPY.name)).values.to_numpy())
    kinds: tuple[targets.Kind, ...] = ("target", "draw")
    for kind in kinds:
        if f"{kind}_ids" not in table.column_names:
            continue
        labels = table.column("labels").combine_chunks().flatten().to_numpy()
        written_S, done, hits = labels[labels != tables.IGNORE_INDEX], 0, 0
        entropies, tails, left_out = [], [], 0
        for row in targets.decode(table, kind):
            S = len(row.tail)
            hits += int(((row.ids == written_S[done : done + S, None]) & (row.logprobs > -np.inf)).any(axis=1).sum())
            done += S
            logprobs_SK = np.concatenate([row.logprobs, row.tail[:, None]], axis=1).astype(np.float32)
            if has_entropy:
                is_kept_S = (row.logprobs > -np.inf).any(axis=1)
                left_out += S - int(is_kept_S.sum())
                row, logprobs_SK = row._replace(tail=row.tail[is_kept_S]), logprobs_SK[is_kept_S]
            logprobs_SK = np.maximum(logprobs_SK, targets.LOWEST_LOGPROB)  # 0 log 0 is 0
            entropies.append(-(np.exp(logprobs_SK) * logprobs_SK).sum(axis=1))
            tails.append(row.tail)
        found[f"{kind}_entropy"] = _histogram(np.concatenate(entropies))
        found[f"{kind}_tail"] = _histogram(-np.concatenate(tails))
        found[f"{kind}_written"] = hits
        if left_out:
            found[f"{kind}_left_out"] = left_out
        found[f"{kind}s"] = len(table.column(f"{kind}_ids").combine_chunks().flatten())
    return found


def _histogram(nats: npt.NDArray[Any]) -> dict[str, int]:
    """How many values in each bin; keys are the bins' numbers as strings, which is what JSON keeps."""
    bins, counts = np.unique(np.floor(nats.astype(np.float64) * BINS_PER_NAT).astype(int), return_counts=True)
    return {str(number): int(count) for number, count in zip(bins, counts, strict=True)}


def merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sum of several `statistics`."""
    total: dict[str, Any] = {"tokens": 0, "probes": []}
    for part in parts:  # empty where a shard has none
        for key, value in part.items():
            if isinstance(value, dict):
                bins = total.setdefault(key, {})
                for number, count in value.items():
                    bins[number] = bins.get(number, 0) + count
            else:
                total[key] = total[key] + value if key in total else value
    return total


def report(total: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of a dataset's fidelity: quantiles over tokens and, at probed tokens, KL in nats.

    With `targets.keep` what is said of targets is over the `tokens_kept`; nothing is said if there are none.

    Quantiles over tokens are middles of bins: entropy and surprisal to 1/`BINS_PER_NAT` nat, mass to a tenth of itself.
    Those of probes are exact.
    """
    tokens = total["tokens"]
    found: dict[str, Any] = {"tokens": tokens, "probed_tokens": len(total["probes"])}
    if not tokens:
        return found
    found["written_token_surprisal"] = _quantiles(total["surprisal"])
    if "teacher_entropy" in total:
        found["teacher_entropy"] = _quantiles(total["teacher_entropy"])
    for kind, name in (("target", "top_k"), ("draw", "draws")):
        kept = tokens - total.get(f"{kind}_left_out", 0)
        if kept < tokens:
            found["tokens_kept"] = kept
        if f"{kind}s" in total and kept:
            found[name] = {
                "targets_per_token": round(total[f"{kind}s"] / kept, 2),
                "written_token_among_them": total[f"{kind}_written"] / kept,  # rounded where it is shown
                "entropy": _quantiles(total[f"{kind}_entropy"]),
                "tail_mass": {q: round(float(np.exp(-v)), 6) for q, v in _quantiles(total[f"{kind}_tail"], -1).items()},
            }
    for name in ("entropy", "kl_top_k", "kl_top_k_tail", "kl_draws"):
        values = [value[name] for value in total["probes"] if value[name] is not None]
        if values:
            found[f"probed_{name}"] = {"mean": round(float(np.mean(values)), 6)} | {
                f"p{int(100 * q)}": round(float(np.quantile(values, q)), 6) for q in QUANTILES
            }
    return found


def _quantiles(histogram: dict[str, int], sign: int = 1) -> dict[str, float]:
    """Middle of the bin in which each of `QUANTILES` falls; with sign -1 of the values' negatives."""
    bins = sorted((int(number), count) for number, count in histogram.items())[::sign]
    numbers, counts = zip(*bins, strict=True)
    ranks = np.searchsorted(np.cumsum(counts), np.array(QUANTILES) * sum(counts))
    return {
        f"p{int(100 * q)}": (numbers[min(rank, len(numbers) - 1)] + 0.5) / BINS_PER_NAT
        for q, rank in zip(QUANTILES, ranks.tolist(), strict=True)
    }
