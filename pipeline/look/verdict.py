"""How good the targets are, in words: one judgement for the report and for `inspect`."""

from typing import Any, NamedTuple

from stillhouse.pipeline.dataset.figures import percent

GOOD_MEDIAN, GOOD_TAIL = 0.01, 0.10
FAIR_MEDIAN, FAIR_TAIL = 0.05, 0.35
"""Mass outside of the targets, of the median token and of the 95th percentile, up to which they are good or so-so. At a
median of 3.5 % and K = 64 the gradient of a student is 22 to 28 % off (docs/targets.md), which is so-so."""
MIN_DRAWS = 32
"""Fewer draws scatter so much that a student needs many more tokens."""


class Verdict(NamedTuple):
    level: str
    """good, so-so, poor, or none where there are no tokens."""
    short: str
    """The reason, without a stop."""
    sentences: list[str]


def verdict(fidelity: dict[str, Any], settings: dict[str, Any]) -> Verdict:
    """Whether what is stored of the teacher's distributions is close to them, from a fidelity report
    (`stages.teacher.fidelity.report`) and the run's settings by dotted key."""
    if not fidelity["tokens"]:
        return Verdict("none", "there are no tokens", ["There are no tokens."])
    if not {"top_k", "draws"} & set(fidelity):
        return Verdict("none", "no token has targets", ["No token has targets (targets.keep)."])
    short, levels, sentences = [], [], []
    kept = fidelity.get("tokens_kept", fidelity["tokens"])
    if kept < fidelity["tokens"]:
        sentences.append(
            f"{percent(kept / fidelity['tokens'])} of the tokens have targets (targets.keep); the rest is about these."
        )
    if "top_k" in fidelity:
        found = fidelity["top_k"]
        short.append(
            f"in {percent(found['written_token_among_them'])} of positions the token written is in the stored "
            f"{_top(settings)}; the median position has {percent(found['tail_mass']['p50'])} of its probability outside"
        )
        level, more = _of_top_k(found["tail_mass"], settings)
        levels.append(level)
        sentences += [f"{short[0][0].upper()}{short[0][1:]}.", *more]
    if "draws" in fidelity:
        short.append(f"each token has {settings['targets.num_draws']} draws from {_origin(settings)}")
        level, of_draws = _of_draws(fidelity["draws"], settings)
        levels.append(level)
        sentences += of_draws
    sentences += _of_probes(fidelity, settings)
    # With both kinds a trainer takes the better one.
    return Verdict(min(levels, key=["good", "so-so", "poor"].index), "; ".join(short), sentences)


def _top(settings: dict[str, Any]) -> str:
    is_cut = settings.get("targets.top_p", 1.0) < 1.0
    return f"top {settings['targets.top_k']}" + (f" (top_p {settings['targets.top_p']})" if is_cut else "")


def _origin(settings: dict[str, Any]) -> str:
    is_whole = settings.get("targets.draws_from", "engine") == "engine"
    return "the whole distribution" if is_whole else f"the top {settings['targets.top_k']}, which is biased"


def _of_top_k(tail: dict[str, float], settings: dict[str, Any]) -> tuple[str, list[str]]:
    median, most = tail["p50"], tail["p95"]
    level = "poor"
    if median <= GOOD_MEDIAN and most <= GOOD_TAIL:
        level = "good"
    elif median <= FAIR_MEDIAN and most <= FAIR_TAIL:
        level = "so-so"
    sentences = [f"One position in 20 has more than {percent(most)} outside."]
    if level != "good":
        which = [f"{percent(GOOD_MEDIAN)} in the median"] if median > GOOD_MEDIAN else []
        which += [f"{percent(GOOD_TAIL)} at 19 positions in 20"] if most > GOOD_TAIL else []
        larger = "top_k" if settings.get("targets.top_p", 1.0) >= 1.0 else "top_p"
        sentences.append(
            f"Good would be at most {' and '.join(which)}: a larger targets.{larger} comes closer, and targets.method "
            "sampled has no such error."
        )
    return level, sentences


def _of_draws(found: dict[str, Any], settings: dict[str, Any]) -> tuple[str, list[str]]:
    number, origin = settings["targets.num_draws"], _origin(settings)
    among = f"in {percent(found['written_token_among_them'])} of positions the token written is among them."
    if "biased" in origin:
        return "so-so", [f"Each token has {number} draws from {origin}; {among}"]
    level = "good" if number >= MIN_DRAWS else "so-so"
    few = "" if level == "good" else f" Fewer than {MIN_DRAWS} scatter much: such a student needs more tokens."
    return level, [
        f"Each token has {number} draws from {origin}: no error that is the same at every token; {among}{few}"
    ]


def _of_probes(fidelity: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """KL against the whole distribution; where there is none, why."""
    if not fidelity["probed_tokens"]:
        if not settings.get("targets.probe_fraction"):
            return ["KL: not measured (targets.probe_fraction is 0)."]
        return [
            f"KL: no probed token is among these rows (targets.probe_fraction {settings['targets.probe_fraction']} "
            "is the share of answers that generate probes); more rows or a larger share have some."
        ]
    return [
        f"KL of {fidelity['probed_tokens']:,} probed tokens: the {name} are {fidelity[key]['mean']:.3g} nats from the "
        f"whole distribution, which has {fidelity['probed_entropy']['mean']:.3g} nats of entropy."
        for key, name in (("probed_kl_top_k_tail", "top K with their tail"), ("probed_kl_draws", "draws"))
        if key in fidelity
    ]
