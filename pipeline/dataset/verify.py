"""`stillhouse verify FOLDER`: is a dataset, or an export of one, what its manifest says and what its trainer expects?

Needs no source and no teacher. Beside checksums and shapes it tests the alignment on the numbers themselves (`checks`).
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from stillhouse.pipeline.dataset.checks import Findings, check_dataset, check_export, check_lines
from stillhouse.pipeline.dataset.manifest import MANIFEST, open_dataset
from stillhouse.pipeline.dataset.processes import in_processes
from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder import Folder, open_folder, shard
from stillhouse.pipeline.folder.certified import parse_certified
from stillhouse.schemas.config import ConfigError
from stillhouse.stages.layouts import Settings, load_layout

MIN_TOKENS = 100
"""With fewer supervised tokens than these, alignment is not judged: their neighbours might win by chance."""


@dataclass(frozen=True)
class _Task:
    """One file; goes to another process."""

    folder: Folder
    key: str
    file: dict[str, Any]
    layout: str | None
    manifest: dict[str, Any]


def verify(url: str, num_workers: int | None = None) -> dict[str, Any]:
    """What was found: `ok`, `problems` (the first ones, each naming its file and row) and counts.

    `url` is a run, a dataset, or an export. Raises `ConfigError` where there is none of them.
    """
    folder = open_folder(url)
    prefix, manifest = "", _read_manifest(folder)
    if manifest is None or "layout" not in manifest:
        dataset = open_dataset(url)
        prefix, manifest = dataset.prefix, dataset.manifest
    layout = manifest.get("layout")
    total = Findings()
    needed = {key: manifest.get(key) for key in ("config", "teacher", "targets", "settings")}  # not its list of files
    tasks = [_Task(folder, prefix + file["file"], file, layout, needed) for file in manifest["files"]]
    for findings in in_processes(_verify_file, tasks, num_workers):
        total.add(findings)
    listed = {file["file"] for file in manifest["files"]}
    for name in sorted(folder.list(f"{prefix}data")):
        if f"data/{name}" not in listed:
            total.problem(f"data/{name}: is not in manifest.json, but a loader would read it; delete it")
    for what, counted in (("rows", total.rows), ("target_tokens", total.target_tokens)):
        if counted != manifest[what]:
            total.problem(f"manifest.json: says {manifest[what]:,} {what}, the files hold {counted:,}")
    probabilities = (total.shifted / max(total.num_shifted, 1)).round(4).tolist()
    if total.num_shifted >= MIN_TOKENS and probabilities[1] <= max(probabilities[0], probabilities[2]):
        total.problem(
            f"alignment: rows give the token before theirs a probability of {probabilities[0]}, their own "
            f"{probabilities[1]} and the one after {probabilities[2]}, over {total.num_shifted:,} tokens; they are "
            "shifted"
        )
    return {
        "folder": url,
        "layout": layout or "native",
        "alignment": "own-token" if layout is None else load_layout(layout).alignment,
        "ok": total.num_problems == 0,
        "files": len(tasks),
        "rows": total.rows,
        "target_tokens": total.target_tokens,
        "alignment_tokens": total.num_shifted if total.num_shifted >= MIN_TOKENS else 0,
        "probability_before_own_after": probabilities,
        "num_problems": total.num_problems,
        "problems": total.problems,
    }


def _read_manifest(folder: Folder) -> dict[str, Any] | None:
    data = folder.get_or_none(MANIFEST)
    if data is None:
        return None
    try:
        return parse_certified(data)
    except ValueError:
        raise ConfigError(f"{folder.path(MANIFEST)}: is damaged; make the folder again") from None


def _verify_file(task: _Task) -> Findings:
    findings = Findings()
    name = task.file["file"]
    try:
        data = task.folder.get(task.key)
    except FileNotFoundError:
        findings.problem(f"{name}: is missing; run again to make it again")
        return findings
    if hashlib.sha256(data).hexdigest() != task.file["sha256"]:
        findings.problem(f"{name}: is not the file that manifest.json names (another sha256); make it again")
        return findings
    if task.layout is not None and load_layout(task.layout).is_jsonl:
        check_lines(data, task.file, task.layout, findings)
        return findings
    try:
        table = shard.decode(data, name).table
    except DamagedError as error:
        findings.problem(str(error))
        return findings
    findings.rows = table.num_rows
    if task.layout is None:
        check_dataset(table, name, task.manifest, findings)
    else:
        check_export(table, name, task.layout, Settings(**task.manifest["settings"]), findings)
    return findings
