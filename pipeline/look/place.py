"""What a path is: a run at any stage, a stage's folder, a dataset, an export of one, or a single file; here or in an
object store. Whatever looks at rows begins here."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from stillhouse.pipeline.dataset.manifest import MANIFEST
from stillhouse.pipeline.errors import DamagedError, ShardError
from stillhouse.pipeline.folder import Folder, keys, open_folder, shard
from stillhouse.pipeline.folder.certified import parse_certified, parse_object
from stillhouse.pipeline.folder.columns import Columns
from stillhouse.schemas.config import ConfigError
from stillhouse.schemas.tables import LEDGER

Kind = Literal["run", "stage", "dataset", "export", "shard"]

STAGES = ("ingest", "dedupe", "screen", "balance", *keys.TEACHERS, "review", keys.PUBLISH)
"""As `flow.of` has them, which needs a configuration; a run has one of the two with the teacher, and not every run has
balance (`Place.order`)."""
SUFFIXES = (".parquet", ".jsonl")
LOOSE = "ledger"
"""The stage of ledger files that lie alone: their rows name it."""


@dataclass(frozen=True)
class Place:
    """What was found at a path. Nothing of it is verified: `stillhouse verify` does that."""

    path: str
    """As it was given."""
    kind: Kind
    folder: Folder
    """What the keys are relative to: of a stage or a shard of a run, the run."""
    stages: dict[str, list[str]]
    """Keys of the files that the path is about, by stage in the order of the run, each list in the order of the shards;
    of an export, by its layout. A stage without files is not there."""
    ledger: dict[str, list[str]]
    """Keys of ledger files by stage."""
    manifest: dict[str, Any] | None
    """Of a finished run, a dataset or an export."""
    config: dict[str, Any] | None
    """The values that decide the data by dotted key, such as `teacher.model`, `screen.classifiers[0].thresholds` (see
    `schemas.config.deciding_values`), from run.json or the manifest; an export has none."""
    sizes: dict[str, int] = field(repr=False)
    """Bytes of every file in `stages` and `ledger`, by key."""
    is_run: bool
    """`folder` is a run folder, so that the files of other stages can be there (`run`)."""
    notes: list[str]
    """Sentences for people on what is damaged or missing."""

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The stages of the run that it is or comes from."""
        there, config = self.stages.keys() | self.ledger.keys(), self.config or {}
        has_balance = "balance" in there or any(key.startswith("balance.") for key in config)
        task = config.get("task") or ("score" if "score" in there else "generate")
        has_rollout = "rollout" in there or any(key.startswith("rollout.") for key in config)
        left_out = {*keys.TASKS} - {task} | (set() if has_balance else {"balance"})
        left_out |= set() if has_rollout else {"rollout"}
        return tuple(stage for stage in STAGES if stage not in left_out)

    @cached_property
    def run(self) -> "Place | None":
        """The whole run that it is a part of, itself if it is one; None of a copy."""
        if not self.is_run or self.kind == "run":
            return self if self.kind == "run" else None
        return _run(self.folder.url, self.folder)

    @property
    def layout(self) -> str | None:
        """Of an export."""
        return None if self.manifest is None else self.manifest.get("layout")

    @property
    def last_stage(self) -> str | None:
        """The last stage that has files; of an export its layout."""
        return next(reversed(self.stages), None)

    def open(self, key: str) -> Columns:
        """A file of `stages` or `ledger`, to be read in parts. Raises `DamagedError`."""
        return Columns(self.folder, key, self.sizes.get(key))

    def open_all(self, files: Sequence[str]) -> Iterator[tuple[str, Columns]]:
        """Those that can be opened, one after the other; the others are damaged, which `inspect` says elsewhere."""
        for key in files:
            with contextlib.suppress(DamagedError):
                yield key, self.open(key)


