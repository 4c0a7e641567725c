"""`stillhouse export RUN --no-prompts`: the published dataset without what its licence keeps from being passed on.

Rows, columns and lengths stay. Withheld are user turns (and system prompts, where they are the source's) in `messages`,
their places in `input_ids`, `prompt_scores`, `prompt_personal`, and ids that were made of texts. `join` puts them
back from the source. What gives a prompt away, and what does not: docs/publishing.md.
"""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.dataset.card import dataset_card
from stillhouse.pipeline.dataset.manifest import MANIFEST, Dataset, open_dataset, read_published
from stillhouse.pipeline.dataset.origin import origin_chat, origin_config
from stillhouse.pipeline.dataset.processes import in_processes
from stillhouse.pipeline.dataset.seal import MIN_PROMPTS, Chain, groups
from stillhouse.pipeline.dataset.target import CARD, STAGED, file_entry, finished, put_same, totals
from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.folder import Folder, keys, open_folder, shard
from stillhouse.pipeline.folder.certified import certified, encode_certified
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.schemas.config import Config, ConfigError
from stillhouse.schemas.lists import flat_lists, lists
from stillhouse.schemas.tables import IGNORE_INDEX, MESSAGES
from stillhouse.stages.sources.ids import is_made, may_be_made
from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.prompts import Prompts, places

LAYOUT = "no-prompts"
"""The name of such an export, beside those of trainers' layouts."""
ADDED = (pa.field("prompt_tag", pa.binary()), pa.field("sealed", pa.binary()))
"""Columns that `join` needs, and removes."""


@dataclass(frozen=True)
class _Task:
    """A group of files; goes to another process."""

    dataset: Dataset
    files: list[dict[str, Any]]
    target: Folder
    identity: str
    has_source_ids: bool


def withhold(
    url: str, output: str, num_workers: int | None = None, report: Callable[[str], None] = lambda message: None
) -> dict[str, Any]:
    """Makes the export and returns its manifest: the dataset's, with `withheld`. `report` gets a line for each file.

    Raises `ConfigError` where the dataset cannot be had without its prompts or `output` holds something else,
    `ShardError` where a prompt, rendered again, is not the one in the dataset, so that `join` would fail.
    """
    dataset, target = open_dataset(url), open_folder(output, staged=STAGED)
    if "withheld" in dataset.manifest:
        raise ConfigError(f"{url}: its prompts are withheld already")
    if dataset.manifest["config"].get("task") == "score":
        raise ConfigError(
            f"{url}: its answers are the source's like its prompts (task: score), so that only targets would be left; "
            "--no-prompts is for what a teacher wrote"
        )
    if "teachers" in dataset.manifest:
        raise ConfigError(
            f"{url}: has several teachers, and join renders prompts with the template of one; --no-prompts is for "
            "datasets of one teacher"
        )
    identity = str(certified({"layout": LAYOUT, "dataset": certified(dataset.manifest)["sha256"]})["sha256"])
    if (there := finished(target, identity)) is not None:
        return there
    in_groups = groups(dataset.manifest["files"], dataset.manifest["config"]["sampling.n"])
    if not in_groups:
        raise ConfigError(
            f"{url}: has {dataset.manifest['rows']} conversations, and a digest of so few prompts would let anybody "
            f"try guesses; --no-prompts needs {MIN_PROMPTS} prompts or more"
        )
    has_source_ids = _has_source_ids(dataset)
    tasks = [_Task(dataset, files, target, identity, has_source_ids) for files in in_groups]
    files = []
    for made in in_processes(_make, tasks, num_workers):
        for file in made:
            report(f"{LAYOUT} {file['file']}: {file['rows']:,} rows, {file['bytes'] / 1e6:,.1f} MB")
            files.append(file)
    withheld = {
        "system_prompts": withholds_system(origin_config(dataset.manifest)),
        "ids": not has_source_ids,
    }
    manifest = dataset.manifest | totals(files) | {"withheld": withheld, "identity": identity}
    target.put(CARD, dataset_card(origin_config(manifest), manifest).encode())
    target.put(MANIFEST, encode_certified(manifest, indent=1))
    target.remove_staged()
    return manifest


