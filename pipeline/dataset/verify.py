"""`stillhouse verify FOLDER`: is a dataset, or an export of one, what its manifest says and what its trainer expects?

Needs no source and no engine. An export is compared with its dataset where that is at hand, and text with ids where the
teacher's tokenizer is; the result says which checks were not made. What is looked at: `checks`.
"""

import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stillhouse.pipeline.dataset.checks import files, text, together
from stillhouse.pipeline.dataset.checks.alignment import MIN_TOKENS
from stillhouse.pipeline.dataset.checks.exported import (
    check_exported,
    check_lines,
    is_judged,
    misalignment,
    without_long,
)
from stillhouse.pipeline.dataset.checks.findings import Findings
from stillhouse.pipeline.dataset.checks.published import check_published
from stillhouse.pipeline.dataset.export import export_identity
from stillhouse.pipeline.dataset.manifest import FORMAT_VERSION, MANIFEST, Dataset, open_dataset
from stillhouse.pipeline.dataset.processes import in_processes
from stillhouse.pipeline.dataset.withhold import LAYOUT as NO_PROMPTS
from stillhouse.pipeline.dataset.withhold import with_gaps_filled
from stillhouse.pipeline.errors import DamagedError, ShardError
from stillhouse.pipeline.folder import Folder, keys, open_folder, shard
from stillhouse.pipeline.folder.certified import parse_certified
from stillhouse.pipeline.folder.shard import ShardId
from stillhouse.schemas.config import ConfigError, values_hash
from stillhouse.stages.layouts import LAYOUTS, Settings, load_layout

COUNTS = {"files", "rows", "target_tokens", "bytes", "teacher"}


@dataclass(frozen=True)
class _Task:
    """One file; goes to another process."""

    folder: Folder
    key: str
    file: dict[str, Any]
    manifest: dict[str, Any]
    teacher: str | None
    source: tuple[Folder, dict[str, Any], str] | None
    """Where the dataset's file is that an export's was made from."""


def verify(
    url: str, num_workers: int | None = None, dataset: str | None = None, teacher: str | None = None
) -> dict[str, Any]:
    """What was found: `ok`, `problems` (the first ones, each naming its file and row), counts, and `not_checked`.

    `url` is a run, a dataset, or an export; `dataset` what an export was made from (by default the run in whose
    `exports` it is), `teacher` a folder or hub name of the tokenizer (by default the one that the run had). Raises
    `ConfigError` where there is none of them.
    """
    folder = open_folder(url)
    prefix, manifest = "", _read_manifest(folder)
    if manifest is None or "layout" not in manifest:
        opened = open_dataset(url)
        prefix, manifest = opened.prefix, opened.manifest
    layout = manifest.get("layout")
    total = Findings()
    source = _source(url, dataset, total) if layout is not None else None
    if teacher is not None and (layout is not None or "withheld" in manifest):
        raise ConfigError(
            f"--teacher: {url} is an export, whose text is not compared with ids; leave it out, or verify the dataset"
        )
    if layout is not None:
        source = _check_export_manifest(folder, manifest, source, total)
    else:
        if dataset is not None:
            raise ConfigError(f"--dataset: {url} is a dataset itself; name one for an export only")
        _check_dataset_manifest(manifest, url, total)
    needed = {key: value for key, value in manifest.items() if key != "files"}
    sources = _places(source)
    tasks = [
        _Task(folder, prefix + file["file"], file, needed, teacher, sources.get(together.stem(file["file"])))
        for file in manifest["files"]
    ]
    listed = [f"data/{name}" for name in folder.list(f"{prefix}data")]
    together.check_names(manifest, listed, source.manifest if source else None, total)
    is_numeric = layout is not None and not load_layout(layout).is_jsonl
    if is_numeric and source is None and not is_judged(manifest.get("sampling")):
        total.not_checked.add(
            "whether rows belong to their tokens was judged by neighbouring tokens alone: more needs a temperature of "
            "at most 1, no repetition penalty, and an export that says so"
        )
    parts = list(in_processes(_verify_file, tasks, num_workers))
    for part in parts:
        total.add(part)
    left = [*{part.name: part for part in parts if not part.is_left_out}.values()]  # a file may be listed twice
    together.check_columns_alike(left, total)
    together.check_repeated(left, folder, prefix, layout is not None, total)
    together.check_counts(manifest, total)
    if layout is not None and source is None and not total.num_problems and total.num_shifted:
        problem = misalignment(total, manifest)
        if problem is not None:
            total.problem(problem)
    return {
        "folder": url,
        "layout": layout or "native",
        "alignment": "own-token" if layout is None else load_layout(layout).alignment,
        "ok": total.num_problems == 0,
        "files": len(tasks),
        "rows": total.rows,
        "target_tokens": total.target_tokens,
        "dataset": source.folder.url if source else None,
        "alignment_tokens": total.num_shifted if total.num_shifted >= MIN_TOKENS else 0,
        "probability_before_own_after": (total.shifted / max(total.num_shifted, 1)).round(4).tolist(),
        "num_problems": total.num_problems,
        "problems": total.problems,
        "not_checked": sorted(total.not_checked),
    }


def _read_manifest(folder: Folder) -> dict[str, Any] | None:
    data = folder.get_or_none(MANIFEST)
    if data is None:
        return None
    try:
        return parse_certified(data)
    except ValueError:
        raise ConfigError(f"{folder.path(MANIFEST)}: is damaged; make the folder again") from None


