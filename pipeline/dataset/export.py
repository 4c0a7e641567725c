"""`stillhouse export RUN --to LAYOUT`: the published dataset, file for file, as a trainer takes it.

A file at a time in memory, several at once in processes. Like a run it is put if absent and goes on with what is
missing; `manifest.json` is written last, and with it an export is finished. What a layout is: `stages.layouts`.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.dataset.card import export_card
from stillhouse.pipeline.dataset.manifest import MANIFEST, Dataset, open_dataset, read_published
from stillhouse.pipeline.dataset.processes import in_processes
from stillhouse.pipeline.dataset.target import CARD, STAGED, finished, put_same
from stillhouse.pipeline.dataset.teachers import one_by_one
from stillhouse.pipeline.errors import DamagedError, ShardError
from stillhouse.pipeline.folder import Folder, open_folder, shard
from stillhouse.pipeline.folder.certified import encode_certified
from stillhouse.pipeline.folder.shard import ShardId, ShardInfo
from stillhouse.schemas.config import ConfigError
from stillhouse.schemas.targets import Kind
from stillhouse.stages.layouts import Layout, Settings, load_layout
from stillhouse.stages.layouts.rows import batches, other_ids


@dataclass(frozen=True)
class _Task:
    """One file; goes to another process."""

    source: Folder
    source_key: str
    source_sha256: str
    target: Folder
    key: str
    layout: str
    settings: Settings
    identity: str


def default_output(url: str, layout_name: str) -> str:
    return f"{url.rstrip('/')}/exports/{layout_name}"


def export(
    url: str,
    layout_name: str,
    output: str,
    kind: Kind | None = None,
    max_length: int | None = None,
    num_workers: int | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Makes all that is missing of an export and returns its manifest. `report` gets a line for each file.

    `kind` is by default the first of the layout's that the dataset has; `max_length` (tokens; only for layouts of equal
    lengths) the longest conversation. Raises `ConfigError` for what cannot be made of this dataset, `ShardError` where
    files are damaged or `output` holds something else.
    """
    dataset, layout = open_dataset(url), load_layout(layout_name)
    if "withheld" in dataset.manifest:
        raise ConfigError(f"{url}: its prompts are withheld, so no trainer can read it; `stillhouse join` it first")
    target = open_folder(output, staged=STAGED)
    settings = _settings(dataset, layout_name, layout, kind, max_length)
    identity = export_identity(layout_name, settings, dataset)
    own_files = layout.files(settings) if layout.files else {}
    if (there := finished(target, identity)) is not None:
        for name, data in own_files.items():
            if target.get_or_none(name) != data:
                target.put(name, data)
                target.remove_staged()
        return there
    suffix = ".jsonl" if layout.is_jsonl else ".parquet"
    tasks = [
        _Task(
            dataset.folder,
            dataset.key(file),
            file["sha256"],
            target,
            file["file"].removesuffix(".parquet") + suffix,
            layout_name,
            settings,
            identity,
        )
        for file in dataset.manifest["files"]
    ]
    files = []
    for file, seconds in in_processes(_make, tasks, num_workers):
        report(f"{layout_name} {file['file']}: {file['rows']:,} rows, {file['bytes'] / 1e6:,.1f} MB, {seconds:.1f} s")
        files.append(file)
    manifest = {
        "layout": layout_name,
        "trainer": layout.trainer,
        "alignment": layout.alignment,
        "settings": settings.to_json(),
        "identity": identity,
        "notes": layout.notes(settings, _softcap(dataset.manifest)),
        "teacher": dataset.manifest["teacher"],
        **({"teachers": dataset.manifest["teachers"]} if "teachers" in dataset.manifest else {}),
        "dataset_config_hash": dataset.manifest["config_hash"],
        "set_aside": dataset.manifest.get("set_aside"),
        "sampling": _sampling(dataset.manifest["config"]),
        "rows": sum(file["rows"] for file in files),
        "rows_too_long": sum(file["rows_too_long"] for file in files),
        "target_tokens": sum(file["target_tokens"] for file in files),
        "bytes": sum(file["bytes"] for file in files),
        "files": files,
    }
    for name, data in own_files.items():
        target.put(name, data)
    target.put(CARD, export_card(manifest, layout).encode())
    target.put(MANIFEST, encode_certified(manifest, indent=1))
    target.remove_staged()
    return manifest


