"""Streams of bytes: decompressed gzip and zstd, and objects of a store as files.

Memory holds a buffer at a time, never a whole file.
"""

import io
import re
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stillhouse.stages.sources.object_store import reason
from stillhouse.stages.sources.row import BrokenStreamError, SourceError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore.store import ObjectStore

    Reader = io.BufferedReader[Any]  # cannot be subscripted at run time

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAGIC = {"gzip": re.compile(rb"\x1f\x8b"), "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")}
READ_BYTES = 1 << 20
_STORE_READ_BYTES = 8 << 20  # an object store takes ~100 ms to answer: requests of 1 MiB would read only 10 MB/s
_COMPRESSED_BYTES = 1 << 10  # small, because zstd may expand a chunk 30,000-fold


class Decompressed(io.RawIOBase):
    """The plain bytes of a gzip or zstd stream, which may consist of several members or frames.

    Raises `BrokenStreamError` where the stream ends early or is damaged, but only after giving out all bytes before
    that place (zstandard's own reader ends silently there, gzip's buffered reader loses up to a buffer).
    """

    def __init__(self, compressed: "Reader", compression: str) -> None:
        self._compressed = compressed
        self._input = b""
        self._output = memoryview(b"")
        self._frame: Any = None
        self._num_frames = 0
        self._start_frame: Callable[[], Any]
        self._damage: type[Exception]
        if compression == "gzip":
            self._start_frame, self._damage = lambda: zlib.decompressobj(wbits=31), zlib.error
        else:
            import zstandard

            # 2 GiB windows are what `zstd --long=31` writes.
            frames = zstandard.ZstdDecompressor(max_window_size=1 << 31)
            self._start_frame, self._damage = frames.decompressobj, zstandard.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        while not self._output:
            chunk = self._input or self._compressed.read(_COMPRESSED_BYTES)
            self._input = b""
            if not chunk:
                if self._frame is not None:
                    raise BrokenStreamError
                return 0
            if self._frame is None:
                if self._num_frames:
                    chunk = chunk.lstrip(b"\0")  # tapes and some writers pad the end with zeros
                    if not chunk:
                        continue
                self._frame = self._start_frame()
                self._num_frames += 1
            try:
                self._output = memoryview(self._frame.decompress(chunk))
            except self._damage:
                raise BrokenStreamError from None
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._output))
        target[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


class _StoreFile(io.RawIOBase):
    """An object of a store as a raw file, so that Python and Arrow can buffer and seek in it."""

    def __init__(self, reader: Any, name: str) -> None:
        self._reader = reader
        self._name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        from obstore.exceptions import BaseError

        target = memoryview(buffer).cast("B")
        try:
            data = memoryview(self._reader.read(len(target)))
        except (BaseError, OSError) as error:
            # Not raised as it is: an OSError without errno would count as a damaged page in `parquet_rows`.
            raise SourceError(
                f"{self._name}: cannot be read ({reason(error)}); check endpoint and network, then run again"
            ) from None
        target[: len(data)] = data
        return len(data)


def open_object(store: "ObjectStore", name: str) -> "Reader":
    """An object as a seekable buffered file that fetches only the ranges that are read. Raises FileNotFoundError."""
    import obstore

    reader = obstore.open_reader(store, name, buffer_size=_STORE_READ_BYTES)
    return io.BufferedReader(_StoreFile(reader, name), READ_BYTES)
