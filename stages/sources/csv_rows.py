"""Reads CSV row by row: texts by the names of the first line. A bad row costs one row; a row's size is bounded."""

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.head import BOM, Head, refuse_other_kinds
from stillhouse.stages.sources.row import (
    INVALID_CSV,
    MAX_ROW_BYTES,
    ROW_TOO_LARGE,
    TRUNCATED_SOURCE,
    UNDECODABLE,
    Row,
    SourceError,
)
from stillhouse.stages.sources.streams import READ_BYTES

if TYPE_CHECKING:
    from stillhouse.stages.sources.streams import Reader

_DELIMITERS = (",", ";", "\t")


def read_csv(name: str, stream: "Reader", spelling: Spelling) -> Iterator[Row]:
    """The rows of a CSV file (RFC 4180) as objects of texts; an empty field is none. Fields are separated by what the
    line of names has most of: comma, semicolon or tab.

    A row with more or fewer fields than there are names is `invalid_csv`. A quote without its end takes the lines that
    follow into its field; nobody can tell where the next row begins, so a last row `truncated_source` stands for all
    that is missing. Raises `SourceError` for a file that is no CSV, or whose names are empty or repeated.
    """
    head = Head(stream)
    refuse_other_kinds(name, head.data)
    if not head.data:
        return
    lines = _Lines(io.BufferedReader(head, READ_BYTES))
    first = head.data.removeprefix(BOM).split(b"\n", 1)[0].decode("utf-8", "replace")
    delimiter = max(_DELIMITERS, key=first.count)
    csv.field_size_limit(MAX_ROW_BYTES)  # for this process; its own is 128 KiB
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next(records, [])
    except csv.Error:
        names = []
    if any(not column.strip() for column in names[1:]) or len(set(names)) < max(1, len(names)):
        # The first may be empty: pandas writes its index so.
        raise SourceError(f"{name}: its first line does not name each column once; give it such a line")
    while True:
        lines.begin_row()
        try:
            fields = next(records, None)
        except csv.Error:
            if lines.is_at_end or (lines.is_too_large and lines.num_read > 1):
                yield Row(None, TRUNCATED_SOURCE)
                return
            yield Row(None, ROW_TOO_LARGE if lines.is_too_large else INVALID_CSV)
            continue
        if fields is None:
            return
        if lines.is_too_large:
            yield Row(None, ROW_TOO_LARGE)
        elif fields and len(fields) != len(names):
            yield Row(None, INVALID_CSV)
        elif fields:  # a blank line is no row
            yield _row(names, fields)


def _row(names: list[str], fields: list[str]) -> Row:
    if any("\udc80" <= character <= "\udcff" for field in fields if not field.isascii() for character in field):
        return Row(None, UNDECODABLE)
    return Row({name: field or None for name, field in zip(names, fields, strict=True)})


class _Lines:
    """Lines of text for `csv.reader`, which asks for as many as a row has. Of one that is too long, the beginning.
    Bytes that are not UTF-8 become lone surrogates."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._is_first = True
        self._row_bytes = self.num_read = 0
        self.is_at_end = False

    def begin_row(self) -> None:
        self._row_bytes = self.num_read = 0

    @property
    def is_too_large(self) -> bool:
        return self._row_bytes > MAX_ROW_BYTES

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_ROW_BYTES + 1)
        if not line:
            self.is_at_end = True
            raise StopIteration
        self._row_bytes += len(line)
        self.num_read += 1
        while len(line) > MAX_ROW_BYTES and (rest := self._stream.readline(MAX_ROW_BYTES)):
            if rest.endswith(b"\n"):
                break
        if self._is_first:
            line = line.removeprefix(BOM)
            self._is_first = False
        return line.decode("utf-8", "surrogateescape")
