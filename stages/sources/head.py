"""The beginning of a file: what it is, whatever its name says."""

import io
import re
from typing import TYPE_CHECKING

from stillhouse.stages.sources.row import BrokenStreamError, SourceError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from stillhouse.stages.sources.streams import Reader

HEAD_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"
_OTHER_KINDS = (
    (re.compile(rb"PAR1"), "is Parquet; rename it to .parquet"),
    (re.compile(rb"\x1f\x8b"), "is gzip; append .gz to its name"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "is zstd; append .zst to its name"),
    (re.compile(rb"PK\x03\x04"), "is a zip archive; unpack it"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "is UTF-16; convert it to UTF-8"),
    (re.compile(rb"version https://git-lfs"), "is a Git LFS pointer, not the data; fetch it by git lfs pull"),
    (re.compile(rb"\s*<[!?a-zA-Z]"), "is HTML or XML, not data; download the file itself"),
)


def refuse_other_kinds(name: str, head: bytes) -> None:
    """Raises `SourceError` for the beginning of a file that is no text of rows, with what it is."""
    for pattern, what in _OTHER_KINDS:
        if pattern.match(head):
            raise SourceError(f"{name}: {what}")


class Head(io.RawIOBase):
    """A stream whose first bytes (`data`) have been looked at, read from its start again."""

    def __init__(self, stream: "Reader") -> None:
        self._stream = stream
        self._is_broken = False
        found = bytearray()
        try:
            while len(found) < HEAD_BYTES and (chunk := stream.read1(HEAD_BYTES - len(found))):
                found += chunk
        except BrokenStreamError:
            self._is_broken = True
        self.data = bytes(found)
        self.is_whole = len(found) < HEAD_BYTES
        self._rest = memoryview(self.data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        if not self._rest:
            if self._is_broken:
                raise BrokenStreamError
            return self._stream.readinto1(buffer)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
