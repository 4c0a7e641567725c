"""Files of an object store for DuckDB, without its own extension, which it would fetch from the network."""

import threading
from datetime import UTC, datetime
from typing import Any

import fsspec  # type: ignore[import-untyped]

from stillhouse.pipeline.folder.columns import PartsOfFile
from stillhouse.pipeline.look.place import Place

_PROTOCOL = "stillhouse"


def duckdb_path(key: str) -> str:
    """What DuckDB calls the file at `key`."""
    return f"{_PROTOCOL}://{key}"


class _FileOfEachThread(threading.local):
    """A file with a position for each thread: DuckDB's threads share it, and each of them seeks before it reads."""

    def __init__(self, *which: Any) -> None:  # called again in each thread
        self._file = PartsOfFile(*which)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class FilesOfPlace(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """The files of a place, to be read in parts, under their keys. There is nothing else and nothing can be written."""

    protocol = _PROTOCOL
    cachable = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        key = self._strip_protocol(path)
        if key not in self._place.sizes:
            raise FileNotFoundError(path)
        return {"name": key, "size": self._place.sizes[key], "type": "file"}

    def modified(self, path: str) -> datetime:
        """The same at all times: files of a run are written once."""
        return datetime(2000, 1, 1, tzinfo=UTC)

    def ls(self, path: str, **_: Any) -> list[Any]:
        return []

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        key = self._strip_protocol(path)
        if mode != "rb":
            raise PermissionError(path)
        return _FileOfEachThread(self._place.folder, key, self.info(key)["size"])