def open_place(path: str) -> Place:
    """Raises `ConfigError` where there is nothing of the kind, `StorageError` where the storage fails."""
    url = path.rstrip("/") or path
    if "://" not in url:
        url = os.path.abspath(os.path.expanduser(url))
    above, _, name = url.rpartition("/")
    if name.endswith(SUFFIXES):
        found = _shard(path, above, name)
    else:
        if "://" not in url and os.path.isfile(url):
            raise ConfigError(f"{path}: is neither a folder nor a file of a run (.parquet, .jsonl); check the path")
        folder = open_folder(url)
        if folder.get_or_none(keys.RUN) is not None or folder.get_or_none(keys.MANIFEST) is not None:
            found = _run(path, folder)
        elif (data := folder.get_or_none(MANIFEST)) is not None:
            found = _dataset(path, folder, data)
        else:
            found = _folder_of_files(path, url, folder)
    if found is None:
        raise ConfigError(
            f"{path}: holds no run, dataset, export or file of one; check the path (a run folder has {keys.RUN}, a "
            f"dataset and an export {MANIFEST})"
        )
    return found


def shard_of(key: str, stage: str) -> str:
    """The shard (such as 00017.parquet) that a file of `stage` is."""
    return keys.published_shard(key) if stage == keys.PUBLISH else keys.name(key)


def _run(path: str, folder: Folder) -> Place:
    sizes: dict[str, int] = {}
    stages = {stage: _files(folder, keys.stage_folder(stage), sizes) for stage in STAGES}
    ledger = {stage: _files(folder, keys.ledger(stage), sizes) for stage in STAGES}
    notes: list[str] = []
    manifest = _manifest(folder, keys.MANIFEST, notes)
    config = _config(folder, manifest, notes)
    return Place(path, "run", folder, _there(stages), _there(ledger), manifest, config, sizes, True, notes)


def _dataset(path: str, folder: Folder, data: bytes) -> Place | None:
    """A dataset or an export by its manifest."""
    sizes: dict[str, int] = {}
    notes: list[str] = []
    manifest = _manifest(folder, MANIFEST, notes)
    with contextlib.suppress(ValueError):  # damaged, it still says what it is
        layout = (manifest or parse_object(data)).get("layout")
        if layout is not None:
            stages = {str(layout): _files(folder, "data", sizes)}
            return Place(path, "export", folder, _there(stages), {}, manifest, None, sizes, False, notes)
    return _part_of_dataset(path, folder, manifest, notes)


def _part_of_dataset(path: str, folder: Folder, manifest: dict[str, Any] | None, notes: list[str]) -> Place:
    above, _, name = folder.url.rpartition("/")
    if name == "dataset" and (run := _above(above)) is not None:
        return _part(path, "dataset", run, {keys.PUBLISH: run.stages.get(keys.PUBLISH, [])}, {})
    sizes: dict[str, int] = {}
    stages = {keys.PUBLISH: _files(folder, "data", sizes)}
    config = manifest and manifest.get("config")
    return Place(path, "dataset", folder, _there(stages), {}, manifest, config, sizes, False, notes)


def _folder_of_files(path: str, url: str, folder: Folder) -> Place | None:
    """A stage's folder, a ledger's, an unfinished dataset, or copies of any of their files."""
    above, _, name = url.rpartition("/")
    upper, _, parent = above.rpartition("/")
    if name in STAGES and (run := _above(above)) is not None:
        return _part(path, "stage", run, {name: run.stages.get(name, [])}, {})
    if parent == "dataset" and name == "data" and (run := _above(upper)) is not None:
        return _part(path, "stage", run, {keys.PUBLISH: run.stages.get(keys.PUBLISH, [])}, {})
    if parent == "ledger" and name in STAGES and (run := _above(upper)) is not None:
        return _part(path, "stage", run, {}, {name: run.ledger.get(name, [])})
    sizes: dict[str, int] = {}
    if _files(folder, "data", sizes):
        return _part_of_dataset(path, folder, None, [])
    files = _files(folder, "", sizes)
    if not files:
        return None
    stage = _stage_of(folder, files[0], sizes[files[0]])
    if stage is None:
        return Place(path, "stage", folder, {}, {LOOSE: files}, None, None, sizes, False, [])
    return Place(path, "stage", folder, {stage: files}, {}, None, None, sizes, False, [])