def withholds_system(config: Config) -> bool:
    """Whether system prompts are the source's. Others are the run's own, and stand in the manifest anyway."""
    return config.generate.system_prompts == "source"


def with_gaps_filled(table: pa.Table) -> pa.Table:
    """A file without prompts in the columns of one with them: their tokens are 0 and their texts empty. What is
    left can be checked like any published file."""
    names = [field.name for field in ADDED]
    if [name for name in names if name in table.column_names] != names:
        raise ShardError(f"has no {' and no '.join(names)}; export again")
    input_ids = flat_lists(table.column("input_ids"))
    ids = input_ids.values.to_numpy()
    messages = [
        [{**message, "content": message["content"] or ""} for message in row] for row in table["messages"].to_pylist()
    ]
    filled = {
        "input_ids": lists(input_ids.offsets.to_numpy(), pa.array(np.where(ids == IGNORE_INDEX, 0, ids))),
        "messages": pa.array(messages, MESSAGES),
    }
    table = table.drop_columns(names)
    for name, column in filled.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    return table


def withheld_texts(messages: list[dict[str, Any]], *, of_system: bool) -> list[str]:
    """The contents that are withheld, in their order."""
    return [message["content"] for message in messages if _is_withheld(message["role"], of_system)]


def with_texts(messages: list[dict[str, Any]], texts: list[str], *, of_system: bool) -> list[dict[str, Any]]:
    """`messages` with other contents in the place of those that are withheld."""
    remaining = iter(texts)
    return [
        {**message, "content": next(remaining)} if _is_withheld(message["role"], of_system) else message
        for message in messages
    ]


def _is_withheld(role: str, of_system: bool) -> bool:
    return role == "user" or (of_system and role == "system")


def _has_source_ids(dataset: Dataset) -> bool:
    """Whether all ids are the source's own. Where the run's prompts are gone, an id that looks as if it were made of a
    prompt counts as such."""
    for name in (keys.published_shard(file["file"]) for file in dataset.manifest["files"]):
        key = keys.stage_shard("ingest", name, 0)
        if not dataset.prefix or not dataset.folder.exists(key):
            break
        table = shard.read(dataset.folder, key, ["prompt_id", "system_prompt", "user_turns"])
        if any(is_made(row["prompt_id"], row["system_prompt"], row["user_turns"]) for row in table.to_pylist()):
            return False
    else:
        return True
    for file in dataset.manifest["files"]:
        table = shard.read(dataset.folder, dataset.key(file), ["prompt_id", "cluster_id"])
        if any(may_be_made(name) for column in table.columns for name in pc.unique(column).to_pylist()):
            return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# A group of files, in a process of its own


def _make(task: _Task) -> list[dict[str, Any]]:
    """Brings the files of a group into existence; their entries of the manifest."""
    prompts = _prompts(json.dumps(task.dataset.manifest["config"]), json.dumps(task.dataset.manifest["teacher"]))
    of_system = withholds_system(origin_config(task.dataset.manifest))
    chain = Chain(task.dataset.manifest["config_hash"])
    masked = []
    for file in task.files:
        table = read_published(task.dataset.folder, task.dataset.key(file), file["sha256"])
        masked.append((file, table, *_mask(table, file["file"], prompts, chain, of_system)))
    entries = []
    for file, table, columns, tags in masked:
        hidden, sealed = _sealed(table, chain, task.has_source_ids)
        for name, column in {**columns, **hidden}.items():
            table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
        for field, column in zip(ADDED, (tags, sealed), strict=True):
            table = table.append_column(field, column)
        tokens = shard.num_target_tokens(table)
        info = ShardInfo(LAYOUT, file["file"], task.identity, table.num_rows, table.num_rows, tokens)
        data = shard.encode(table, info)
        put_same(task.target, file["file"], data)
        entries.append(file_entry(file["file"], info, data))
    return entries


