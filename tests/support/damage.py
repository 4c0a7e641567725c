"""Damage as a faulty exporter would leave it: rows changed, and every checksum, footer and count made right again."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.pipeline.folder import shard
from stillhouse.pipeline.folder.shard import ShardInfo
from tests.support.datasets import Row, read_manifest, write_manifest

Rows = list[Row]

TARGETS = {
    "axolotl": ["target_token_ids", "target_logprobs", "target_mask"],
    "distillkit": ["token_ids", "top_values"],
    "distillkit-compressed": ["bytepacked_indices", "compressed_logprobs"],
    "verl": ["teacher_ids", "teacher_logprobs"],
    "tinker": ["target_tokens", "weights"],
}
"""A layout's columns of a list for each position: ids first, then numbers."""


class Folder:
    """A dataset or an export in `path`, to be damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.layout: str = self.manifest.get("layout", "")

    def file(self, number: int) -> Path:
        return self.path / str(self.manifest["files"][number]["file"])

    def rows(self, number: int) -> Rows:
        rows: Rows = pq.read_table(self.file(number)).to_pylist()
        return rows

    def largest(self) -> int:
        """The number of the file with most supervised tokens."""
        tokens = [file["target_tokens"] for file in self.manifest["files"]]
        return tokens.index(max(tokens))

    def change(self, number: int, change: Callable[[Rows], Any]) -> None:
        """Other rows in a file; `change` gets them in a list."""
        rows = self.rows(number)
        change(rows)
        self.replace(number, pa.Table.from_pylist(rows, schema=pq.read_schema(self.file(number))))

    def replace(self, number: int, table: pa.Table, **facts: Any) -> None:
        """Another table in a file, and other `facts` in its footer."""
        held = shard.decode(self.file(number).read_bytes(), "").info
        assert held is not None
        tokens = sum(num_tokens(row, self.layout) for row in table.to_pylist())
        too_long = held.rows_in - held.rows_out if self.layout else 0
        counts = {"rows_in": table.num_rows + too_long, "rows_out": table.num_rows, "num_target_tokens": tokens}
        self.put(number, shard.encode(table, dataclasses.replace(held, **counts | facts)))
        self.manifest["files"][number] |= {"rows": table.num_rows, "target_tokens": tokens}
        self.save()

    def put(self, number: int, data: bytes) -> None:
        self.file(number).write_bytes(data)
        self.manifest["files"][number] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.save()

    def save(self) -> None:
        """Writes the manifest with the totals of its files."""
        for name in ("rows", "target_tokens", "bytes"):
            self.manifest[name] = sum(file[name] for file in self.manifest["files"])
        write_manifest(self.path, self.manifest)

    def drop(self, number: int) -> None:
        self.file(number).unlink()
        self.manifest["files"].pop(number)
        self.save()

    def double(self, number: int, onto: int, *, recertified: bool = False) -> None:
        """A file in the place of another one."""
        entry = {**self.manifest["files"][number], "file": self.manifest["files"][onto]["file"]}
        data, held = self.file(number).read_bytes(), self.info(onto)
        if recertified:
            own = self.info(number)
            table = shard.decode(data, "").table
            data = shard.encode(table, dataclasses.replace(own, shard=held.shard))
        self.manifest["files"][onto] = entry
        self.put(onto, data)

    def info(self, number: int) -> ShardInfo:
        held = shard.decode(self.file(number).read_bytes(), "").info
        assert held is not None
        return held


def copied(exported: Path, layout: str, folder: Path, *, alone: bool) -> Folder:
    """An export to damage: under a run's `exports`, or somewhere else."""
    if alone:
        shutil.copytree(exported / "exports" / layout, folder / "export")
        return Folder(folder / "export")
    shutil.copytree(exported / "exports" / layout, folder / "run/exports" / layout)
    (folder / "run/dataset").symlink_to(exported / "dataset")
    return Folder(folder / "run/exports" / layout)


def num_tokens(row: Row, layout: str) -> int:
    return int(row["num_target_tokens"]) if not layout else len(positions(row, layout))


def positions(row: Row, layout: str) -> list[int]:
    """The positions whose rows a trainer reads, by its own mask."""
    if layout == "axolotl":
        return [j - 1 for j, label in enumerate(row["labels"]) if label != -100]
    if layout.startswith("distillkit"):
        return [j for j, label in enumerate(row["labels"]) if label >= 0]
    if layout == "tinker":
        return [j for j, weights in enumerate(row["weights"]) if any(weights)]
    return [len(row["prompts"]) + j - 1 for j, mark in enumerate(row["response_mask"]) if mark]


def tokens_of(row: Row, layout: str, position: int) -> tuple[list[int], int]:
    """The list that holds the token at a position, and its index there."""
    if layout != "verl":
        return row["input_ids"], position
    begins = len(row["prompts"])
    return (row["prompts"], position) if position < begins else (row["responses"], position - begins)
