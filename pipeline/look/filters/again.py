"""Filters that need a view of the whole data set: their sketches are compared again with other settings."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.look.filters.entry import Filter, Setting, around
from stillhouse.pipeline.look.filters.settings import section
from stillhouse.pipeline.look.place import Place
from stillhouse.schemas.config import BalanceConfig, ConfigError, DedupeConfig

MOST_PROMPTS = 100_000
"""More are not compared again: five times as many seconds as they took in the run, and half a kilobyte each."""
MOST_IN_TOPICS = 20_000
"""The same where prompts are sorted into topics."""
ALIKE, MEANT, EACH = (0.6, 0.7, 0.8, 0.9), (0.85, 0.9, 0.95, 0.98), (1, 2, 4, 8)
TOO_MANY = "too many rows to compare again; a run with --sample tells"


def duplicates(place: Place, config: dict[str, Any]) -> list[Filter]:
    """Equal, near and semantic duplicates of prompts."""
    from stillhouse.stages.dedupe import EXACT, NEAR, SEMANTIC, assign

    dropped, read = _dropped(place, "dedupe"), _read(place, "dedupe")
    entries = [Filter("dedupe", EXACT, EXACT, read, None, dropped.get(EXACT, 0))]
    try:
        used = DedupeConfig.model_validate(section(config, "dedupe"))
    except (ConfigError, ValidationError):  # of another version
        return entries
    sketches = _sketches(place, "dedupe", MOST_PROMPTS)

    def tried(reason: str, changed: Callable[[Any], DedupeConfig], values: Sequence[Any]) -> list[tuple[Any, int]]:
        if sketches is None:
            return []
        return [
            (value, sum(_count(part["drop_reason"], reason) for part in assign(iter(sketches), changed(value))))
            for value in values
        ]

    note = "" if sketches is not None else TOO_MANY
    alike = tried(NEAR, lambda value: used.model_copy(update={"threshold": value}), around(used.threshold, ALIKE))
    each = sorted({used.max_per_cluster, *EACH})
    kept = tried(NEAR, lambda value: used.model_copy(update={"max_per_cluster": value}), each)
    settings = [
        Setting("dedupe.threshold", used.threshold, alike, note),
        Setting("dedupe.max_per_cluster", used.max_per_cluster, kept, note),
    ]
    near = dropped.get(NEAR, 0)
    entries.append(Filter("dedupe", NEAR, NEAR, read, None, near, settings, "step: dedupe"))
    if (semantic := used.semantic) is not None:
        meant = tried(
            SEMANTIC,
            lambda value: used.model_copy(update={"semantic": semantic.model_copy(update={"threshold": value})}),
            around(semantic.threshold, MEANT),
        )
        setting = Setting("dedupe.semantic.threshold", semantic.threshold, meant, note)
        entries.append(Filter("dedupe", SEMANTIC, SEMANTIC, read, None, dropped.get(SEMANTIC, 0), [setting], SEMANTIC))
    return entries


def equal_answers(place: Place, config: dict[str, Any]) -> list[Filter]:
    """Long answers that other rows have too."""
    most = config.get("review.max_duplicates")
    sketches = _sketches(place, "review", None)
    if most is None or sketches is None:
        return []
    hashes = pa.chunked_array([chunk for sketch in sketches for chunk in sketch["answer_hash"].chunks], pa.binary(16))
    counts = pc.struct_field(pc.value_counts(hashes.drop_null().combine_chunks()), "counts").to_numpy()
    tried = [(limit, int((counts - limit).clip(0).sum())) for limit in sorted({most, *EACH})]
    setting = Setting("review.max_duplicates", most, tried)
    dropped = _dropped(place, "review").get("duplicate_answer", 0)
    read, name = sum(sketch.num_rows for sketch in sketches), "duplicate_answer"
    return [
        Filter("review", name, name, read, int(counts[counts > 1].sum()), dropped, [setting], "step: review: sketch")
    ]


def quotas(place: Place, config: dict[str, Any]) -> list[Filter]:
    """Kinds of prompts that there are too many of."""
    from stillhouse.stages.balance import OVER, assign

    try:
        used = BalanceConfig.model_validate(section(config, "balance"))
    except (ConfigError, ValidationError):
        return []
    sketches = _sketches(place, "balance", MOST_IN_TOPICS if "topic" in used.kinds else MOST_PROMPTS)
    weighted = used.over == "weight"
    settings = []
    for number, quota in enumerate(used.quotas):
        key = "max_rows" if quota.max_share is None else "max_share"
        value: Any = quota.max_rows if quota.max_share is None else quota.max_share
        tried = []
        for other in (value / 2, value, value * 2) if sketches is not None else ():
            other = max(1, round(other)) if key == "max_rows" else min(other, 1.0)
            changed = [*used.quotas]
            changed[number] = quota.model_copy(update={key: other})
            try:
                made = assign(iter(sketches or ()), used.model_copy(update={"quotas": changed}))
            except ConfigError:  # more groups than such shares allow
                continue
            taken = [
                pc.sum(pc.less(part["weight"], 1.0)).as_py() or 0 if weighted else _count(part["drop_reason"], OVER)
                for part in made
            ]
            tried.append((other, int(sum(taken))))
        note = "rows that weigh less than 1" if weighted else ""
        by = ", ".join(quota.by)
        note = "; ".join(filter(None, [note, "" if sketches is not None else TOO_MANY]))
        settings.append(Setting(f"balance.quotas[{number}].{key} (by {by})", value, tried, note))
    dropped = _dropped(place, "balance").get(OVER, 0)
    reason = None if weighted else OVER
    return [Filter("balance", OVER, reason, _read(place, "balance"), None, dropped, settings, "step: balance")]


def _sketches(place: Place, stage: str, most: int | None) -> list[pa.Table] | None:
    """Of all shards that the stage has made; None where some are gone or there are more rows than that."""
    names = sorted(place.folder.list(keys.sketches(stage)))
    if not names or len(names) != len(place.stages.get(stage, [])):
        return None
    if most is not None and (_read(place, stage) or 0) > most:
        return None
    try:
        return [shards.read(place.folder, f"{keys.sketches(stage)}/{name}") for name in names]
    except (DamagedError, FileNotFoundError):
        return None


def _dropped(place: Place, stage: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for key in place.ledger.get(stage, []):
        for item in pc.value_counts(place.open(key).read(["reason"])["reason"]).to_pylist():
            found[item["values"]] = found.get(item["values"], 0) + item["counts"]
    return found


def _read(place: Place, stage: str) -> int:
    """Rows that the stage read: what it kept and what it dropped."""
    return sum(place.open(key).num_rows for key in place.stages.get(stage, [])) + sum(_dropped(place, stage).values())


def _count(column: pa.ChunkedArray, reason: str) -> int:
    return int(pc.sum(pc.fill_null(pc.equal(column, reason), False)).as_py() or 0)
