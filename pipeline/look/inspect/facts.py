"""What a place holds: from footers and manifests, and of the rows a few narrow columns. Never whole shards."""

from typing import Any

import pyarrow as pa

from stillhouse.pipeline.folder import index, keys, partition
from stillhouse.pipeline.folder.certified import parse_certified
from stillhouse.pipeline.folder.index import ShardSummary
from stillhouse.pipeline.look.conversation import HEAVY
from stillhouse.pipeline.look.inspect.distributions import distributions
from stillhouse.pipeline.look.place import Place
from stillhouse.pipeline.look.verdict import verdict
from stillhouse.schemas.config import ConfigError, values_hash
from stillhouse.stages.teacher import fidelity

SAMPLED_GROUPS = 4
"""Row groups (of some 32 MB) from which fidelity is estimated before publish has measured it."""


def facts(place: Place, stage: str | None = None) -> dict[str, Any]:
    """Counts, funnel, distributions, teacher and settings of a place, as docs/inspecting.md says. `stage` is the one
    whose rows are described, by default the last that has files. Raises `ConfigError` where that has none."""
    notes = [*place.notes]
    described = stage or place.last_stage
    if stage is not None and stage not in place.stages:
        raise ConfigError(
            f"--stage {stage}: {place.path} has no files of it; it has {', '.join(place.stages) or 'none of any stage'}"
        )
    summaries: dict[str, dict[str, ShardSummary]] = {}
    stages = _of_manifest(place)
    for name, files in place.stages.items():
        # JSON lines have no footer: the manifest counts them.
        parquet = [key for key in files if key.endswith(".parquet")]
        summaries[name], damaged = index.glance(place.folder, name, parquet)
        notes += damaged
        stages[name] = _counts(place, name, files, summaries[name], stages.get(name))
    for name, files in place.ledger.items():
        if name not in place.stages:
            stages[name] = _ledger_counts(place, files)
    rows = stages.get(described, {}).get("rows_out") if described else 0
    of_described = summaries.get(described or "", {})
    files = place.stages.get(described or "", [])
    numbers, values = distributions(place, [key for key in files if key in of_described], sum_rows(of_described))
    measured, estimated_from = _fidelity(place, [key for key in files if key in of_described], of_described)
    tokens = sum(summary.num_target_tokens for summary in of_described.values())
    return {
        "path": place.path,
        "kind": place.kind,
        "layout": place.layout,
        "state": _state(place),
        "config_hash": _config_hash(place),
        "stage": described,
        "rows": rows,
        "target_tokens": tokens or _manifest_tokens(place),
        "bytes": sum(place.sizes[key] for key in files),
        "stages": stages,
        "numbers": numbers,
        "values": values,
        "fidelity": measured,
        "fidelity_estimated_from": estimated_from,
        "verdict": verdict(measured, place.config)._asdict() if measured and place.config else None,
        "teacher": _teacher(place),
        **{key: value for key, value in (place.manifest or {}).items() if key == "teachers"},
        "settings": place.config,
        "set_aside": _set_aside(place),
        "notes": notes + _differences(place),
    }


def sum_rows(summaries: dict[str, ShardSummary]) -> int:
    return sum(summary.rows_out for summary in summaries.values())


def _state(place: Place) -> str:
    """Of the run that it is a part of; of a copy that no manifest describes `unknown`."""
    if place.manifest is not None:
        return "finished"
    return "unfinished" if place.is_run else "unknown"


def _config_hash(place: Place) -> str | None:
    """Of an export that of the dataset it was made from."""
    told = place.manifest or {}
    found = told.get("config_hash", told.get("dataset_config_hash"))
    return values_hash(place.config) if found is None and place.config is not None else found


def _of_manifest(place: Place) -> dict[str, dict[str, Any]]:
    """The funnel as a manifest tells it: of stages whose files are not here."""
    if place.kind not in ("run", "dataset"):
        return {}
    told = (place.manifest or {}).get("stages") or {}
    return {name: {"shards": None, "of": None, "bytes": None, **counts} for name, counts in told.items()}


