"""Some columns of some rows of a shard, without the rest of the file. For those who look; a run reads whole shards, and
checks them: here nothing is verified but the pages that are read."""

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder.store import Folder

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


_READ_BYTES = 64 << 10
"""Read at least: narrow columns lie side by side, and an object store takes as long for one of them as for all."""


class PartsOfFile(io.RawIOBase):
    """A file of a folder, of which only the parts that are asked for are read, and what is right behind them."""

    def __init__(self, folder: Folder, key: str, size: int) -> None:
        self._folder, self._key, self._size = folder, key, size
        self._at = 0
        self._last = (0, b"")  # where the last part read begins, and its bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        target = memoryview(buffer).cast("B")
        end = min(self._at + len(target), self._size)
        start, data = self._last
        if not (start <= self._at and end <= start + len(data)):
            start = self._at
            data = self._folder.part(self._key, start, min(max(end, start + _READ_BYTES), self._size))
            self._last = (start, data)
        found = data[self._at - start : end - start]
        target[: len(found)] = found
        self._at += len(found)
        return len(found)


class Columns:
    """A shard that is open: its schema and counts at once, columns and rows when they are asked for.

    Raises `DamagedError`, here and in its methods, where the file is not Parquet, and FileNotFoundError.
    """

    def __init__(self, folder: Folder, key: str, size: int | None = None) -> None:
        self.where = folder.path(key)
        if size is None:
            size = folder.list(key.rpartition("/")[0]).get(key.rpartition("/")[2])
        if size is None:
            raise FileNotFoundError(self.where)
        self._parquet = self._asked(
            # Arrow's threads must never hold a file of Python's: one that lets go of it while the interpreter ends
            # aborts the process. So nothing is read ahead, and columns are decoded one after the other.
            lambda: pq.ParquetFile(PartsOfFile(folder, key, size), pre_buffer=False, page_checksum_verification=True)
        )
        self.metadata: Any = self._parquet.metadata
        self.schema: pa.Schema = self._parquet.schema_arrow.remove_metadata()

    @property
    def num_rows(self) -> int:
        return int(self.metadata.num_rows)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns (or leaves: `prompt_scores.toxicity`) of all rows; those that the shard lacks are left out."""
        return self._plain(self._asked(lambda: self._parquet.read(self._known(columns), use_threads=False)))

    def batches(self, columns: Sequence[str], rows: int = 1 << 16) -> Iterator[pa.RecordBatch]:
        """The same, some rows at a time."""
        batches = self._asked(lambda: self._parquet.iter_batches(rows, columns=self._known(columns), use_threads=False))
        while (batch := self._asked(lambda: next(batches, None))) is not None:
            yield batch

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one row group."""
        return self._plain(
            self._asked(lambda: self._parquet.read_row_group(number, self._known(columns), use_threads=False))
        )

    def rows(self, numbers: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of these numbers, in this order, all columns or some. Reads the row groups that they are in."""
        columns = self.schema.names if columns is None else self._known(columns)
        groups: dict[int, list[tuple[int, int]]] = {}  # pairs of place in the result and row of the group
        for place, number in enumerate(numbers):
            group, row = self._place(number)
            groups.setdefault(group, []).append((place, row))
        parts, places = [self.schema.empty_table().select(columns)], list[int]()
        for group, wanted in sorted(groups.items()):
            parts.append(self.group(group, columns).take([row for _, row in wanted]))
            places += [place for place, _ in wanted]
        order = sorted(range(len(places)), key=places.__getitem__)
        return pa.concat_tables(parts).take(pa.array(order, pa.int64()))

    def _place(self, number: int) -> tuple[int, int]:
        for group in range(self.metadata.num_row_groups):
            num_rows = self.metadata.row_group(group).num_rows
            if 0 <= number < num_rows:
                return group, number
            number -= num_rows
        raise IndexError(f"{self.where}: has {self.num_rows} rows")

    def _known(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if name.partition(".")[0] in self.schema.names]

    def _plain(self, table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata(None)

    def _asked(self, read: Any) -> Any:
        try:
            return read()
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedError(
                f"{self.where}: is damaged or no Parquet file ({type(error).__name__}); `stillhouse verify` says more"
            ) from None