def _shard(path: str, url: str, file: str) -> Place | None:
    """A file: of what is around it where that is a run, a dataset or an export, else alone."""
    folder = open_folder(url)
    size = folder.list("").get(file) if folder.exists(file) else None
    if size is None:
        return None
    with contextlib.suppress(ConfigError, ShardError):
        around = open_place(url.rpartition("/")[0] if keys.name(url) == "data" else url)
        if around.is_run or around.manifest is not None:
            for stage, files in around.stages.items():
                if chosen := [key for key in files if keys.name(key) == file]:
                    return _part(path, "shard", around, {stage: chosen}, {})
            for stage, files in around.ledger.items():
                if chosen := [key for key in files if keys.name(key) == file]:
                    return _part(path, "shard", around, {}, {stage: chosen})
    stage_or_none = None if file.endswith(".jsonl") else _stage_of(folder, file, size)
    files_by_stage = {} if stage_or_none is None else {stage_or_none: [file]}
    ledger = {LOOSE: [file]} if stage_or_none is None else {}
    return Place(path, "shard", folder, files_by_stage, ledger, None, None, {file: size}, False, [])


def _part(path: str, kind: Kind, of: Place, stages: dict[str, list[str]], ledger: dict[str, list[str]]) -> Place:
    return Place(
        path, kind, of.folder, _there(stages), _there(ledger), of.manifest, of.config, of.sizes, of.is_run, of.notes
    )


def _above(url: str) -> Place | None:
    """The run at `url`, if there is one."""
    folder = open_folder(url)
    return None if folder.get_or_none(keys.RUN) is None else _run(url, folder)


def _stage_of(folder: Folder, key: str, size: int) -> str | None:
    """The stage that a file says it is of; None of a ledger's. Raises `DamagedError` where it says nothing."""
    try:
        return shard.read_footer(folder, key, size)[0].stage
    except DamagedError:
        if Columns(folder, key, size).schema.names == LEDGER.names:
            return None
        raise ShardError(
            f"{folder.path(key)}: was not written by Stillhouse (its footer does not say of which stage it is); give a "
            "run, a dataset, an export, or a file of one"
        ) from None


def _files(folder: Folder, name: str, sizes: dict[str, int]) -> list[str]:
    """Keys of the data files directly in a folder, shards in their order; their sizes go to `sizes`."""
    prefix = f"{name}/" if name else ""
    found = {f"{prefix}{file}": size for file, size in folder.list(name).items() if file.endswith(SUFFIXES)}
    sizes |= found
    return sorted(found, key=lambda key: (len(key), key))


def _there(files: dict[str, list[str]]) -> dict[str, list[str]]:
    return {stage: found for stage, found in files.items() if found}


def _manifest(folder: Folder, key: str, notes: list[str]) -> dict[str, Any] | None:
    data = folder.get_or_none(key)
    if data is None:
        return None
    try:
        return parse_certified(data)
    except ValueError:
        notes.append(f"{folder.path(key)}: is damaged; run again to make it again, or copy the folder again")
        return None


def _config(folder: Folder, manifest: dict[str, Any] | None, notes: list[str]) -> dict[str, Any] | None:
    """From run.json, else from the manifest."""
    data = folder.get_or_none(keys.RUN)
    if data is not None:
        try:
            return dict(parse_object(data)["deciding"])
        except (ValueError, KeyError, TypeError):
            notes.append(f"{folder.path(keys.RUN)}: is damaged; restore it, or settings and teacher are not known")
    return manifest and manifest.get("config")
