"""Filters that judge each row by itself: what they gave it is beside the row, so other settings can be counted."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.pipeline.look.filters.entry import Filter, Setting, around
from stillhouse.pipeline.look.filters.rows import RowsRead
from stillhouse.pipeline.look.filters.settings import NO_THRESHOLD, TAGS, drop_reason, thresholds
from stillhouse.schemas.lists import flat_lists
from stillhouse.schemas.tables import EVIDENCE_LABELS
from stillhouse.stages.filters.quota import lot

KEPT_BY = {
    "jailbreak": "screen.jailbreaks.keep",
    "low_information": "screen.low_information.keep",
    "refusal": "review.refusals.keep_refusals",
    "hedge": "review.refusals.keep_hedges",
}
"""By label, the setting that is the share of its rows which is kept."""
SHARES = (0.0, 0.05, 0.25, 0.5, 1.0)
OF_CLASSIFIERS, OF_ITEMS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95), (0.25, 0.5, 0.75, 1.0)
LOOPS = (16, 32, 64, 128, 256)
CERTAIN = (0.5, 0.7, 0.9, 0.99)
MOST_LANGUAGES = 3
"""With each of which alone `screen.language.keep` is tried."""


def of_labels(rows: RowsRead, stage: str, config: dict[str, Any]) -> list[Filter]:
    """Classifiers, guard models, evaluation sets, jailbreak templates and tags."""
    used = thresholds(config, stage)
    found = []
    for label in rows.scores:
        if label in TAGS:
            found.append(_tag(rows, stage, label, config))
        elif label not in NO_THRESHOLD:
            key, value = used.get(label, (None, None))
            grid = OF_ITEMS if label in EVIDENCE_LABELS.values() else OF_CLASSIFIERS
            found.append(_scored(rows, stage, label, drop_reason(stage, label), key, value, grid, config))
    return found


def _scored(
    rows: RowsRead, stage: str, label: str, reason: str, key: str | None, value: float | None,
    grid: tuple[float, ...], config: dict[str, Any],
) -> Filter:  # fmt: skip
    scores = rows.scores[label]
    read = len(rows.known(label))
    if key is None or value is None:
        tried = [(limit, int((scores >= np.float32(limit)).sum())) for limit in grid]
        setting = Setting(f"thresholds.{label}", None, tried, "no threshold is set, so it drops none")
        return Filter(stage, label, None, read, None, 0, [setting], label)
    is_found = scores >= np.float32(value)
    keep = config.get(KEPT_BY.get(label, ""))
    drawn = _lots(rows, label, scores >= np.float32(min(around(value, grid)))) if keep else np.ones(len(scores))
    beyond = drawn >= (keep or 0.0)
    tried = [(limit, int((beyond & (scores >= np.float32(limit))).sum())) for limit in around(value, grid)]
    name = key if key.endswith(".threshold") else f"{key}.{label}"
    settings = [Setting(name, value, tried)]
    if keep is not None:
        drawn = drawn if keep else _lots(rows, label, is_found)
        settings.append(_share(KEPT_BY[label], keep, is_found, drawn))
    dropped = int((is_found & (rows.reasons == reason)).sum())
    return Filter(stage, label, reason, read, int(is_found.sum()), dropped, settings, label)


def _tag(rows: RowsRead, stage: str, label: str, config: dict[str, Any]) -> Filter:
    is_found = rows.scores[label] > 0
    key = KEPT_BY.get(label)
    settings = []
    if key is not None and config.get(key) is not None:
        settings = [_share(key, config[key], is_found, _lots(rows, label, is_found))]
    number = len(rows.known(label))
    return Filter(stage, label, label, number, int(is_found.sum()), rows.dropped(label), settings, label)


def _share(key: str, keep: float, is_found: NDArray[np.bool_], drawn: NDArray[np.float64]) -> Setting:
    return Setting(
        key, keep, [(share, int((is_found & (drawn >= share)).sum())) for share in around(keep, SHARES)], "share kept"
    )


def _lots(rows: RowsRead, kind: str, of: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[R] what the rows `of` draw, 0 to 1: those below the share that is kept are kept (`stages.filters.quota`)."""
    drawn = np.ones(len(of))
    for row in np.flatnonzero(of).tolist():
        drawn[row] = lot(kind, rows.ids[row].as_py()) / 2**64
    return drawn


