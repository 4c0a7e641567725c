"""Pieces of a source that several processes can read at once."""

from collections.abc import Iterator
from typing import NamedTuple

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import formats
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.files import File, files_of
from stillhouse.stages.sources.row import Part, Row

PIECE_BYTES = 16 << 20
"""Of a file, about: so many hold ten thousand conversations, which take a process a second."""
LARGE_BYTES = 256 << 20
"""More than this is read row by row, by who gives rows their ids, because a piece that is read elsewhere is held in
memory."""
LARGE_COMPRESSED_BYTES = 64 << 20


class Piece(NamedTuple):
    """A file of a source, or a part of it. Can be pickled."""

    file: File
    part: Part | None = None
    is_large: bool = False
    """More than is held in memory."""

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
    for file in files_of(config):
        yield from [Piece(file)] if file.num_bytes is None else _of_file(file, file.num_bytes, spelling)


def _of_file(file: File, num_bytes: int, spelling: Spelling) -> list[Piece]:
    kind, compression = formats.format_of(file.name)
    largest = LARGE_COMPRESSED_BYTES if compression else LARGE_BYTES
    whole = Piece(file, is_large=num_bytes > largest)
    if compression or kind.parts_of is None or num_bytes < 2 * PIECE_BYTES:
        return [whole]
    with file.open() as stream:
        parts = kind.parts_of(file.name, stream, spelling, PIECE_BYTES)
    return [Piece(file, part, is_large=part.num_bytes > largest) for part in parts] or [whole]
