"""Numbers as people read them, in cards, reports and terminals alike."""

from stillhouse.stages.teacher.fidelity import BINS_PER_NAT

BIN = 1 / BINS_PER_NAT
"""Nats: how finely surprisal and entropy are counted over all tokens, and -log of a mass."""


def percent(share: float) -> str:
    """Such as 99.3 %, 3.5 %, 0.35 %, below 0.001 %. Rounded here and nowhere before, never to all or nothing."""
    value = 100 * share
    if value == 0:
        return "0 %"
    if value < 0.001:
        return "below 0.001 %"
    text = f"{value:.1f}".removesuffix(".0") if value >= 1 else f"{value:.2g}"
    return "99.9 %" if text == "100" and share < 1 else f"{text} %"


def binned_nats(middle: float) -> str:
    """A quantile of what is counted in bins of `BIN`, given as the middle of its bin. The first bin holds everything
    from 0 on, mostly values far below its middle."""
    return f"< {BIN:g}" if 0 <= middle < BIN else f"{middle:.3g}"
