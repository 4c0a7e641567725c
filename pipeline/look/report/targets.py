"""How good the targets are, in words, and their exact distributions over all tokens."""

from typing import Any, NamedTuple

from stillhouse.stages.teacher.fidelity import BINS_PER_NAT

GOOD_MEDIAN, GOOD_TAIL = 0.01, 0.10
FAIR_MEDIAN, FAIR_TAIL = 0.05, 0.35
"""Mass outside of the targets, of the median token and of the 95th percentile, up to which they are good or so-so. At a
median of 3.5 % and K = 64 the gradient of a student is 22 to 28 % off (docs/targets.md), which is so-so."""
MIN_DRAWS = 32
"""Fewer draws scatter so much that a student needs many more tokens."""
MAX_BARS = 60


class Verdict(NamedTuple):
    level: str
    """good, so-so, poor, or none where there are no tokens."""
    short: str
    """The reason, without a stop."""
    sentences: list[str]


def verdict(manifest: dict[str, Any]) -> Verdict:
    """Whether what is stored of the teacher's distributions is close to them, from a manifest's fidelity report."""
    fidelity, targets = manifest["fidelity"], manifest["targets"]
    if not fidelity["tokens"]:
        return Verdict("none", "there are no tokens", ["There are no tokens."])
    short, levels, sentences = [], [], []
    if "top_k" in fidelity:
        found = fidelity["top_k"]
        short.append(
            f"{percent(found['written_token_among_them'])} of all tokens are among their top {targets['top_k']}, and "
            f"{percent(found['tail_mass']['p50'])} of the probability is outside in the median"
        )
        level, of_top_k = _of_top_k(fidelity["top_k"], targets)
        levels.append(level)
        sentences += of_top_k
    if "draws" in fidelity:
        short.append(f"each token has {targets['num_draws']} draws from {targets['draws_from']}")
        level, of_draws = _of_draws(fidelity["draws"], targets)
        levels.append(level)
        sentences += of_draws
    sentences += _of_probes(fidelity)
    # With both kinds a trainer takes the better one.
    return Verdict(min(levels, key=["good", "so-so", "poor"].index), "; ".join(short), sentences)


def _of_top_k(found: dict[str, Any], targets: dict[str, Any]) -> tuple[str, list[str]]:
    median, most = found["tail_mass"]["p50"], found["tail_mass"]["p95"]
    level = "poor"
    if median <= GOOD_MEDIAN and most <= GOOD_TAIL:
        level = "good"
    elif median <= FAIR_MEDIAN and most <= FAIR_TAIL:
        level = "so-so"
    sentences = [
        f"The token written is among its top {targets['top_k']} in {percent(found['written_token_among_them'])} of "
        f"all tokens.",
        f"The probability outside of them is {percent(median)} in the median; one token in 20 has more than "
        f"{percent(most)} outside.",
    ]
    if level != "good":
        which = [f"{percent(GOOD_MEDIAN)} in the median"] if median > GOOD_MEDIAN else []
        which += [f"{percent(GOOD_TAIL)} at 19 tokens in 20"] if most > GOOD_TAIL else []
        larger = "top_k" if targets.get("top_p", 1.0) >= 1.0 else "top_p"
        sentences.append(
            f"Good would be at most {' and '.join(which)}: a larger targets.{larger} comes closer, and targets.method "
            "sampled has no such error."
        )
    return level, sentences


def _of_draws(found: dict[str, Any], targets: dict[str, Any]) -> tuple[str, list[str]]:
    number, origin = targets["num_draws"], targets["draws_from"]
    among = f"the token written is among them in {percent(found['written_token_among_them'])} of all tokens."
    if "biased" in origin:
        return "so-so", [f"Each token has {number} draws from {origin}; {among}"]
    level = "good" if number >= MIN_DRAWS else "so-so"
    few = "" if level == "good" else f" Fewer than {MIN_DRAWS} scatter much: such a student needs more tokens."
    return level, [
        f"Each token has {number} draws from {origin}: no error that is the same at every token; {among}{few}"
    ]


def _of_probes(fidelity: dict[str, Any]) -> list[str]:
    sentences = []
    for key, name in (("probed_kl_top_k_tail", "top K with their tail"), ("probed_kl_draws", "draws")):
        if key in fidelity:
            sentences.append(
                f"At {fidelity['probed_tokens']:,} probed tokens the {name} are {fidelity[key]['mean']:.3g} nats (KL) "
                f"from the whole distribution, which has {fidelity['probed_entropy']['mean']:.3g} nats of entropy."
            )
    return sentences


def percent(share: float) -> str:
    """Such as 99.3 %, 0.35 %, below 0.001 %."""
    value = 100 * share
    if value == 0:
        return "0 %"
    if value < 0.001:
        return "below 0.001 %"
    digits = 1 if value >= 10 else 2
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".") if value >= 1 else f"{value:.2g}"
    return "99.9 %" if text == "100" and share < 1 else f"{text} %"


def distributions(total: dict[str, Any]) -> list[dict[str, Any]]:
    """Histograms over all tokens, from what every shard counted (`fidelity.statistics`): {"name", "meaning", "is_mass",
    "bars": [[from, to, tokens], ...]} in nats, with bars a multiple of a tenth of a nat wide; where it `is_mass`, of
    -log of the mass."""
    texts = (
        ("surprisal", "Surprisal", "-log p of the token written: 0 where the teacher was sure of it"),
        ("target_entropy", "Entropy of the top K", "how open the teacher's choice was, everything else as one event"),
        (
            "target_tail",
            "Mass outside the top K",
            "the probability of everything that is not stored; on the right there is none",
        ),
        ("draw_entropy", "Entropy of the draws", "of their frequencies: lower than the teacher's own"),
        ("draw_tail", "Draws that are missing", "share of draws that fell outside of what is kept"),
    )
    return [
        {"name": name, "meaning": meaning, "is_mass": key.endswith("tail"), "bars": _bars(total[key])}
        for key, name, meaning in texts
        if total.get(key) and not (key == "draw_tail" and len(total[key]) == 1)
    ]


def _bars(histogram: dict[str, int]) -> list[list[float]]:
    numbers = sorted(int(number) for number in histogram)
    width = max(1, -(-(numbers[-1] - min(numbers[0], 0) + 1) // MAX_BARS))
    bars: dict[int, int] = {}
    for number in numbers:
        bars[number // width] = bars.get(number // width, 0) + histogram[str(number)]
    return [[b * width / BINS_PER_NAT, (b + 1) * width / BINS_PER_NAT, bars[b]] for b in sorted(bars)]