def export_identity(layout_name: str, settings: Settings, dataset: Dataset) -> str:
    """sha256 (hex) of everything that decides an export's bytes, by which its files know whose they are."""
    decides = [layout_name, settings.to_json(), [file["sha256"] for file in dataset.manifest["files"]]]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _settings(dataset: Dataset, name: str, layout: Layout, kind: Kind | None, max_length: int | None) -> Settings:
    targets = dataset.manifest["targets"]
    has: dict[Kind, bool] = {"target": targets["method"] != "sampled", "draw": targets["method"] != "top_k"}
    if kind is not None and not has[kind]:
        wanted = "top-K" if kind == "target" else "sampled"
        raise ConfigError(f"{dataset.folder.url}: has no {wanted} targets (targets.method: {targets['method']})")
    chosen: Kind = kind if kind is not None else next(kind for kind in layout.kinds if has[kind])
    if max_length is not None and not layout.has_equal_lengths:
        raise ConfigError(f"--max-length: means nothing for {name}, whose conversations keep their lengths")
    if max_length is not None and max_length < 2:
        raise ConfigError(f"--max-length: {max_length} tokens hold no prompt and answer; give 2 or more")
    width = length = 0
    if layout.is_rectangular:
        width = targets["top_k"] if chosen == "target" else 0
        is_longest_asked = layout.has_equal_lengths and max_length is None
        columns = [*([] if width else ["draw_lengths"]), *(["num_input_tokens"] if is_longest_asked else [])]
        for file in dataset.manifest["files"] if columns else []:
            table = shard.read(dataset.folder, dataset.key(file), columns)
            if "draw_lengths" in columns:
                width = max(width, pc.max(pc.list_flatten(table.column("draw_lengths"))).as_py() or 0)
            if "num_input_tokens" in columns:
                length = max(length, pc.max(table.column("num_input_tokens")).as_py() or 0)
    vocab_size = dataset.manifest["teacher"]["vocab_size"]
    return Settings(chosen, vocab_size, width, max_length or length, is_partial="keep" in targets)


# ---------------------------------------------------------------------------------------------------------------------
# One file, in a process of its own


def _softcap(manifest: dict[str, Any]) -> float | None:
    """Of the teacher, or of the first of several that has one."""
    caps = [of_one["teacher"]["final_logit_softcapping"] for of_one in one_by_one(manifest).values()]
    return next((cap for cap in caps if cap is not None), None)


def _sampling(config: dict[str, Any]) -> dict[str, Any] | None:
    """How the teacher wrote: decides how probable its tokens are to be where `verify` has the export alone."""
    names = ("temperature", "repetition_penalty")
    found = {name: config[f"sampling.{name}"] for name in names if f"sampling.{name}" in config}
    return found if len(found) == len(names) else None


def _make(task: _Task) -> tuple[dict[str, Any], float]:
    """Brings one file into existence; its entry of the manifest, and seconds."""
    started = time.monotonic()
    layout = load_layout(task.layout)
    make = _make_jsonl if layout.is_jsonl else _make_parquet
    return make(task, layout), time.monotonic() - started


def _make_parquet(task: _Task, layout: Layout) -> dict[str, Any]:
    data = task.target.get_or_none(task.key)
    if data is None:
        data = _encode(task, layout)
        if not task.target.put_if_absent(task.key, data):
            data = task.target.get(task.key)
    expected = ShardId(task.layout, task.key, task.identity)
    try:
        info = shard.decode(data, task.target.path(task.key), [], expected).info
    except DamagedError as error:
        raise ShardError(f"{error}; delete it, or choose another --output") from None
    assert info is not None
    return _entry(task, info, data)


def _make_jsonl(task: _Task, layout: Layout) -> dict[str, Any]:
    """Lines of JSON cannot say whose they are; they are made each time, which costs little, and compared."""
    table = read_published(task.source, task.source_key, task.source_sha256)
    lines = [json.dumps(row, ensure_ascii=False) for row in layout.convert(table, task.settings).to_pylist()]
    data = "".join(f"{line}\n" for line in lines).encode()
    put_same(task.target, task.key, data)
    return _entry(task, _info(task, table, table), data)


def _encode(task: _Task, layout: Layout) -> bytes:
    source, settings = read_published(task.source, task.source_key, task.source_sha256), task.settings
    table = source
    if settings.max_length:
        table = source.filter(pc.less_equal(source.column("num_input_tokens"), settings.max_length))
    settings = dataclasses.replace(settings, other_ids=other_ids(source, settings))
    parts = (layout.convert(part, settings) for part in batches(table, settings))
    schema = layout.convert(source.slice(0, 0), settings).schema
    return shard.encode_parts(schema, parts, _info(task, source, table))


def _info(task: _Task, source: pa.Table, table: pa.Table) -> ShardInfo:
    tokens = shard.num_target_tokens(table)
    return ShardInfo(task.layout, task.key, task.identity, source.num_rows, table.num_rows, tokens)


def _entry(task: _Task, info: ShardInfo, data: bytes) -> dict[str, Any]:
    return {
        "file": task.key,
        "rows": info.rows_out,
        "rows_too_long": info.rows_in - info.rows_out,
        "target_tokens": info.num_target_tokens,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
