"""A folder on a file system.

A file is written under another name, synced, and linked to its own if nothing is there yet. Power loss is survived only
when both file and folder are synced; `obstore` leaves that out, so file systems are handled here.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from stillhouse.pipeline.errors import StorageError
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder.store import Entry
from stillhouse.schemas.config import as_path

STALE_AFTER_S = 3600.0
"""A staged file this old belongs to a process that was killed: no write takes so long."""


class LocalFolder:
    """`Folder` at a path or a file:// URL."""

    def __init__(self, url: str, staged: str = keys.STAGED) -> None:
        self.url = as_path(url).rstrip("/")
        self._staged = staged
        self._root = Path(as_path(url))
        self._seen = self._root.is_dir()

    def path(self, key: str) -> str:
        return f"{self.url}/{key}"

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._blamed(key, "written"):
            staged = self._stage(key, data)
            try:
                os.link(staged, self._root / key)
            except FileExistsError:
                return False
            finally:
                staged.unlink(missing_ok=True)
            _sync_folder((self._root / key).parent)
            return True

    def put(self, key: str, data: bytes) -> None:
        with self._blamed(key, "written"):
            staged = self._stage(key, data)
            try:
                staged.replace(self._root / key)
            finally:
                staged.unlink(missing_ok=True)
            _sync_folder((self._root / key).parent)

    def get(self, key: str) -> bytes:
        with self._blamed(key, "read", may_lack=True):
            return (self._root / key).read_bytes()

    def get_or_none(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def tail(self, key: str, num_bytes: int, size: int | None = None) -> bytes:
        with self._blamed(key, "read", may_lack=True), (self._root / key).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
            return file.read()

    def part(self, key: str, start: int, end: int) -> bytes:
        with self._blamed(key, "read", may_lack=True), (self._root / key).open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(max(0, end - start)) or b""

    def exists(self, key: str) -> bool:
        try:
            with self._blamed(key, "read", may_lack=True):
                (self._root / key).stat()
        except FileNotFoundError:
            return False
        return True

    def entries(self, folder: str) -> dict[str, Entry]:
        found = {}
        with self._blamed(folder, "listed"):
            for file in self._scanned(folder):
                with contextlib.suppress(FileNotFoundError):  # deleted since by another driver
                    stat = file.stat()
                    version = f"{stat.st_size}-{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"
                    found[file.name] = Entry(stat.st_size, version, stat.st_mtime)
        return dict(sorted(found.items()))

    def names(self, folder: str) -> set[str]:
        with self._blamed(folder, "listed"):
            return {file.name for file in self._scanned(folder)}

    def list(self, folder: str) -> dict[str, int]:
        return {name: entry.size for name, entry in self.entries(folder).items()}

    def walk(self, folder: str) -> tuple[str, ...]:
        with self._blamed(folder, "listed"):
            found = [Path(parent, name) for parent, _, names in os.walk(self._root / folder) for name in names]
        return tuple(sorted(path.relative_to(self._root).as_posix() for path in found))

    def delete(self, key: str) -> None:
        with self._blamed(key, "deleted"):
            (self._root / key).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Deletes staged files older than `STALE_AFTER_S`."""
        count = 0
        with (
            self._blamed(self._staged, "swept"),
            contextlib.suppress(FileNotFoundError),
            os.scandir(self._root / self._staged) as files,
        ):
            for file in files:
                if time.time() - file.stat().st_mtime > STALE_AFTER_S:
                    Path(file.path).unlink(missing_ok=True)
                    count += 1
        return count

    def remove_staged(self) -> None:
        with contextlib.suppress(OSError):
            (self._root / self._staged).rmdir()

    def require_conditional_puts(self, key: str) -> None:
        """Nothing to ask for: a hard link never replaces a file."""

    def _scanned(self, folder: str) -> Iterator["os.DirEntry[str]"]:
        """The files directly in `folder` that are not hidden."""
        is_empty = True
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_file():
                    is_empty = False
                    yield entry
        if is_empty:
            self._require_root()

    def _stage(self, key: str, data: bytes) -> Path:
        """A synced file on the file system of `key`, whose folder is there now."""
        staged = self._root / self._staged / secrets.token_hex(8)
        folders = (staged.parent, (self._root / key).parent)
        self._make(*folders)
        try:
            file = staged.open("xb")
        except FileNotFoundError:  # another writer has come to its end in between, and removed the empty folder
            self._make(*folders)
            file = staged.open("xb")
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return staged

    def _make(self, *folders: Path) -> None:
        """Makes folders where they are not there, so that a power loss leaves them there."""
        self._require_root()
        for folder in folders:
            if not folder.is_dir():
                oldest = next(above for above in (self._root, *self._root.parents) if above.is_dir())
                folder.mkdir(parents=True, exist_ok=True)
                for above in folder.parents:  # a new folder is an entry of the one above it
                    _sync_folder(above)
                    if above == oldest:
                        break
        self._seen = True

    def _require_root(self) -> None:
        """A run folder that was there and is gone is a lost mount: a new one in its place would start the run over."""
        if self._seen and not self._root.is_dir():
            raise StorageError(f"{self.url}: the run folder is gone; mount or restore it, then run again")

    @contextlib.contextmanager
    def _blamed(self, key: str, what: str, *, may_lack: bool = False) -> Iterator[None]:
        """Failures of the disk as `StorageError`; where the key `may_lack`, FileNotFoundError stays what it is."""
        try:
            yield
        except FileNotFoundError as error:
            self._require_root()
            if may_lack:
                raise
            raise self._failure(key, what, error.strerror or "not found") from None
        except OSError as error:
            raise self._failure(key, what, error.strerror or type(error).__name__) from None

    def _failure(self, key: str, what: str, reason: str) -> StorageError:
        return StorageError(
            f"{self.path(key)}: cannot be {what} ({reason}); check disk and permissions, then run again"
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
