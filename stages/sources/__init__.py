"""Reads a source row by row: local files, folders, globs, object stores, hub data sets; Parquet, JSONL, JSON.

Not the meaning of a row (that is `stages.ingest`). Memory holds one row (as JSON at most `MAX_ROW_BYTES`) or one batch
of a Parquet row group at a time, never a whole file. A row that cannot be read becomes a `Row` with an error, so that
one bad row costs one row; a source that cannot be read at all is a `SourceError`.
"""

from collections.abc import Iterator

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import formats
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.files import files_of
from stillhouse.stages.sources.pieces import Piece
from stillhouse.stages.sources.row import Row, SourceError

__all__ = ["Row", "SourceError", "count_rows", "read_rows", "source_name"]


def read_rows(config: SourceConfig, *, every_column: bool = False, more_columns: tuple[str, ...] = ()) -> Iterator[Row]:
    """The rows of a source in a fixed order: a row's number in this order is its `source_row`. Of Parquet only the
    columns are read that hold what is kept of a row, and `more_columns`, unless `every_column` is asked for.

    A missing file, an empty match or an unknown suffix is a `SourceError` of this call; a file that turns out not to be
    what its name says is one when it is reached. A failing disk or network raises its own error.
    """
    files = list(files_of(config))
    spelling = Spelling(config, every_column=every_column, more_columns=more_columns)
    return (row for file in files for row in Piece(file).rows(spelling))


def count_rows(config: SourceConfig) -> int | None:
    """How many rows ingest will take of those that `read_rows` gives, at most `source.limit` and `source.sample`.

    Known without reading the rows only for formats that count them (Parquet), and not for a damaged file or a hub data
    set, which would have to be downloaded first. Elsewhere this is the lower of these two; None where neither is set.
    """
    most = min(filter(None, (config.limit, config.sample)), default=None)
    if config.dataset is not None:
        return most
    total = 0
    for file in files_of(config):
        file_format, _ = formats.format_of(file.name)
        if file_format.count_rows is None:
            return most
        with file.open() as stream:
            counted = file_format.count_rows(stream)
        if counted is None:
            return most
        total += counted
    return total if most is None else min(total, most)


def source_name(config: SourceConfig) -> str:
    """What the `source` column says: the configured name, the data set's id, or the last part of the (first) path."""
    if config.name is not None:
        return config.name
    if config.dataset is not None:
        return config.dataset
    path = config.paths[0]
    return path.rstrip("/").rpartition("/")[2] or path
