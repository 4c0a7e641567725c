"""Formats of files: which suffix stands for which reader. A new format is a file with its reader, and a line here."""

import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from stillhouse.stages.sources.json_rows import is_array, read_array, read_lines
from stillhouse.stages.sources.parquet_rows import read_parquet
from stillhouse.stages.sources.row import TRUNCATED_SOURCE, BrokenStreamError, Row, SourceError
from stillhouse.stages.sources.streams import COMPRESSIONS, MAGIC, READ_BYTES, Decompressed

if TYPE_CHECKING:
    from stillhouse.stages.sources.streams import Reader

SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}


def kind(name: str) -> tuple[str, str | None] | None:
    """Format and compression that a file name stands for; None for a name that stands for neither."""
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    found = SUFFIXES.get(path.with_suffix("").suffix if compression else path.suffix)
    return None if found is None or (compression and found == "parquet") else (found, compression)


def known_suffixes() -> str:
    return f"{', '.join(SUFFIXES)} (all but .parquet also with {', '.join(COMPRESSIONS)})"


def read(name: str, stream: "Reader") -> Iterator[Row]:
    """The rows of an open file, by the format that its name stands for."""
    file_format, compression = kind(name) or ("", None)
    if file_format == "parquet":
        yield from read_parquet(name, stream)
        return
    plain: Reader = stream
    if compression:
        head = stream.peek(4)
        if head and not MAGIC[compression].match(head):
            raise SourceError(f"{name}: is not a {compression} stream; check the file or rename it")
        plain = io.BufferedReader(Decompressed(stream, compression), READ_BYTES)
    try:
        yield from read_array(plain) if file_format == "json" and is_array(plain) else read_lines(plain)
    except BrokenStreamError:
        yield Row(None, TRUNCATED_SOURCE)