def _require(manifest: dict[str, Any], names: set[str], url: str) -> None:
    if missing := sorted(names - manifest.keys()):
        raise ShardError(f"{url}: its manifest.json has no {', '.join(missing)}; make the folder again")


def _check_dataset_manifest(manifest: dict[str, Any], url: str, total: Findings) -> None:
    _require(manifest, COUNTS | {"config", "config_hash", "targets"}, url)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{url}: is of format {manifest.get('format_version')}, and this version verifies format {FORMAT_VERSION}; "
            "take the version that made it"
        )
    if values_hash(manifest["config"]) != manifest["config_hash"]:
        total.problem("manifest.json: its config_hash is not that of its config")


def _check_export_manifest(
    folder: Folder, manifest: dict[str, Any], source: Dataset | None, total: Findings
) -> Dataset | None:
    """Returns `source` where the export was made from it."""
    _require(manifest, COUNTS | {"settings", "identity", "dataset_config_hash"}, folder.url)
    name = manifest["layout"]
    if name not in LAYOUTS:
        raise ConfigError(f"{folder.url}: has the layout {name!r}, which this version does not know")
    layout, settings = load_layout(name), Settings(**manifest["settings"])
    for file, data in (layout.files(settings) if layout.files else {}).items():
        if folder.get_or_none(file) != data:
            total.problem(f"{file}: is missing, or not what manifest.json's settings give; export again")
    if source is None or export_identity(name, settings, source) == manifest["identity"]:
        return source
    is_other = source.manifest["config_hash"] != manifest["dataset_config_hash"]
    what = "from another dataset" if is_other else "with other settings, or from other files,"
    total.problem(f"manifest.json: the export was made {what} than that of {source.folder.url}; export again")
    return None


def _source(url: str, dataset: str | None, total: Findings) -> Dataset | None:
    """The dataset that an export is of: the one named, or the run's in whose `exports` it is."""
    if dataset is not None:
        return open_dataset(dataset)
    place = url.rstrip("/") if "://" in url else os.path.abspath(url)
    run, exports, _ = place.rpartition("/exports/")
    try:
        if exports:
            return open_dataset(run)
    except ConfigError:
        pass
    total.not_checked.add(
        "the export was not compared with its dataset, which is not beside it: prompts, single tokens and short "
        "conversations were not checked; give --dataset"
    )
    return None


def _places(source: Dataset | None) -> dict[str, tuple[Folder, dict[str, Any], str]]:
    """Where each file of a dataset is, by the stem of its name."""
    if source is None:
        return {}
    return {together.stem(file["file"]): (source.folder, file, source.key(file)) for file in source.manifest["files"]}


def _verify_file(task: _Task) -> Findings:
    findings = Findings(task.file["file"])
    manifest, layout_name = task.manifest, task.manifest.get("layout")
    data = files.read(task.folder, task.key, task.file, findings)
    if data is None:
        return findings
    if layout_name is None:
        _verify_published(data, task, findings)
        findings.close()
        return findings
    layout, settings = load_layout(layout_name), Settings(**manifest["settings"])
    if layout.is_jsonl:
        findings.target_tokens = task.file["target_tokens"]  # text does not say how many
        check_lines(data, task.file, layout, _read_source(task, settings, findings), findings)
    else:
        expected = ShardId(layout_name, task.file["file"], manifest["identity"])
        table = files.table_of(data, task.file, expected, findings)
        assert layout.schema is not None
        if table is not None and files.check_columns(table, layout.schema, findings):
            source = _read_source(task, settings, findings)
            check_exported(table, layout_name, settings, manifest, source, findings)
            if settings.is_partial:
                findings.target_tokens = task.file["target_tokens"]  # rows without targets do not say how many
    findings.close()
    return findings


def _verify_published(data: bytes, task: _Task, findings: Findings) -> None:
    manifest, words = task.manifest, dict[str | None, text.Words]()
    expected = ShardId(keys.PUBLISH, keys.published_shard(task.file["file"]), manifest["config_hash"])
    if is_withheld := "withheld" in manifest:
        expected = ShardId(NO_PROMPTS, task.file["file"], manifest["identity"])
    table = files.table_of(data, task.file, expected, findings)
    if table is not None and is_withheld:
        try:
            table = with_gaps_filled(table)
        except ShardError as error:
            findings.leave_out(str(error))
            return
    if table is None or not files.check_columns(table, files.published_schema(table, manifest["targets"]), findings):
        return
    if is_withheld:
        reasons = ["prompts are withheld, so text was not compared with ids; stillhouse join compares them"]
    else:
        words, reasons = text.load(manifest, task.teacher)
    findings.not_checked.update(reasons)
    check_published(table, manifest, words, findings)


def _read_source(task: _Task, settings: Settings, findings: Findings) -> pa.Table | None:
    """The rows of the dataset that an exported file is of."""
    if task.source is None:
        return None
    folder, file, key = task.source
    held = Findings(f"the dataset's {file['file']}")
    data = files.read(folder, key, file, held)
    if data is not None:
        try:
            return without_long(shard.decode(data, held.name).table, settings.max_length)
        except DamagedError as error:
            held.problem(str(error))
    for problem in held.problems:
        findings.problem(problem)
    return None