def language(rows: RowsRead, config: dict[str, Any]) -> list[Filter]:
    """What other languages, and another certainty, would change."""
    if "language" not in rows.scores or "prompt_language" not in rows.columns:
        return []
    wanted, keeps_unsure = config.get("screen.language.keep"), config.get("screen.language.unsure") != "drop"
    at_least = float(config.get("screen.language.min_score", 0.0))
    foreign = [
        next((name for name, score in more.items() if score == value), None)
        for more, value, reason in zip(
            rows.others, rows.scores["language"][rows.num_kept :].tolist(), rows.reasons[rows.num_kept :], strict=True
        )
        if reason == "language"
    ]
    codes = [*rows.columns["prompt_language"].to_pylist(), *foreign]
    counts = pc.value_counts(pa.array(codes, pa.string()).drop_null()).to_pylist()
    common = [item["values"] for item in sorted(counts, key=lambda item: (-item["counts"], item["values"]))]

    def taken(kept: list[str] | None) -> int:
        if kept is None:
            return 0
        return sum(code not in kept if code is not None else not keeps_unsure for code in codes)

    choices = [None, wanted, *([code] for code in common[:MOST_LANGUAGES])]
    tried = [(", ".join(kept) if kept else "all", taken(kept)) for kept in dict.fromkeys(map(_frozen, choices))]
    scores = rows.known("language")
    unsure = [(limit, int((scores < np.float32(limit)).sum())) for limit in around(at_least, CERTAIN)]
    of_unsure = "keep keeps" if keeps_unsure else "drop drops, where keep names some"
    settings = [
        Setting("screen.language.keep", ", ".join(wanted) if wanted else "all", tried),
        Setting(
            "screen.language.min_score",
            at_least,
            [pair for pair in unsure if pair[0] >= at_least],
            f"prompts without a language, which unsure: {of_unsure}",
        ),
    ]
    reason = None if wanted is None else "language"
    return [Filter("screen", "language", reason, len(codes), None, rows.dropped("language"), settings, "language")]


def _frozen(kept: list[str] | None) -> Any:
    return None if kept is None else tuple(kept)


def flagged(rows: RowsRead, config: dict[str, Any]) -> list[Filter]:
    """What the source's own moderation flagged."""
    if "moderation_flagged" not in rows.columns:
        return []
    dropped = rows.dropped("moderation_flagged")
    number = int(pc.sum(rows.columns["moderation_flagged"].fill_null(False)).as_py() or 0) + dropped
    setting = Setting("screen.drop_flagged", config.get("screen.drop_flagged"), [(False, 0), (True, number)])
    read = rows.num_kept + dropped
    return [Filter("screen", "moderation_flagged", "moderation_flagged", read, number, dropped, [setting])]


def of_form(rows: RowsRead, config: dict[str, Any]) -> list[Filter]:
    """Answers that are empty, repeat themselves or were cut off."""
    read, found = rows.num_kept, []
    found.append(
        Filter("review", "empty_answer", "empty_answer", len(rows.reasons), None, rows.dropped("empty_answer"))
    )
    limit = config.get("review.loop_tokens")
    if limit is not None and "loop_tokens" in rows.scores:
        tokens = rows.scores["loop_tokens"]
        tried = [(int(most), int((tokens >= most).sum())) for most in around(limit, LOOPS)]
        dropped = rows.dropped("degenerate_answer")
        setting = Setting("review.loop_tokens", limit, tried)
        number = len(rows.known("loop_tokens"))
        now = int((tokens >= limit).sum())
        found.append(
            Filter("review", "loop_tokens", "degenerate_answer", number, now, dropped, [setting], "loop_tokens")
        )
    if "finish_reasons" in rows.columns:
        lists = flat_lists(rows.columns["finish_reasons"])
        ends = np.concatenate([[0], np.cumsum(np.array(lists.values.to_pylist(), object) == "length")])
        offsets = lists.offsets.to_numpy().astype(np.int64)
        dropped = rows.dropped("truncated_answer")
        number = int((np.diff(ends[offsets]) > 0).sum()) + dropped
        setting = Setting("review.drop_truncated", config.get("review.drop_truncated"), [(False, 0), (True, number)])
        found.append(
            Filter("review", "truncated_answer", "truncated_answer", read + dropped, number, dropped, [setting])
        )
    return found
