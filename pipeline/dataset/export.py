"""`stillhouse export RUN --to LAYOUT`: the published dataset, file for file, as a trainer takes it.

A file at a time in memory, several at once in processes. Like a run it is put if absent and goes on with what is
missing; `manifest.json` is written last, and with it an export is finished. What a layout is: `stages.export`.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from stillhouse.pipeline import shards
from stillhouse.pipeline.report import say
from stillhouse.pipeline.shards import DamagedError, ShardError, ShardInfo, Store
from stillhouse.pipeline.worker import num_target_tokens
from stillhouse.schemas.config import ConfigError
from stillhouse.schemas.targets import Kind
from stillhouse.stages.export import LAYOUTS, Settings, batches, compression_config, notes

MANIFEST, CARD = "manifest.json", "README.md"
STAGED = ".staged"
"""Where files are written before they get their names; hidden, so that no loader takes them for data."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Dataset:
    """A finished dataset: a run folder, or its `dataset/` alone, wherever that was copied."""

    store: Store
    prefix: str
    manifest: dict[str, Any]

    def key(self, file: dict[str, Any]) -> str:
        return f"{self.prefix}{file['file']}"


@dataclass(frozen=True)
class _Task:
    """One file; goes to another process."""

    source: Store
    source_key: str
    source_sha256: str
    target: Store
    key: str
    layout: str
    settings: Settings
    identity: str


def open_dataset(url: str) -> Dataset:
    """Raises `ConfigError` where there is none, and `ShardError` where its manifest is damaged."""
    store = Store(url)
    for prefix in ("dataset/", ""):
        data = store.get_or_none(prefix + MANIFEST)
        if data is None:
            continue
        try:
            return Dataset(store, prefix, shards.parse_certified(data))
        except ValueError:
            raise ShardError(
                f"{store.path(prefix + MANIFEST)}: is damaged; run again to make it again, or copy the dataset again"
            ) from None
    raise ConfigError(f"{url}: holds no finished dataset (no dataset/manifest.json); finish the run first")


def default_output(url: str, layout_name: str) -> str:
    return f"{url.rstrip('/')}/exports/{layout_name}"


