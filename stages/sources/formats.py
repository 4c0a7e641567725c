"""Formats of files: which suffix stands for which reader. A new format is a file with its reader, and a line here."""

import io
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from stillhouse.stages.sources.arrow_rows import read_arrow
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.csv_rows import read_csv
from stillhouse.stages.sources.json_rows import parts_of_json, read_json, read_lines
from stillhouse.stages.sources.parquet_rows import count_parquet, parts_of_parquet, read_parquet
from stillhouse.stages.sources.row import TRUNCATED_SOURCE, BrokenStreamError, Part, Row, SourceError
from stillhouse.stages.sources.streams import COMPRESSIONS, MAGIC, READ_BYTES, Decompressed

if TYPE_CHECKING:
    from stillhouse.stages.sources.streams import Reader


class Format(NamedTuple):
    """How files of one format are read. Errors quote the file's name."""

    name: str
    read_rows: "Callable[[str, Reader, Spelling], Iterator[Row]]"
    """Yields the rows of an open file, given its name, its (decompressed) bytes and what a row may look like."""
    count_rows: "Callable[[Reader], int | None] | None" = None
    """Counts the rows of an open file without reading them, where the format allows that; None of a damaged one."""
    parts_of: "Callable[[str, Reader, Spelling, int], list[Part]] | None" = None
    """Parts of an open file, in order, of about so many bytes, which can be read apart; empty where it has none."""
    read_part: "Callable[[str, Reader, Spelling, Part], Iterator[Row]] | None" = None
    """Yields the rows of one of them. Those of all are the rows of the file."""
    compressible: bool = True
    """Whether the suffix may be followed by one of `COMPRESSIONS`. Then the bytes can only be read in order."""


_PARQUET = Format("Parquet", read_parquet, count_parquet, parts_of_parquet, read_parquet, compressible=False)
_ARROW = Format("Arrow", read_arrow, compressible=False)
_JSON_LINES = Format("JSON lines", read_json, None, parts_of_json, read_lines)
_JSON = Format("JSON", read_json, None, parts_of_json, read_lines)
_CSV = Format("CSV", read_csv)
FORMATS = {
    ".parquet": _PARQUET,
    ".jsonl": _JSON_LINES,
    ".ndjson": _JSON_LINES,
    ".json": _JSON,
    ".arrow": _ARROW,
    ".feather": _ARROW,
    ".csv": _CSV,
    ".tsv": _CSV,
}
"""The best first: of a hub data set, only files of one format are read, the first of these that has conversations."""


def is_known(name: str) -> bool:
    """Whether a file name has a known suffix."""
    return _lookup(name) is not None


def format_of(name: str) -> tuple[Format, str | None]:
    """The format and the compression that a file name stands for. Raises `SourceError` for an unknown suffix."""
    found = _lookup(name)
    if found is None:
        raise SourceError(f"{name}: has no known suffix; rename it to one of {known_suffixes()}")
    return found


def without_tables(names: list[str]) -> list[str]:
    """The data files of a folder: not its CSV files where it has others, because these are statistics or labels."""
    return [name for name in names if format_of(name)[0] != _CSV] or names


def known_suffixes() -> str:
    plain = ", ".join(suffix for suffix, found in FORMATS.items() if not found.compressible)
    return f"{', '.join(FORMATS)} (all but {plain} also with {', '.join(COMPRESSIONS)})"


def _lookup(name: str) -> tuple[Format, str | None] | None:
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    found = FORMATS.get(path.with_suffix("").suffix if compression else path.suffix)
    return None if found is None or (compression and not found.compressible) else (found, compression)


def read(name: str, stream: "Reader", spelling: Spelling, part: Part | None = None) -> Iterator[Row]:
    """The rows of an open file, or of a part of it, by the format that its name stands for."""
    file_format, compression = format_of(name)
    if part is not None:
        assert file_format.read_part is not None
        yield from file_format.read_part(name, stream, spelling, part)
        return
    plain: Reader = stream
    if compression:
        head = stream.peek(4)
        if head and not MAGIC[compression].match(head):
            raise SourceError(f"{name}: is not a {compression} stream; check the file or rename it")
        plain = io.BufferedReader(Decompressed(stream, compression), READ_BYTES)
    try:
        yield from file_format.read_rows(name, plain, spelling)
    except BrokenStreamError:
        yield Row(None, TRUNCATED_SOURCE)
