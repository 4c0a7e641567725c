"""What only all files of a dataset or an export tell together: missing files, repeated rows, counts."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stillhouse.pipeline.dataset.checks.findings import Findings
from stillhouse.pipeline.folder import Folder, shard

_FILE = re.compile(r"data/train-(\d{5,})-of-(\d{5,})\.(?:parquet|jsonl)")
_SHARD = re.compile(r"\b(\d{5,})\.parquet\b")


def stem(name: str) -> str:
    """A file's name without what its format adds: the same in a dataset and in its exports."""
    return name.removesuffix(".parquet").removesuffix(".jsonl")


def check_names(
    manifest: dict[str, Any], present: Sequence[str], dataset: dict[str, Any] | None, total: Findings
) -> None:
    """The files of a manifest are all that there are to be: those of the manifest of its `dataset`, or `train-n-of-N`
    for each n of N that was not set aside. `present` are the names in the folder."""
    names = [file["file"] for file in manifest["files"]]
    for name, count in Counter(names).items():
        if count > 1:
            total.problem(f"manifest.json: lists {name} {count} times")
    for name in sorted(set(present) - set(names)):
        total.problem(f"{name}: is not in manifest.json, but a loader would read it; delete it")
    if dataset is not None:
        wanted, listed = ({stem(file["file"]) for file in facts["files"]} for facts in (dataset, manifest))
        for name in sorted(listed - wanted):
            total.problem(f"{name}: the dataset has no such file")
        if missing_names := sorted(wanted - listed):
            total.problem(
                f"manifest.json: lists {len(listed)} files, the dataset has {len(wanted)}; {len(missing_names)} are "
                f"missing ({', '.join(missing_names[:5])})"
            )
        return
    matches = {name: _FILE.fullmatch(name) for name in names}
    sizes = Counter(int(match[2]) for match in matches.values() if match)
    size = sizes.most_common(1)[0][0] if sizes else 0
    found = set()
    for name, match in matches.items():
        if match is None or int(match[2]) != size or int(match[1]) >= size:
            total.problem(f"{name}: is no name of one of {size} files, as data/train-00000-of-{size:05d}")
        else:
            found.add(int(match[1]))
    set_aside = manifest.get("set_aside")
    missing = sorted({*range(size)} - found - {int(n) for line in set_aside or [] for n in _SHARD.findall(line)})
    if missing and set_aside is None:
        total.not_checked.add(
            f"whether {len(missing)} of {size} files are missing or were set aside was not checked: the export is an "
            "older version's; export again"
        )
    elif missing:
        named = ", ".join(f"{number:05d}" for number in missing[:5]) + (", …" if len(missing) > 5 else "")
        total.problem(
            f"manifest.json: lists {len(found)} files, and their names say {size}; {len(missing)} are missing ({named})"
        )


def check_counts(manifest: dict[str, Any], total: Findings) -> None:
    """Totals of a manifest are those of its files. Files that are not there count for nothing, and nothing is told."""
    files = manifest["files"]
    for what in ("rows", "target_tokens", "bytes", "rows_too_long"):
        if what in manifest and manifest[what] != (listed := sum(file[what] for file in files)):
            total.problem(f"manifest.json: says {manifest[what]:,} {what}, its files hold {listed:,}")
            return
    for what, counted in (("rows", total.rows), ("target_tokens", total.target_tokens)):
        if not total.num_problems and counted != manifest[what]:
            total.problem(f"manifest.json: says {manifest[what]:,} {what}, the files hold {counted:,}")
    is_told = not total.num_problems and "layout" not in manifest and not manifest["config"].get("mixture")
    for teacher in manifest.get("teachers", []) if is_told else []:
        if (counted := total.teachers[teacher["name"]]) != teacher["rows"]:
            total.problem(
                f"manifest.json: says {teacher['rows']:,} rows of {teacher['name']}, the files hold {counted:,}"
            )
    if "stages" not in manifest or manifest["set_aside"] or total.num_problems:
        return
    reviewed = manifest["stages"]["review"]["rows_out"]
    if reviewed != manifest["rows"]:
        total.problem(f"manifest.json: says {manifest['rows']:,} rows, and that review let {reviewed:,} pass")
        return
    measured = manifest["fidelity"]["tokens"]
    if measured != manifest["target_tokens"]:
        total.problem(
            f"manifest.json: says {manifest['target_tokens']:,} target_tokens, and that fidelity was measured on "
            f"{measured:,}"
        )


def check_columns_alike(parts: Sequence[Findings], total: Findings) -> None:
    """All files have the same columns, types included: `datasets` reads all of them as the first."""
    schemas = Counter(part.schema for part in parts if part.schema)
    usual = schemas.most_common(1)[0][0] if schemas else ""
    for part in parts:
        if part.schema and part.schema != usual:
            total.problem(f"{part.name}: has other columns or types than {schemas[usual]} other files")


def check_repeated(parts: Sequence[Findings], folder: Folder, prefix: str, is_export: bool, total: Findings) -> None:
    """No sample is there twice. An export's rows have no names: of those whole files are compared."""
    if is_export:
        seen: dict[bytes, str] = {}
        for part in parts:
            key = part.row_digests.tobytes()
            if key and (other := seen.setdefault(key, part.name)) != part.name:
                total.problem(f"{part.name}: holds the same {len(part.row_digests):,} rows as {other}")
        return
    digests = np.concatenate([part.row_digests for part in parts] or [np.zeros(0, np.uint64)])
    file_of = np.repeat(np.arange(len(parts)), [len(part.row_digests) for part in parts])
    order = np.argsort(digests, kind="stable")
    again = np.flatnonzero(digests[order][1:] == digests[order][:-1])
    pairs = {(int(file_of[order[i]]), int(file_of[order[i + 1]])) for i in again}
    for first, second in sorted(pairs):
        # Digests are short: names decide.
        ids = [
            shard.read(folder, prefix + parts[number].name, ["sample_id"]).column("sample_id").to_pylist()
            for number in dict.fromkeys((first, second))
        ]
        twice = [name for name in ids[-1] if name in set(ids[0])] if first != second else _repeated(ids[0])
        if twice:
            where = f"{parts[first].name} holds too" if first != second else "it holds already"
            total.problem(
                f"{parts[second].name}: holds {len(twice):,} samples that {where} (the first one: {twice[0]})"
            )


def _repeated(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() for _ in range(count - 1)]
