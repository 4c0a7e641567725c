"""Parts of the report on made-up numbers: words, bins, grids, what is cut."""

import re
import statistics
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.pipeline.dataset.figures import binned_nats, percent
from stillhouse.pipeline.look.reasons import REASONS
from stillhouse.pipeline.look.report import samples
from stillhouse.pipeline.look.report.funnel import funnel, worth_a_look
from stillhouse.pipeline.look.report.histograms import MISSING, OTHERS, histograms, number
from stillhouse.pipeline.look.report.rows import Rows
from stillhouse.pipeline.look.report.thresholds import _Counts, _grid
from stillhouse.pipeline.look.verdict import verdict
from stillhouse.stages.teacher.fidelity import report
from tests.support.data import ROOT


def rows(**columns: list[Any]) -> Rows:
    numbers = {name: np.array(v, np.float64) for name, v in columns.items() if not isinstance(v[0], str)}
    words = {name: pa.array(v).dictionary_encode() for name, v in columns.items() if isinstance(v[0], str)}
    num_rows = len(next(iter(columns.values())))
    return Rows(numbers, words, np.arange(num_rows, dtype=np.uint64), [("a", num_rows)], {})


def top_k(median: float, most: float) -> tuple[dict[str, Any], dict[str, Any]]:
    quantiles = {"p5": 0.0, "p25": 0.0, "p50": median, "p75": median, "p95": most}
    fidelity = {
        "tokens": 1000,
        "probed_tokens": 0,
        "top_k": {"written_token_among_them": 0.991, "tail_mass": quantiles},
    }
    return fidelity, {"targets.top_k": 64, "targets.probe_fraction": 0.1}


@pytest.mark.parametrize(
    ("median", "most", "level"),
    [(0.003, 0.05, "good"), (0.01, 0.1, "good"), (0.003, 0.2, "so-so"), (0.035, 0.32, "so-so"), (0.2, 0.3, "poor"),
     (0.01, 0.5, "poor")],
)  # fmt: skip
def test_targets_are_judged_by_what_is_outside(median: float, most: float, level: str) -> None:
    found = verdict(*top_k(median, most))
    assert found.level == level
    sentence = (
        f"99.1 % of positions the token written is in the stored top 64; the median position has {percent(median)} "
    )
    assert sentence in found.short
    assert sentence in found.sentences[0]
    assert ("Good would be" in " ".join(found.sentences)) == (level != "good")


def test_draws_are_judged_by_their_number_and_origin() -> None:
    def of(number: int, origin: str) -> str:
        fidelity = {"tokens": 9, "probed_tokens": 0, "draws": {"written_token_among_them": 0.9}}
        settings = {"targets.num_draws": number, "targets.draws_from": origin, "targets.top_k": 64}
        return verdict(fidelity, settings).level

    assert of(64, "engine") == "good"
    assert of(16, "engine") == "so-so"
    assert of(64, "top_k") == "so-so"
    assert verdict({"tokens": 0}, {}).level == "none"


def test_where_there_is_no_kl_it_is_told_why() -> None:
    fidelity, settings = top_k(0.01, 0.1)
    assert "KL: no probed token is among these rows" in verdict(fidelity, settings).sentences[-1]
    assert "KL: not measured" in verdict(fidelity, {**settings, "targets.probe_fraction": 0.0}).sentences[-1]
    probed = {"probed_tokens": 7, "probed_kl_top_k_tail": {"mean": 0.0123}, "probed_entropy": {"mean": 2.5}}
    said = verdict(fidelity | probed, settings).sentences[-1]
    assert said == (
        "KL of 7 probed tokens: the top K with their tail are 0.0123 nats from the whole distribution, which has 2.5 "
        "nats of entropy."
    )


def test_percentages_never_round_to_all_or_nothing() -> None:
    assert [percent(share) for share in (0, 1e-7, 0.0003, 0.0351, 0.317, 0.9999, 1)] == [
        "0 %", "below 0.001 %", "0.03 %", "3.5 %", "31.7 %", "99.9 %", "100 %",
    ]  # fmt: skip


def test_a_share_is_rounded_once() -> None:
    assert percent(399 / 402) == "99.3 %"  # 0.9925 in between would be 99.2 %
    found = report({"tokens": 402, "probes": [], "surprisal": {"0": 402}, "target_written": 399, "targets": 402,
                    "target_entropy": {"0": 402}, "target_tail": {"0": 402}})  # fmt: skip
    assert percent(found["top_k"]["written_token_among_them"]) == "99.3 %"


def test_the_first_bin_is_not_its_middle() -> None:
    """Most of what is in it is far below: the quantile of 0, 0.001 and 0.01 is not 0.05."""
    found = report({"tokens": 3, "probes": [], "surprisal": {"0": 3}})["written_token_surprisal"]
    assert {binned_nats(value) for value in found.values()} == {"< 0.1"}
    assert [binned_nats(value) for value in (0.15, 1.05)] == ["0.15", "1.05"]


def test_few_values_have_no_tails() -> None:
    few, enough = histograms(rows(x=[*range(19)])), histograms(rows(x=[*range(20)]))
    assert few["columns"][0]["quantiles"] == {"min": "0", "median": "9", "max": "18"}
    exact = [0, *statistics.quantiles(range(20), n=20, method="inclusive"), 19]
    told = [exact[n] for n in (0, 1, 5, 10, 15, 19, 20)]
    assert enough["columns"][0]["quantiles"] == dict(
        zip(("min", "5 %", "25 %", "median", "75 %", "95 %", "max"), (number(v) for v in told), strict=True)
    )


