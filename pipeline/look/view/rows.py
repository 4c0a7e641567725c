"""Rows of the stages of a place: which of them a query selects, a page of them, and one of them whole.

What a query selects is kept as the places of its rows, 8 bytes each, so that turning pages asks nothing again. A place
is `file << 40 | row`, both from 0.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.look.conversation import TEXT, conversation
from stillhouse.pipeline.look.place import Place
from stillhouse.pipeline.look.view.columns import Column, columns_of, is_list
from stillhouse.pipeline.look.view.engine import Asking, located
from stillhouse.pipeline.look.view.queries import Query, QueryError
from stillhouse.schemas.config import ConfigError

PAGE = 100
LEDGER = "ledger"
PUBLISHED = "published"
ALIASES = {PUBLISHED: ("publish", "dataset")}
"""Other names that a query may use for a stage: its own, and its folder's."""
NUM_KEPT = 8
"""Selections that are kept: of a million rows, 8 MB each."""
LIST_BEGIN = 32
"""Values of a list that a row shows, where it is no conversation's."""
_ROW_BITS = 40
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """The files of one stage, with one schema."""

    name: str
    files: list[str]
    """Keys in the folder of the place."""
    num_rows: npt.NDArray[np.int64]
    """Of each file."""
    schema: pa.Schema
    empty: frozenset[str]
    """Columns without a value in the first file."""

    @cached_property
    def columns(self) -> dict[str, Column]:
        return columns_of(self.schema, self.empty)

    @cached_property
    def names(self) -> list[str]:
        """How addresses spell the files: names without folder and suffix, or keys where those are not distinct."""
        names = [keys.name(key).rpartition(".")[0] for key in self.files]
        return names if len({*names}) == len(names) else [key.rpartition(".")[0] for key in self.files]

    @cached_property
    def total(self) -> int:
        return int(self.num_rows.sum())

    def places(self, start: int, end: int) -> Places:
        """Where rows `start` to `end` of all are."""
        ends = np.cumsum(self.num_rows)
        rows = np.arange(max(0, start), min(end, self.total), dtype=np.int64)
        files = np.searchsorted(ends, rows, side="right")
        return (files << _ROW_BITS) | (rows - (ends - self.num_rows)[files])

    def address(self, place: int) -> str:
        return f"{self.names[place >> _ROW_BITS]}:{place & ((1 << _ROW_BITS) - 1)}"

    def place(self, address: str) -> tuple[str, int]:
        """The key and the row of an address. Raises `QueryError`."""
        name, _, row = address.rpartition(":")
        if name in self.names and row.isascii() and row.isdecimal() and len(row) < 12:
            file = self.names.index(name)
            if int(row) < self.num_rows[file]:
                return self.files[file], int(row)
        raise QueryError("row: there is no such row in this stage; it is FILE:NUMBER, as the table's links have it")


def files_of(place: Place) -> dict[str, list[str]]:
    """Keys of the Parquet files by the name of the stage they are shown under. Raises `ConfigError` where none is."""
    files = {PUBLISHED if stage == keys.PUBLISH else stage: found for stage, found in place.stages.items()}
    ledger = [key for found in place.ledger.values() for key in found]
    if ledger:
        files[LEDGER] = ledger
    found = {
        stage: chosen for stage, listed in files.items() if (chosen := [k for k in listed if k.endswith(".parquet")])
    }
    if not found:
        raise ConfigError(
            f"{place.path}: has no Parquet files, which are all that can be viewed; give the dataset that this export "
            "was made from, or a run of which a stage has begun"
        )
    return found


