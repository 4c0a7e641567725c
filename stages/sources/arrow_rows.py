"""Reads Arrow IPC, one record batch at a time: what `Dataset.save_to_disk` writes, and Feather."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from stillhouse.stages.sources.batches import batch_rows, raise_if_io
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.row import TRUNCATED_SOURCE, Row, SourceError

if TYPE_CHECKING:
    from stillhouse.stages.sources.streams import Reader

_FILE_MAGIC = b"ARROW1"
_DAMAGED = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)  # the last for lengths that are none
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a stream that was closed (Arrow's columnar format, "IPC Streaming Format")."""


def read_arrow(name: str, stream: "Reader", spelling: Spelling) -> Iterator[Row]:
    """The rows of an Arrow file or stream, as dicts of what `spelling` needs. At the first damaged batch a last row
    `truncated_source` stands for all that is missing, and so it does where a stream was not closed. Raises
    `SourceError` for what is neither."""
    is_file = stream.peek(len(_FILE_MAGIC)).startswith(_FILE_MAGIC)
    try:
        source = pa.PythonFile(stream, mode="r")
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        wanted = [column for column in reader.schema.names if _is_wanted(column, spelling)]
    except _DAMAGED as error:
        raise_if_io(error)
        raise SourceError(f"{name}: is no readable Arrow file or stream; its beginning or footer is damaged") from None
    try:
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
            chosen = batch.select(wanted)
            for column in chosen.columns:  # a damaged one could end the process
                type_ = _as_bytes(column.type)
                (column if type_ == column.type else column.view(type_)).validate(full=True)
            yield from batch_rows(chosen)
    except _DAMAGED as error:
        raise_if_io(error)
        yield Row(None, TRUNCATED_SOURCE)
        return
    if not is_file:
        stream.seek(-min(len(_END), stream.seek(0, 2)), 2)
        if stream.read() != _END:
            yield Row(None, TRUNCATED_SOURCE)


def _is_wanted(column: str, spelling: Spelling) -> bool:
    return spelling.columns is None or any(f"{name}.".startswith(f"{column}.") for name in spelling.columns)


def _as_bytes(type_: pa.DataType) -> pa.DataType:
    """A type with bytes in the place of texts: one that is not UTF-8 costs its row, and is no damage to others."""
    if pa.types.is_string(type_):
        return pa.binary()
    if pa.types.is_large_string(type_):
        return pa.large_binary()
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_as_bytes(type_.value_type)))
    if pa.types.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(_as_bytes(type_.value_type)))
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in type_])
    return type_