def test_every_reason_has_words() -> None:
    text = (ROOT / "docs/format.md").read_text().partition("### Reasons")[2].partition("## Size")[0]
    documented = {name for row in text.splitlines() for name in re.findall(r"`(\w+)`", row.partition("| ")[2])}
    assert documented == set(REASONS)


def test_the_funnel_counts_prompts_then_samples() -> None:
    stages = {
        "ingest": {"rows_in": 100, "rows_out": 50, "dropped": {"empty": 10, "too_long": 40}},
        "generate": {"rows_in": 200, "rows_out": 180, "dropped": {"no_answer": 20}},
    }
    config = {"sampling.n": 4, "ingest.max_prompt_tokens": 512}
    fidelity = {"tokens": 9, "probed_tokens": 3}
    manifest = {"config": config, "stages": stages, "set_aside": ["a shard"], "fidelity": fidelity}
    found = funnel(manifest)
    assert [stage["share"] for stage in found] == [0.5, 0.45]
    assert [reason["reason"] for reason in found[0]["dropped"]] == ["too_long", "empty"]
    ended = rows(**{"ended by": ["stop"] * 8 + ["length"] * 2})
    odd = worth_a_look(manifest, found, ended)
    assert odd[0].startswith("10 samples are too few to train on")
    assert odd[1].startswith("10 samples are 2.5 % of the 400")
    assert odd[2] == (
        "ingest dropped 40 % of its rows because the prompt is too long (too_long, ingest.max_prompt_tokens 512)."
    )
    assert "shards were set aside" in odd[3]
    assert odd[4].startswith("20 % of the rows have an answer that was cut off")
    assert len(odd) == 5


def test_what_is_the_same_everywhere_is_odd_too() -> None:
    stages = {"ingest": {"rows_in": 2000, "rows_out": 2000, "dropped": {}}}
    manifest: dict[str, Any] = {
        "config": {},
        "stages": stages,
        "set_aside": [],
        "fidelity": {"tokens": 9, "probed_tokens": 0},
    }
    odd = worth_a_look(manifest, funnel(manifest), rows(language=["unknown"] * 2000))
    assert len(odd) == 2
    assert "no KL" in odd[0]
    assert "names no row's language" in odd[1]
    assert len(worth_a_look(manifest, funnel(manifest), rows(language=["unknown", *["English"] * 1999]))) == 1


def test_missing_values_and_rare_words_have_bins() -> None:
    names: list[Any] = [*"abcdefghijkl" * 2, "m", "n", None]
    found = {c["name"]: c for c in histograms(rows(language=names, cluster_size=[1, *[2] * 25, np.nan]))["columns"]}
    assert found["language"]["labels"] == [*"abcdefghijkl", OTHERS, MISSING]
    assert found["language"]["counts"] == [2] * 12 + [2, 1]
    assert found["cluster_size"]["labels"] == ["1", "2", MISSING]
    assert found["cluster_size"]["counts"] == [1, 25, 1]


@pytest.mark.parametrize(
    "values", [[0.0, 1e-9, 0.5], [3, 3000000, 4, 5, 6], [-5.5, 2.25, 0.0], [0.31, 0.32], [1, 2], [1e6, 1e6 + 7]]
)
def test_every_value_is_in_the_bin_that_its_label_says(values: list[float]) -> None:
    column = histograms(rows(x=values))["columns"][0]
    assert len(column["labels"]) <= 30
    for value, found in zip(values, column["sample"], strict=True):
        low, _, high = column["labels"][found].replace(",", "").partition(" – ")
        assert float(low) - 1e-5 * abs(value) <= value <= float(high or low) + 1e-5 * abs(value)


def test_what_differs_by_rounding_is_the_same() -> None:
    found = histograms(rows(x=[0.1, 0.1 + 1e-9, 0.1], y=["a", "a", "a"]))
    assert found["columns"] == []
    assert found["same"] == [["x", "0.1"], ["y", "a"]]


def test_a_threshold_drops_the_score_that_equals_it() -> None:
    for threshold in (0.95, 0.9, 0.12345):
        counts = _Counts(_grid(threshold))
        scores = np.array([threshold, np.nextafter(np.float32(threshold), np.float32(0)), 1.0], np.float32)
        at = int(np.flatnonzero(counts.grid == np.float32(threshold))[0])
        assert counts.of(scores)[at:].sum() == 2


def test_what_is_too_long_is_cut_and_said() -> None:
    T = 20_000
    tokens = {
        "ids": list(range(T)), "texts": ["x"] * T, "supervised": [0] * 5000 + [1] * (T - 5000), "draws": None,
        "logprobs": list(range(T - 5000)), "tails": None, "alternatives": None, "ranks": None,
    }  # fmt: skip
    message = {"role": "user", "content": "y" * 30_000, "reasoning_content": None}
    found = samples._cut({"messages": [message], "tokens": tokens})
    kept = found["tokens"]
    assert samples._num_bytes(kept) <= samples.MOST_BYTES
    assert len(kept["ids"]) == len(kept["texts"]) == len(kept["supervised"])
    assert sum(kept["supervised"]) == len(kept["logprobs"])
    assert (kept["ids"][-1], kept["logprobs"][-1]) == (T - 1, T - 5001)
    assert len(found["messages"][0]["content"]) < 10_010
    assert f"the first {T - len(kept['ids']):,} of 20,000 tokens are left out" in found["cut"]
    assert "a text of 30,000 characters ends after 10,000" in found["cut"]