class Rows:
    """What the page asks about rows. Methods take the `Asking` of the request and raise `QueryError`, `SQLError`."""

    def __init__(self, place: Place, files: dict[str, list[str]]) -> None:
        self.place = place
        self._files = files
        self._stages: dict[str, Stage] = {}
        self._kept: OrderedDict[tuple[str, Query], Places] = OrderedDict()
        self._lock = threading.Lock()

    def stage(self, name: str, asking: Asking) -> Stage:
        if name not in self._files:
            raise QueryError(f"stage: there is no {name!r} here; choose one of {', '.join(self._files)}")
        with self._lock:
            if name not in self._stages:
                # Not from the footers by name: this way DuckDB has read them when the first filter comes.
                counted = asking.rows(f"SELECT file_index, count(*) FROM {located(name)} GROUP BY file_index")
                num_rows = np.zeros(len(self._files[name]), np.int64)
                for file, count in counted:
                    num_rows[file] = count
                first = self.place.open(self._files[name][0])
                self._stages[name] = Stage(name, self._files[name], num_rows, first.schema, _empty(first.metadata))
            return self._stages[name]

    def selected(self, stage: Stage, query: Query, asking: Asking) -> Places | None:
        """The places of the rows that `query` selects, in its order; None for all of them in the order of the files."""
        if not query.where and not query.order:
            return None
        key = (stage.name, query)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        places = asking.integers(
            f"SELECT (CAST(file_index AS BIGINT) << {_ROW_BITS}) | file_row_number FROM {located(stage.name)}"
            + (f" WHERE {query.where}" if query.where else "")
            + (f" ORDER BY {query.order}, file_index, file_row_number" if query.order else ""),
            query.parameters,
        )
        with self._lock:
            self._kept[key] = places
            while len(self._kept) > NUM_KEPT:
                self._kept.popitem(last=False)
        return places

    def page(self, stage: Stage, query: Query, number: int, asking: Asking) -> dict[str, Any]:
        """Page `number`, from 0: {"total", "shown": [column], "rows": [{"row": address, "cells": [of "shown"]}]}.

        Heavy columns are shown only where rows follow each other in the files: scattered ones would read much of them.
        """
        places = self.selected(stage, query, asking)
        start = number * PAGE
        shown = stage.places(start, start + PAGE) if places is None else places[start : start + PAGE]
        columns = [column for column in stage.columns.values() if places is None or not column.heavy]
        return {
            "total": stage.total if places is None else len(places),
            "shown": [column.name for column in columns],
            "rows": [
                {"row": stage.address(int(place)), "cells": list(cells)}
                for place, cells in zip(shown, self._cells(stage, columns, shown, asking), strict=True)
            ],
        }

    def _cells(self, stage: Stage, columns: list[Column], places: Places, asking: Asking) -> list[tuple[Any, ...]]:
        """Reads, of the row groups that the rows are in, what cells are made from; the cells are SQL over that."""
        if not len(places) or not columns:
            return [()] * len(places)
        reads = [name for name in stage.schema.names if name in {column.reads for column in columns}]
        schema = pa.schema([field for field in stage.schema if field.name in reads])
        parts, order = [schema.empty_table()], list[npt.NDArray[np.int64]]()
        files = places >> _ROW_BITS
        for file in np.unique(files):
            at = np.flatnonzero(files == file)
            rows = (places[at] & ((1 << _ROW_BITS) - 1)).tolist()
            parts.append(self.place.open(stage.files[file]).rows(rows, reads))
            order.append(at)
        table = pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(order))))
        return asking.rows(f"SELECT {', '.join(column.cell for column in columns)} FROM page", tables={"page": table})

    def row(self, stage: Stage, address: str, tokenizer: Any | None) -> dict[str, Any]:
        """One row as `conversation` has it, and "lists": what else it has, as {"name", "length", "begin": text}.

        Of an export there are no messages but ids, and targets in the trainer's own columns: then the message is what
        the ids spell, there are no tokens, and all columns are lists.
        """
        key, number = stage.place(address)
        table = self.place.open(key).rows([number])
        known = conversation(table, 0, tokenizer)
        tokens = known["tokens"]
        if tokens["logprobs"]:
            return known | {"lists": []}
        if tokens["ids"] and not known["messages"]:
            spelled = {"role": "what the ids spell", "content": "".join(tokens["texts"]), "reasoning_content": None}
            known |= {"messages": [spelled], "tokens": {name: [] for name in tokens}}
        lists = [
            {"name": field.name, "length": len(values), "begin": _begin(values)}
            for field in stage.schema
            if is_list(field.type)
            and field.name not in TEXT
            and (values := table.column(field.name)[0].as_py()) is not None
        ]
        return known | {"lists": lists}


def _empty(footer: pq.FileMetaData) -> frozenset[str]:
    """Columns that are null in every row of a file, by its own statistics; those of a struct as struct.child."""
    nulls: dict[str, int] = {}
    for group in range(footer.num_row_groups):
        for number in range(footer.num_columns):
            column = footer.row_group(group).column(number)
            if column.statistics is not None and column.statistics.has_null_count:
                nulls[column.path_in_schema] = nulls.get(column.path_in_schema, 0) + column.statistics.null_count
    return frozenset(name for name, count in nulls.items() if count == footer.num_rows > 0)


def _begin(values: list[Any]) -> str:
    return ", ".join(map(str, values[:LIST_BEGIN])) + (" …" if len(values) > LIST_BEGIN else "")