def export(
    url: str,
    layout_name: str,
    output: str,
    kind: Kind | None = None,
    max_length: int | None = None,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Makes all that is missing of an export and returns its manifest.

    `kind` is by default the first of the layout's that the dataset has; `max_length` (tokens; only for layouts of equal
    lengths) the longest conversation. Raises `ConfigError` for what cannot be made of this dataset, `ShardError` where
    files are damaged or `output` holds something else.
    """
    dataset, layout = open_dataset(url), LAYOUTS[layout_name]
    target = Store(output, staged=STAGED)
    settings = _settings(dataset, layout_name, kind, max_length)
    identity = hashlib.sha256(
        json.dumps(
            [layout_name, dataclasses.asdict(settings), [file["sha256"] for file in dataset.manifest["files"]]]
        ).encode()
    ).hexdigest()
    if (finished := _finished(target)) is not None:
        if finished["identity"] != identity:
            raise ConfigError(
                f"{target.url}: holds an export of other settings or of another dataset; choose another --output, or "
                "delete it"
            )
        return finished
    suffix = ".jsonl" if layout.is_jsonl else ".parquet"
    tasks = [
        _Task(
            dataset.store,
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
    for facts, seconds in in_processes(_make, tasks, num_workers):
        say(f"{layout_name} {facts['file']}: {facts['rows']:,} rows, {facts['bytes'] / 1e6:,.1f} MB, {seconds:.1f} s")
        files.append(facts)
    manifest = {
        "layout": layout_name,
        "trainer": layout.trainer,
        "alignment": layout.alignment,
        "settings": dataclasses.asdict(settings),
        "identity": identity,
        "notes": notes(layout_name, settings, dataset.manifest["teacher"]["final_logit_softcapping"]),
        "teacher": dataset.manifest["teacher"],
        "dataset_config_hash": dataset.manifest["config_hash"],
        "rows": sum(file["rows"] for file in files),
        "rows_too_long": sum(file["rows_too_long"] for file in files),
        "target_tokens": sum(file["target_tokens"] for file in files),
        "bytes": sum(file["bytes"] for file in files),
        "files": files,
    }
    if layout_name == "distillkit-compressed":
        target.put("compression_config.yaml", yaml.safe_dump(compression_config(settings)).encode())
    target.put(CARD, _card(manifest).encode())
    target.put(MANIFEST, shards.encode_certified(manifest, indent=1))
    target.remove_staged()
    return manifest


def show(url: str, manifest: dict[str, Any]) -> None:
    """What an export came to, for people."""
    say(
        f"{manifest['layout']}: {manifest['rows']:,} conversations, {manifest['target_tokens']:,} supervised tokens, "
        f"{manifest['bytes'] / 1e6:,.1f} MB in {url}"
    )
    if manifest["rows_too_long"]:
        say(
            f"left out: {manifest['rows_too_long']:,} conversations of more than "
            f"{manifest['settings']['max_length']:,} tokens (--max-length)"
        )
    for note in manifest["notes"]:
        say(f"note: {note}")


def _finished(target: Store) -> dict[str, Any] | None:
    data = target.get_or_none(MANIFEST)
    if data is None:
        return None
    with contextlib.suppress(ValueError):
        manifest = shards.parse_certified(data)
        if "identity" in manifest:
            return manifest
    raise ConfigError(f"{target.path(MANIFEST)}: is no export's, or damaged; choose another --output, or delete it")


def _settings(dataset: Dataset, name: str, kind: Kind | None, max_length: int | None) -> Settings:
    layout, targets = LAYOUTS[name], dataset.manifest["targets"]
    has: dict[Kind, bool] = {"target": targets["method"] != "sampled", "draw": targets["method"] != "top_k"}
    if kind is not None and not has[kind]:
        wanted = "top-K" if kind == "target" else "sampled"
        raise ConfigError(f"{dataset.store.url}: has no {wanted} targets (targets.method: {targets['method']})")
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
            table = shards.read(dataset.store, dataset.key(file), columns)
            if "draw_lengths" in columns:
                width = max(width, pc.max(pc.list_flatten(table.column("draw_lengths"))).as_py() or 0)
            if "num_input_tokens" in columns:
                length = max(length, pc.max(table.column("num_input_tokens")).as_py() or 0)
    return Settings(chosen, dataset.manifest["teacher"]["vocab_size"], width, max_length or length)


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None
) -> Iterator[Result]:
    """`function` of each item, in order, in `num_workers` processes (by default one for each core)."""
    num_workers = min(num_workers or os.cpu_count() or 1, len(items))
    if num_workers <= 1:
        yield from map(function, items)
        return
    # A fork would take the parent's threads' locks along.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context) as pool:
        try:
            yield from pool.map(function, items)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make(task: _Task) -> tuple[dict[str, Any], float]:
    """Brings one file into existence; its entry of the manifest, and seconds."""
    started = time.monotonic()
    if LAYOUTS[task.layout].is_jsonl:
        return _make_jsonl(task), time.monotonic() - started
    data = task.target.get_or_none(task.key)
    if data is None:
        data = _encode(task)
        if not task.target.put_if_absent(task.key, data):
            data = task.target.get(task.key)
    try:
        info = shards.decode(data, task.target.path(task.key), [], (task.layout, task.key, task.identity)).info
    except DamagedError as error:
        raise ShardError(f"{error}; delete it, or choose another --output") from None
    assert info is not None
    return _entry(task, info, data), time.monotonic() - started


def _make_jsonl(task: _Task) -> dict[str, Any]:
    """Lines of JSON cannot say whose they are; they are made each time, which costs little, and compared."""
    table = _source(task)
    lines = [
        json.dumps(row, ensure_ascii=False) for row in LAYOUTS[task.layout].convert(table, task.settings).to_pylist()
    ]
    data = "".join(f"{line}\n" for line in lines).encode()
    if not task.target.put_if_absent(task.key, data) and task.target.get(task.key) != data:
        raise ShardError(
            f"{task.target.path(task.key)}: is damaged or another export's; delete it, or choose another --output"
        )
    return _entry(task, _info(task, table, table), data)


def _encode(task: _Task) -> bytes:
    source, settings = _source(task), task.settings
    layout, table = LAYOUTS[task.layout], source
    if settings.max_length:
        table = source.filter(pc.less_equal(source.column("num_input_tokens"), settings.max_length))
    parts = (layout.convert(part, settings) for part in batches(table, settings))
    schema = layout.convert(source.slice(0, 0), settings).schema
    return shards.encode_parts(schema, parts, _info(task, source, table))


def _source(task: _Task) -> pa.Table:
    data = task.source.get(task.source_key)
    where = task.source.path(task.source_key)
    if hashlib.sha256(data).hexdigest() != task.source_sha256:
        raise ShardError(f"{where}: is not the file that manifest.json names; run again, or copy the dataset again")
    return shards.decode(data, where).table


def _info(task: _Task, source: pa.Table, table: pa.Table) -> ShardInfo:
    tokens = num_target_tokens(table)
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


def _card(manifest: dict[str, Any]) -> str:
    """A dataset card: what a trainer's user has to know."""
    name, settings = manifest["layout"], manifest["settings"]
    is_jsonl = LAYOUTS[name].is_jsonl
    source = "sampled targets" if settings["kind"] == "draw" else "top-K targets"
    lines = [
        "---",
        "tags: [distillation, logprobs, stillhouse]",  # and no `configs`: `pipeline.manifest` says why
        "---",
        "",
        f"# Distillation targets for {manifest['trainer']}",
        "",
        f"{manifest['rows']:,} conversations, {manifest['target_tokens']:,} supervised tokens"
        + ("" if is_jsonl else f", {source}, {manifest['alignment']} rows")
        + f"; exported by Stillhouse from the dataset with configuration `{manifest['dataset_config_hash'][:12]}`.",
        f"Settings, checksums and the teacher are in `manifest.json`; `docs/training/{card_page(name)}` of Stillhouse "
        "has the trainer's configuration.",
    ]
    if settings["max_length"]:
        lines += [
            "",
            f"Every conversation is padded to {settings['max_length']:,} tokens; {manifest['rows_too_long']:,} longer "
            "ones were left out.",
        ]
    if manifest["notes"]:
        lines += ["", "## Know before you train", "", *(f"- {note}" for note in manifest["notes"])]
    return "\n".join([*lines, ""])


def card_page(name: str) -> str:
    """The document about a layout."""
    return {"openai": "text.md", "distillkit-compressed": "distillkit.md"}.get(name, f"{name}.md")