def _counts(
    place: Place, stage: str, files: list[str], summaries: dict[str, ShardSummary], told: dict[str, Any] | None
) -> dict[str, Any]:
    rows_in, dropped = index.stage_counts(summaries)
    rows_out = sum_rows(summaries)
    if not summaries and place.manifest is not None and place.layout is not None:
        rows_in = rows_out = sum(f["rows"] for f in place.manifest["files"] if any(f["file"] == key for key in files))
    return {
        "shards": len(files),
        "of": _num_shards(place) if place.kind in ("run", "dataset", "export", "stage") else None,
        "bytes": sum(place.sizes[key] for key in files),
        "rows_in": rows_in,
        "rows_out": rows_out,
        "dropped": dropped,
    }


def _ledger_counts(place: Place, files: list[str]) -> dict[str, Any]:
    """Of a ledger without its stage: what was dropped, and not out of how many."""
    dropped: dict[str, int] = {}
    for key in files:
        for reason in place.open(key).read(["reason"]).column("reason").to_pylist():
            dropped[reason] = dropped.get(reason, 0) + 1
    size = sum(place.sizes[key] for key in files)
    return {
        "shards": len(files), "of": None, "bytes": size, "rows_in": None, "rows_out": None,
        "dropped": dict(sorted(dropped.items())),
    }  # fmt: skip


def _num_shards(place: Place) -> int | None:
    """How many files there are of each stage once it is done; None before ingest has ended."""
    if place.manifest is not None:
        return len(place.manifest["files"])
    try:
        return len(partition.read(place.folder)) if place.is_run else None
    except FileNotFoundError:
        return None


def _manifest_tokens(place: Place) -> int:
    return int((place.manifest or {}).get("target_tokens", 0)) if place.kind == "export" else 0


def _fidelity(
    place: Place, files: list[str], summaries: dict[str, ShardSummary]
) -> tuple[dict[str, Any] | None, dict[str, int] | None]:
    """Quantiles over tokens of entropy, surprisal and tail mass: what publish measured over all of them; before that an
    estimate, and how many rows of how many it is from."""
    found = [summary.fidelity for summary in summaries.values() if summary.fidelity.get("tokens")]
    if found:
        return fidelity.report(fidelity.merged(found)), None
    if not any(summary.num_target_tokens for summary in summaries.values()):
        return None, None
    groups = [
        (key, group)
        for key in files
        if summaries[key].num_target_tokens
        for group in range(place.open(key).metadata.num_row_groups)
    ]
    num_chosen = min(SAMPLED_GROUPS, len(groups))
    parts, rows = [], 0
    for key, group in (groups[len(groups) * i // num_chosen] for i in range(num_chosen)):
        table: pa.Table = place.open(key).group(group, [*HEAVY, "probe"])
        if {"labels", "probe"} <= {*table.column_names}:  # not an export
            rows += table.num_rows
            parts.append(fidelity.statistics(table))
    if not rows:
        return None, None
    return fidelity.report(fidelity.merged(parts)), {"rows": rows, "of": sum_rows(summaries)}


def _teacher(place: Place) -> dict[str, Any] | None:
    if place.manifest is not None and place.manifest.get("teacher"):
        return dict(place.manifest["teacher"])
    if "teachers[0].name" in (place.config or {}):
        return None  # each has its own, which the manifest tells
    data = place.folder.get_or_none(keys.TEACHER) if place.is_run else None
    if data is not None:
        try:
            return parse_certified(data)
        except ValueError:
            pass
    if place.config is None:
        return None
    return {name: place.config.get(f"teacher.{name}") for name in ("model", "revision", "dtype")}


def _set_aside(place: Place) -> list[str]:
    if not place.is_run:
        return list((place.manifest or {}).get("set_aside", []))
    return [
        f"{stage} {keys.set_aside_shard(file)}"
        for stage in (*place.stages, *(name for name in keys.TEACHERS if name not in place.stages))
        for file in place.folder.list(keys.set_aside_folder(stage))
    ]


def _differences(place: Place) -> list[str]:
    """Where the files that are here are not those of the manifest, by name and size."""
    if place.manifest is None or place.kind not in ("run", "dataset", "export"):
        return []
    here = {keys.name(key): size for key, size in place.sizes.items() if "data/" in key}
    told = {keys.name(file["file"]): file["bytes"] for file in place.manifest["files"]}
    missing = len(told.keys() - here.keys())
    unknown = len(here.keys() - told.keys())
    other = sum(here[name] != told[name] for name in here.keys() & told.keys())
    found = [(missing, "are missing"), (unknown, "are not in it"), (other, "have another size")]
    return [f"{place.path}: of the manifest's files {n:,} {what}" for n, what in found if n]
