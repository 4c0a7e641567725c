"""Arrow's record batches as rows."""

import pyarrow as pa

from stillhouse.stages.sources.row import UNDECODABLE, Row, SourceError


def raise_if_io(error: Exception) -> None:
    """Raise the error again if reading failed, not decoding. Arrow reports damaged bytes as OSError too, but without an
    errno; a failing object store is a `SourceError`."""
    if isinstance(error, SourceError) or (isinstance(error, OSError) and error.errno is not None):
        raise error


def batch_rows(batch: pa.RecordBatch) -> list[Row]:
    """Each row as a dict by column. One that Python cannot hold, such as a text that is not UTF-8, is `undecodable`."""
    names = batch.schema.names
    if not names:
        return [Row({})] * batch.num_rows
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except (ValueError, OverflowError):  # such as a UnicodeDecodeError: look for the row that caused it
        return [_batch_row(batch, i) for i in range(batch.num_rows)]
    return [Row(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _batch_row(batch: pa.RecordBatch, i: int) -> Row:
    try:
        return Row({name: column[i].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)})
    except (ValueError, OverflowError):
        return Row(None, UNDECODABLE)
