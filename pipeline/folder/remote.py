"""A folder on an object store (`s3://`, `gs://`, `az://`), by conditional puts."""

import contextlib
from collections.abc import Iterator
from typing import Any

from stillhouse.pipeline.errors import StorageError
from stillhouse.pipeline.folder.store import Entry
from stillhouse.stages.sources import object_store
from stillhouse.stages.sources.object_store import open_store, with_retries


class RemoteFolder:
    """`Folder` at an object store's URL. `stages.sources.object_store` opens the store and repeats requests."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._store: Any = open_store(self.url, object_store.SHARD_TIMEOUT_S)

    def __reduce__(self) -> Any:
        return RemoteFolder, (self.url,)  # connections do not go to other processes

    def path(self, key: str) -> str:
        return f"{self.url}/{key}"

    def put_if_absent(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._blamed(key, "written"):
            try:
                # Done twice after an answer that was lost, it finds its own: then, as after a race, it is there.
                with_retries(lambda: obstore.put(self._store, key, data, mode="create"))
            except AlreadyExistsError:
                return False
            return True

    def put(self, key: str, data: bytes) -> None:
        import obstore

        with self._blamed(key, "written"):
            with_retries(lambda: obstore.put(self._store, key, data))

    def get(self, key: str) -> bytes:
        import obstore

        with self._blamed(key, "read", may_lack=True):  # obstore's NotFoundError is a FileNotFoundError
            return with_retries(lambda: bytes(obstore.get(self._store, key).bytes()))

    def get_or_none(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def tail(self, key: str, num_bytes: int, size: int | None = None) -> bytes:
        import obstore

        with self._blamed(key, "read", may_lack=True):
            end = with_retries(lambda: obstore.head(self._store, key))["size"] if size is None else size
            start = max(0, end - num_bytes)
            if not end:
                return b""
            return with_retries(lambda: bytes(obstore.get_range(self._store, key, start=start, end=end)))

    def part(self, key: str, start: int, end: int) -> bytes:
        import obstore

        if end <= start:
            return b""
        with self._blamed(key, "read", may_lack=True):
            return with_retries(lambda: bytes(obstore.get_range(self._store, key, start=start, end=end)))

    def exists(self, key: str) -> bool:
        import obstore

        try:
            with self._blamed(key, "read", may_lack=True):
                with_retries(lambda: obstore.head(self._store, key))
        except FileNotFoundError:
            return False
        return True

    def entries(self, folder: str) -> dict[str, Entry]:
        import obstore

        with self._blamed(folder, "listed"):
            listed = with_retries(lambda: obstore.list_with_delimiter(self._store, f"{folder}/" if folder else None))
        found = {
            item["path"].rpartition("/")[2]: Entry(
                item["size"],
                f"{item['size']}-{item['e_tag']}-{item['last_modified'].isoformat()}",
                item["last_modified"].timestamp(),
            )
            for item in listed["objects"]
        }
        return dict(sorted(found.items()))

    def names(self, folder: str) -> set[str]:
        return set(self.entries(folder))

    def list(self, folder: str) -> dict[str, int]:
        return {name: entry.size for name, entry in self.entries(folder).items()}

    def walk(self, folder: str) -> tuple[str, ...]:
        import obstore

        def listed() -> tuple[str, ...]:
            pages = obstore.list(self._store, f"{folder}/")
            return tuple(sorted(item["path"] for page in pages for item in page))

        with self._blamed(folder, "listed"):
            return with_retries(listed)

    def delete(self, key: str) -> None:
        import obstore

        with self._blamed(key, "deleted"), contextlib.suppress(FileNotFoundError):
            with_retries(lambda: obstore.delete(self._store, key))

    def sweep(self) -> int:
        """Nothing to delete: an object store shows a put when it is complete, or not at all."""
        return 0

    def remove_staged(self) -> None:
        """Nothing to remove."""

    def require_conditional_puts(self, key: str) -> None:
        """Some object stores overlook the condition, and of two drivers the later would then replace what the earlier
        has built upon."""
        if self.put_if_absent(key, self.get(key)):
            raise StorageError(
                f"{self.url}: this object store overlooks the condition of a put (If-None-Match), so that files could "
                "be written twice; use a store that knows it, or a file system"
            )

    @contextlib.contextmanager
    def _blamed(self, key: str, what: str, *, may_lack: bool = False) -> Iterator[None]:
        """Failures of the store as `StorageError`; where the key `may_lack`, FileNotFoundError stays what it is."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            if may_lack:
                raise
            raise self._failure(key, what, "no such bucket") from None
        except (BaseError, OSError) as error:
            raise self._failure(key, what, object_store.reason(error)) from None

    def _failure(self, key: str, what: str, reason: str) -> StorageError:
        return StorageError(
            f"{self.path(key)}: cannot be {what} ({reason}); check bucket, endpoint, region and credentials, then run "
            "again"
        )
