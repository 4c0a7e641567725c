"""What a folder can do, wherever it is. Of two writers of a name one wins: that is all that a run builds on."""

from dataclasses import dataclass
from typing import Protocol

from stillhouse.pipeline.folder import keys
from stillhouse.schemas.config import ConfigError, checked_location


@dataclass(frozen=True)
class Entry:
    """One file of a listing. `version` changes whenever the file is written again, which was at `modified`, in seconds
    since 1970 by the storage's clock."""

    size: int
    version: str
    modified: float


class Folder(Protocol):
    """A folder with put-if-absent. Keys are relative, with forward slashes.

    All methods raise `StorageError` when the storage fails.
    """

    url: str

    def path(self, key: str) -> str:
        """Where `key` is, for people and for other readers."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Whether `data` is now at `key`; False when something was there before, which is then left as it is."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Replaces `key` at once: a reader sees the old or the new, never a part."""
        ...

    def get(self, key: str) -> bytes:
        """The bytes at `key`. Raises FileNotFoundError."""
        ...

    def get_or_none(self, key: str) -> bytes | None:
        """The bytes at `key`, or None where there is nothing."""
        ...

    def tail(self, key: str, num_bytes: int, size: int | None = None) -> bytes:
        """The last `num_bytes` at `key`, or all of it. `size` saves a request. Raises FileNotFoundError."""
        ...

    def part(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` at `key`, fewer where it ends before. Raises FileNotFoundError."""
        ...

    def exists(self, key: str) -> bool: ...

    def entries(self, folder: str) -> dict[str, Entry]:
        """What is directly in `folder`, by name, sorted; empty when there is no such folder."""
        ...

    def names(self, folder: str) -> set[str]:
        """The names directly in `folder`: on a file system much faster than with their sizes."""
        ...

    def list(self, folder: str) -> dict[str, int]:
        """Names directly in `folder` with their sizes in bytes, sorted; empty when there is no such folder."""
        ...

    def walk(self, folder: str) -> tuple[str, ...]:
        """The keys of all files in `folder` and in folders in it, hidden ones too, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Removes `key`; nothing happens when it is not there."""
        ...

    def sweep(self) -> int:
        """Deletes what killed writers left. Returns how many files."""
        ...

    def remove_staged(self) -> None:
        """Removes the folder of staged files where it is empty."""
        ...

    def require_conditional_puts(self, key: str) -> None:
        """Raises `StorageError` when `key`, which is there, can be put as if it were not."""
        ...


def open_folder(url: str, staged: str = keys.STAGED) -> Folder:
    """The folder at a path, `file://…`, or an object-store URL. `staged` is where a file system keeps files that are
    being written. Raises `ConfigError` for a URL of another kind."""
    if "://" in url and not url.startswith("file://"):
        from stillhouse.pipeline.folder.remote import RemoteFolder

        return RemoteFolder(url)
    from stillhouse.pipeline.folder.local import LocalFolder

    try:
        return LocalFolder(checked_location(url), staged)
    except ValueError as error:
        raise ConfigError(str(error)) from None
