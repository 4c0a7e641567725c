"""The distributions of what is stored, over all tokens."""

from typing import Any

from stillhouse.stages.teacher.fidelity import BINS_PER_NAT

MAX_BARS = 60


def distributions(total: dict[str, Any]) -> list[dict[str, Any]]:
    """Histograms over all tokens, from what every shard counted (`fidelity.statistics`): {"name", "meaning", "is_mass",
    "bars": [[from, to, tokens], ...]} in nats, with bars a multiple of a tenth of a nat wide; where it `is_mass`, of
    -log of the mass."""
    texts = (
        ("surprisal", "Surprisal", "-log p of the token written: 0 where the teacher was sure of it"),
        ("teacher_entropy", "Entropy of the teacher", "how open its choice was, over the whole distribution"),
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
