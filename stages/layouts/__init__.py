"""Layouts: the published table as a training repo's own loader and loss expect it.

A layout is a file here and a line in `LAYOUTS`. The file writes it, reads it back the way the trainer does, and says
what to know before training. Each was checked against its trainer's code at the version it names
(`make test-trainers`). All but `openai` are next-token: row j holds the distribution of token j + 1. The published
table is own-token: it has a row for each supervised token.

Tables are converted whole; `pipeline.dataset.export` does files. Importing this module alone is cheap: command lines
are checked against the names in it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

    from stillhouse.schemas.targets import Kind
    from stillhouse.stages.layouts.records import Conversation

LAYOUTS = {
    "axolotl": "axolotl:LAYOUT",
    "distillkit": "distillkit:RAW",
    "distillkit-compressed": "distillkit:COMPRESSED",
    "verl": "verl:LAYOUT",
    "tinker": "tinker:LAYOUT",
    "openai": "openai:LAYOUT",
}
"""Where each `Layout` is, module:name, by the name that `stillhouse export --to` takes."""


def load_layout(name: str) -> Layout:
    """The layout of a name in `LAYOUTS`."""
    module, _, attribute = LAYOUTS[name].partition(":")
    layout: Layout = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return layout


@dataclass(frozen=True)
class Settings:
    """What an export is made with beside the dataset: everything that decides its bytes."""

    kind: Kind
    vocab_size: int
    width: int = 0
    """Targets of each row where a trainer wants rectangles: the most that any token has."""
    max_length: int = 0
    """Tokens of each row where a trainer wants equal lengths; longer conversations are left out, and counted."""
    is_partial: bool = False
    """Some supervised tokens have no targets (`targets.keep`)."""
    other_ids: tuple[int, ...] = ()
    """What places without a target name: ids that are targets elsewhere in the file, so that a student whose
    vocabulary is smaller than the teacher's has them too. Follows from the file, so no manifest tells it."""

    def to_json(self) -> dict[str, Any]:
        """What `Settings(**...)` takes, for manifests."""
        found = {name: value for name, value in asdict(self).items() if name != "other_ids"}
        if not self.is_partial:  # younger than exports that must stay what they are
            del found["is_partial"]
        return found


@dataclass(frozen=True)
class Layout:
    """How a trainer takes a dataset. Files are Parquet, or JSON lines where there is a `read_line`."""

    trainer: str
    """With the version that it was checked against."""
    page: str
    """The page about it in docs/training/."""
    alignment: Literal["next-token", "none"]
    convert: Callable[[pa.Table, Settings], pa.Table]
    """A published table in this layout."""
    notes: Callable[[Settings, float | None], list[str]]
    """Where the trainer behaves differently from what you would expect on a dataset; takes the teacher's softcap."""
    schema: pa.Schema | None = None
    """The columns of its Parquet files."""
    read_row: Callable[[dict[str, Any], Settings], Conversation] | None = None
    """A row (see `records`) as the trainer reads it, numbers that it reads and ignores included. Raises ValueError with
    what is wrong where it could not, or would learn something else."""
    read_line: Callable[[bytes], list[dict[str, str]]] | None = None
    """The messages of a line. Raises ValueError with what is wrong where the trainer could not read them."""
    files: Callable[[Settings], dict[str, bytes]] | None = None
    """Files that the trainer wants beside the data, by name."""
    kinds: tuple[Kind, ...] = ("target", "draw")
    """Which columns it can be made of; the first one that a dataset has is the default."""
    is_normalised: bool = False
    """The targets of each row are made to sum to 1."""
    is_rectangular: bool = False
    """Each row of targets is as long as the others."""
    has_equal_lengths: bool = False
    """Each conversation is as long as the others."""

    @property
    def is_jsonl(self) -> bool:
        return self.read_line is not None