@functools.cache
def _prompts(config: str, teacher: str) -> Prompts:
    manifest = {"config": json.loads(config), "teacher": json.loads(teacher)}
    known = origin_config(manifest)
    return Prompts(known.generate, origin_chat(known, manifest))


def _mask(
    table: pa.Table, name: str, prompts: Prompts, chain: Chain, of_system: bool
) -> tuple[dict[str, pa.Array], pa.Array]:
    """Masked columns of a file, and the rows' tags. Adds each row to the chain."""
    input_ids, messages, tags = flat_lists(table.column("input_ids")), [], []
    ids, offsets = input_ids.values.to_numpy().copy(), input_ids.offsets.to_numpy()
    for i, (row, ids_T, labels_T) in enumerate(_rows(table)):
        turns = [message["content"] for message in row["messages"] if message["role"] == "user"]
        system = next((m["content"] for m in row["messages"] if m["role"] == "system"), None)
        try:
            found = places(labels_T, ids_T, prompts.ids(turns, system))
        except (TemplateError, ValueError) as error:
            raise ShardError(
                f"{name} row {i} (source row {row['source_row']}): its prompts, rendered again, are not those that it "
                f"holds ({error}), so that nobody could join them; use the versions that manifest.json names"
            ) from None
        texts = withheld_texts(row["messages"], of_system=of_system)
        tags.append(chain.add(row["source_row"], texts, [ids_T[place].tobytes() for place in found]))
        messages.append(with_texts(row["messages"], [None] * len(texts), of_system=of_system))  # type: ignore[list-item]
        for place in found:
            ids[offsets[i] + place.start : offsets[i] + place.stop] = IGNORE_INDEX
    columns = {"messages": pa.array(messages, MESSAGES), "input_ids": lists(offsets, pa.array(ids))}
    return columns, pa.array(tags, pa.binary())


def _rows(table: pa.Table) -> Iterator[tuple[dict[str, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Each row's source row and messages, its ids [T] and its labels [T]."""
    input_ids, labels = (flat_lists(table.column(name)) for name in ("input_ids", "labels"))
    ids, ours, offsets = input_ids.values.to_numpy(), labels.values.to_numpy(), input_ids.offsets.to_numpy()
    for i, row in enumerate(table.select(["source_row", "messages"]).to_pylist()):
        yield row, ids[offsets[i] : offsets[i + 1]], ours[offsets[i] : offsets[i + 1]]


def _sealed(table: pa.Table, chain: Chain, has_source_ids: bool) -> tuple[dict[str, pa.Array], pa.Array]:
    """What stands in the place of columns that prompts can be told by but that no source row gives again, and for each
    row the seal on what they held."""
    names = [name for name in ("prompt_scores", "prompt_personal") if name in table.column_names]
    hidden: dict[str, pa.Array] = {name: pa.nulls(table.num_rows, table.schema.field(name).type) for name in names}
    if not has_source_ids:
        names += ["prompt_id", "sample_id", "cluster_id"]
        source_rows = table.column("source_row").to_pylist()
        samples = [sample_id.rpartition("/")[2] for sample_id in table.column("sample_id").to_pylist()]
        hidden |= {
            "prompt_id": pa.array(map(str, source_rows), pa.string()),
            "sample_id": pa.array([f"{row}/{n}" for row, n in zip(source_rows, samples, strict=True)], pa.string()),
            "cluster_id": pa.nulls(table.num_rows, pa.string()),
        }
    shown = hidden.get("sample_id", table.column("sample_id")).to_pylist()
    rows = table.select(names).to_pylist() if names else [{}] * table.num_rows
    sealed = [chain.seal(name, row) if row else None for name, row in zip(shown, rows, strict=True)]
    return hidden, pa.array(sealed, pa.binary())
