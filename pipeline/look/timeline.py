"""What runs wrote down of their times, in `state/timeline/` (`pipeline.run.timeline`)."""

import contextlib
from collections.abc import Iterator
from typing import Any

from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.look.place import Place
from stillhouse.schemas.tables import TIMELINE

YOUNGER = ("filters",)
"""Columns that files of earlier versions lack."""


def timelines(place: Place) -> Iterator[list[dict[str, Any]]]:
    """The rows of each run that wrote some; files that cannot be read are left out."""
    for name in place.folder.list(keys.TIMELINE) if place.is_run else ():
        with contextlib.suppress(DamagedError, FileNotFoundError):
            table = shards.read(place.folder, f"{keys.TIMELINE}/{name}")
            known = [field for field in TIMELINE if field.name in table.column_names or field.name not in YOUNGER]
            if [*table.schema] == known and table.num_rows:
                yield table.to_pylist()
