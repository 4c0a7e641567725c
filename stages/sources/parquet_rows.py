"""Reads Parquet, one batch of a row group at a time. A damaged page costs no rows but its own row group's."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stillhouse.stages.sources.batches import batch_rows, raise_if_io
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.row import UNDECODABLE, Part, Row, SourceError
from stillhouse.stages.sources.streams import READ_BYTES

if TYPE_CHECKING:
    from stillhouse.stages.sources.streams import Reader

_BATCH_BYTES = 4 << 20  # uncompressed; so much of a row group is decoded at once


def read_parquet(name: str, stream: "Reader", spelling: Spelling, part: Part | None = None) -> Iterator[Row]:
    """The rows of a Parquet file, or of some of its row groups, as dicts of what `spelling` needs. Rows in damaged
    pages are `undecodable`."""
    import pyarrow.parquet as pq

    try:
        # By default Arrow fetches whole row groups ahead, and without a buffer size whole column chunks.
        parquet = pq.ParquetFile(stream, buffer_size=READ_BYTES, pre_buffer=False)
        columns = _leaves(parquet, spelling)
        if not _counts_agree(parquet.metadata):
            raise ValueError
    except (pa.ArrowException, OSError, ValueError) as error:  # a name that is not UTF-8 is a ValueError
        raise_if_io(error)
        raise SourceError(f"{name}: is not a readable Parquet file; its footer is damaged or missing") from None
    for group in range(parquet.num_row_groups) if part is None else range(part.begin, part.end):
        metadata = parquet.metadata.row_group(group)
        row_bytes = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
        batch_size = min(1000, max(1, _BATCH_BYTES // row_bytes))
        num_read = 0
        try:
            for batch in parquet.iter_batches(batch_size, row_groups=[group], columns=columns, use_threads=False):
                rows = batch_rows(batch.slice(0, metadata.num_rows - num_read))
                num_read += len(rows)
                yield from rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise_if_io(error)
        # Arrow does not always raise on a damaged page: it may just give fewer rows.
        yield from (Row(None, UNDECODABLE) for _ in range(metadata.num_rows - num_read))


def parts_of_parquet(name: str, stream: "Reader", spelling: Spelling, num_bytes: int) -> list[Part]:
    """Consecutive row groups that together take about so many bytes of the file. None of a damaged file: reading says
    what is wrong with it."""
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(stream)
        if not _counts_agree(metadata):
            return []
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_if_io(error)
        return []
    plain_bytes = [max(1, metadata.row_group(i).total_byte_size) for i in range(metadata.num_row_groups)]
    share = stream.seek(0, 2) / max(1, sum(plain_bytes))  # not asked of single columns: see `_counts_agree`
    parts, begin, taken = list[Part](), 0, 0.0
    for group, of_group in enumerate(plain_bytes):
        taken += of_group * share
        if taken >= num_bytes or group == len(plain_bytes) - 1:
            parts.append(Part(begin, group + 1, int(taken)))
            begin, taken = group + 1, 0.0
    return parts


def count_parquet(stream: "Reader") -> int | None:
    """The number of rows, from the footer alone. None of a damaged file: reading says what is wrong with it."""
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(stream).num_rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_if_io(error)
        return None


def _counts_agree(metadata: Any) -> bool:
    """Whether the footer's row groups add up to the number of rows that it gives for the file.

    Where they do not, rows would be lost silently or made up by the million. The counts of single columns are not
    compared: PyArrow 26 ends the process when it looks at a damaged one.
    """
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return min(counts, default=0) >= 0 and sum(counts) == metadata.num_rows


def _leaves(parquet: Any, spelling: Spelling) -> list[str]:
    """Paths of the leaf columns to read: of messages only what is looked at, of moderation entries only the flag."""
    paths = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    if spelling.columns is None:
        return paths
    leaves: dict[str, list[str]] = {}
    for path in paths:
        # A name may be a path into a struct, and a column that should be one a JSON text.
        leaf = f"{path}."
        wanted = (name for name in spelling.columns if leaf.startswith(f"{name}.") or f"{name}.".startswith(leaf))
        if (column := next(wanted, None)) is not None:
            leaves.setdefault(column, []).append(path)
    chosen: list[str] = []
    for column, found in leaves.items():
        fields = {"flagged"} if column == "openai_moderation" else spelling.message_fields
        chosen += [
            path
            for path in found
            if fields.intersection(path[len(column) :].casefold().split(".")) or spelling.is_asked(path)
        ] or found
    return chosen
