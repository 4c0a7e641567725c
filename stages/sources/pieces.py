"""Pieces of a source that several processes can read at once."""

from collections.abc import Iterator
from typing import NamedTuple

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import formats
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.files import File, files_of
from stillhouse.stages.sources.row import Part, Row, SourceError

PIECE_BYTES = 16 << 20
"""Of a Parquet file, about: so many hold ten thousand conversations, which take a process a second."""


class Piece(NamedTuple):
    """A file of a source, or a part of it. Can be pickled."""

    file: File
    part: Part | None = None

    @property
    def num_bytes(self) -> int | None:
        return self.file.num_bytes if self.part is None else self.part.num_bytes

    def rows(self, spelling: Spelling) -> Iterator[Row]:
        with self.file.open() as stream:
            yield from formats.read(self.file.name, stream, spelling, self.part)


def pieces_of(config: SourceConfig) -> Iterator[Piece]:
    """The pieces of a source, in order: small files, row groups of Parquet and lines of JSON. Their rows are those of
    `read_rows`. Files of a hub are not taken apart: each is downloaded by who reads it."""
    spelling = Spelling(config)
    for file in list(files_of(config)):  # all of them, because what is not there is said now
        yield from [Piece(file)] if file.num_bytes is None else _of_file(file, file.num_bytes, spelling)


def _of_file(file: File, num_bytes: int, spelling: Spelling) -> list[Piece]:
    kind, compression = formats.format_of(file.name)
    if compression or kind.parts_of is None or num_bytes < 2 * PIECE_BYTES:
        return [Piece(file)]
    try:
        with file.open() as stream:
            parts = kind.parts_of(file.name, stream, spelling, PIECE_BYTES)
    except SourceError:  # said when it is read, in its turn
        parts = []
    return [Piece(file, part) for part in parts] or [Piece(file)]
