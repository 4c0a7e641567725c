"""Histograms of every scalar column: exact counts over all rows, and of each row in the sample the bin that it is in.

Shape legend: R rows of the data set, N of them in the sample, B bins.
"""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.pipeline.look.quantiles import quantiles, shown, title
from stillhouse.pipeline.look.report.rows import ENDED, ENTROPY, OUTSIDE, SURPRISAL, TURNS, Rows

SAMPLE_ROWS = 5000
"""Rows by which histograms are linked."""
MAX_BINS = 24
MAX_WORDS = 12
"""Values of a column of words that have a bar of their own; the others share one."""
SAME = 1e-3
"""Differences that are so small, as a share of the values, are rounding."""
MISSING, OTHERS = "(none)", "(others)"
MEANINGS = {
    "num_target_tokens": "tokens that the teacher wrote in a row",
    "num_input_tokens": "tokens of a row, prompt and answers",
    "cluster_size": "source prompts that a row stands for, near-duplicates included",
    "loop_tokens": "longest stretch of an answer that repeats itself, in tokens",
    "teacher": "whose distributions a row has",
    "language": "as the source said",
    "prompt_language": "as screen found it; (none) where it cannot be told",
    "prompt_scores.language": "how certain the language of a row's prompt is; 0 where it cannot be told",
    "prompt_scores.code": "share of a row's prompt that is code",
    "prompt_task": "what the prompt asks for, by its verbs",
    "prompt_topic": "cluster of words, the largest first; (none) where there are no words",
    "weight": "what the row counts where balance weights rows",
    "source_row": "where the row was in the source",
    "rendering_differs": "why the messages, rendered again, are not the tokens; (none) where they are",
    "redacted": "whether the source replaced names",
    SURPRISAL: "mean over a row's tokens of -log p of the token written, in nats (1 nat: 2.7 times less probable)",
    ENTROPY: "mean over a row's tokens of the entropy of the teacher's whole distribution, in nats",
    OUTSIDE: "mean over a row's tokens of the probability outside of its targets",
    ENDED: "stop: every answer was finished; length: one was cut off",
    TURNS: "answers in a row",
}


def histograms(rows: Rows) -> dict[str, Any]:
    """JSON of all columns: {"rows": R, "sample": N, "columns": [...], "same": [[name, value], ...]}. A column has
    `name`, `meaning`, `labels` [B], `counts` [B] over all rows, `quantiles` by their names
    (`look.quantiles.shown`) or null, and `sample` [N], the bin of each
    row in the sample. Columns with one value in every row are in `same`."""
    sample = rows.sample(SAMPLE_ROWS)
    columns, same = [], []
    for name, values in rows.numbers.items():
        known = values[~np.isnan(values)]
        is_whole = bool((known == np.floor(known)).all())
        rounding = 0.0 if is_whole else SAME * np.abs(known).max(initial=0.0)
        if len(known) and len(known) == len(values) and np.ptp(known) <= rounding:
            same.append([name, number(float(known[0]))])
        elif len(known):
            labels, bins = _binned(values, known)
            found, names = quantiles(known), shown(len(known))
            told = {title(quantile): number(found[quantile]) for quantile in names}
            columns.append(_column(name, labels, bins, sample, told))
    for name, words in rows.words.items():
        labels, bins = _worded(words)
        if len(labels) == 1:
            same.append([name, labels[0]])
        elif labels:
            columns.append(_column(name, labels, bins, sample, None))
    columns.sort(key=lambda column: list(MEANINGS).index(column["name"]) if column["name"] in MEANINGS else 99)
    return {"rows": rows.num_rows, "sample": len(sample), "columns": columns, "same": same}


def number(value: float) -> str:
    """A number for people, with three digits that count, whole ones with all."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _column(
    name: str, labels: list[str], bins: NDArray[np.int64], sample: NDArray[np.int64], quantiles: dict[str, str] | None
) -> dict[str, Any]:
    return {
        "name": name,
        "meaning": MEANINGS.get(name, _meaning_of_score(name)),
        "labels": labels,
        "counts": np.bincount(bins, minlength=len(labels)).tolist(),
        "quantiles": quantiles,
        "sample": bins[sample].tolist(),
    }


def _meaning_of_score(name: str) -> str:
    kind, _, label = name.partition(".")
    if kind.endswith("_personal"):
        return f"how often personal information ({label}) is in the row's {kind.removesuffix('_personal')}"
    of = {"prompt_scores": "prompts", "response_scores": "answers"}.get(kind)
    return f"highest {label} of a row's {of}, as the classifier scores it" if of else ""


def _binned(values: NDArray[np.float64], known: NDArray[np.float64]) -> tuple[list[str], NDArray[np.int64]]:
    """Labels [B] of bins, and the bin of each value; those that are missing have the last one."""
    edges, is_whole = _edges(known), bool((known == np.floor(known)).all())
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    labels = [_label(a, b, is_whole, is_last=b == edges[-1]) for a, b in itertools.pairwise(edges)]
    if len(known) < len(values):
        bins[np.isnan(values)] = len(labels)
        labels.append(MISSING)
    return labels, bins


def _edges(known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges [B + 1] of round numbers; closer together at the lower end where a few values are far above all others."""
    least, most = float(known.min()), float(known.max())
    median = float(np.median(known))
    if least >= 0 and most > 50 * max(median, 1e-6):
        floor = max(10.0 ** np.floor(np.log10(max(median, most * 1e-6))) / 10, most * 1e-6)
        ladder = [m * 10.0**e for e in range(int(np.floor(np.log10(floor))), 20) for m in (1, 2, 5)]
        return np.array([0.0, *[step for step in ladder if step < most], next(step for step in ladder if step >= most)])
    rough = (most - least) / (MAX_BINS - 2)
    scale = 10.0 ** np.floor(np.log10(rough))
    step = float(next(m * scale for m in (1, 2, 5, 10) if m * scale >= rough))
    if (known == np.floor(known)).all():
        step = max(1.0, step)
    first = np.floor(least / step)
    return np.arange(first, np.floor(most / step) + 2) * step


def _label(start: float, end: float, is_whole: bool, *, is_last: bool) -> str:
    if is_whole and float(start).is_integer() and float(end).is_integer():
        last = end if is_last and end - start > 1 else end - 1
        return number(start) if last <= start else f"{number(start)} – {number(last)}"
    return f"{start:.6g} – {end:.6g}"


def _worded(words: pa.DictionaryArray) -> tuple[list[str], NDArray[np.int64]]:
    """Labels of the commonest values, commonest first, and the bin of each row."""
    codes = pc.fill_null(words.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    names = words.dictionary.to_pylist()
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    ranked = sorted((n for n in range(len(names)) if counts[n]), key=lambda n: (-int(counts[n]), names[n]))
    own, shared = ranked[:MAX_WORDS], ranked[MAX_WORDS:]
    labels = [names[n] for n in own]
    bin_of = np.zeros(len(names) + 1, np.int64)
    bin_of[own] = np.arange(len(own))
    if shared:
        bin_of[shared] = len(labels)
        labels.append(OTHERS)
    if (codes < 0).any():
        bin_of[-1] = len(labels)
        labels.append(MISSING)
    return labels, bin_of[codes]
