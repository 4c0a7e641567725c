"""Shards on disk: where they are, how they are read, and how one comes to exist.

A shard that exists is complete. It is encoded in memory, written beside its name, synced, and put under its name only
if nothing is there yet: by hard link on a file system, by a conditional put on an object store. Of two writers one
wins and the other discards its copy.

Every shard says in its Parquet metadata (key `stillhouse`) which stage made it, how many rows went in, and which rows
were dropped and why, so that a shard and its part of the ledger are one commit. `ledger/` is a view of that for people.
"""

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.sources import open_object

METADATA_KEY = b"stillhouse"
ROW_GROUP_BYTES = 32 << 20
"""Uncompressed size that a row group aims at: large enough to compress, small enough to stream and shuffle."""

SPLIT_COLUMNS = ("target_ids", "target_logprobs", "target_tail", "token_logprobs")
"""Stored as BYTE_STREAM_SPLIT: high bytes of neighbouring ids and floats resemble each other, low ones do not."""


class ShardError(RuntimeError):
    """A shard or run folder that cannot be used; the message names it and says what to do."""


class Store:
    """A folder, on a file system or an object store (`s3://`, `gs://`, `az://`), with put-if-absent.

    Keys are relative, with forward slashes. Object stores go through `obstore`; the file system is handled here,
    because power loss is only survived when file and folder are synced, which `obstore` leaves out.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._remote: Any = None
        if "://" in url and not url.startswith("file://"):
            from obstore.store import from_url

            self._remote = from_url(self.url, client_options={"allow_http": True})  # S3-compatible stores on loopback
        self._root = Path(url.removeprefix("file://"))

    def path(self, key: str) -> str:
        """Where `key` is, for people and for other readers."""
        return f"{self.url}/{key}"

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Whether `data` is now at `key`; False when something was there before, which is then left as it is."""
        if self._remote is not None:
            import obstore
            from obstore.exceptions import AlreadyExistsError

            try:
                obstore.put(self._remote, key, data, mode="create")
            except AlreadyExistsError:
                return False
            return True
        staged = self._stage(key, data)
        try:
            os.link(staged, self._root / key)
        except FileExistsError:
            return False
        finally:
            staged.unlink()
        _sync_folder(staged.parent)
        return True

    def put(self, key: str, data: bytes) -> None:
        """Replaces `key` at once: a reader sees the old or the new, never a part."""
        if self._remote is not None:
            import obstore

            obstore.put(self._remote, key, data)
            return
        staged = self._stage(key, data)
        staged.replace(self._root / key)
        _sync_folder(staged.parent)

    def get(self, key: str) -> bytes:
        """The bytes at `key`. Raises FileNotFoundError (obstore's is one)."""
        if self._remote is not None:
            import obstore

            return bytes(obstore.get(self._remote, key).bytes())
        return (self._root / key).read_bytes()

    def open(self, key: str) -> Any:
        """A seekable reader of `key`, for a part of it (a footer, a row group). Raises FileNotFoundError."""
        if self._remote is not None:
            return open_object(self._remote, key)
        return pa.OSFile(str(self._root / key))

    def get_or_none(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def list(self, folder: str) -> dict[str, int]:
        """Names directly in `folder` with their sizes in bytes, sorted; empty when there is no such folder."""
        if self._remote is not None:
            import obstore

            found = obstore.list_with_delimiter(self._remote, folder + "/")
            names = {item["path"].rpartition("/")[2]: item["size"] for item in found["objects"]}
        else:
            try:
                with os.scandir(self._root / folder) as entries:
                    names = {e.name: e.stat().st_size for e in entries if e.is_file() and not e.name.startswith(".")}
            except FileNotFoundError:
                names = {}
        return dict(sorted(names.items()))

    def delete(self, key: str) -> None:
        """Removes `key`; nothing happens when it is not there."""
        if self._remote is not None:
            import obstore

            obstore.delete(self._remote, key)
        else:
            (self._root / key).unlink(missing_ok=True)

    def _stage(self, key: str, data: bytes) -> Path:
        """A synced file beside `key`, under a name that no listing shows."""
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.parent / f".{target.name}.{secrets.token_hex(6)}"
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return staged


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class ShardInfo:
    """What a shard says of itself: no text, no time, so that the same work gives the same bytes."""

    stage: str
    shard: str
    config_hash: str
    rows_in: int
    rows_out: int
    num_target_tokens: int = 0
    ledger: list[dict[str, Any]] = field(default_factory=list)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows dropped, by reason."""
        counts: dict[str, int] = {}
        for row in self.ledger:
            counts[row["reason"]] = counts.get(row["reason"], 0) + 1
        return dict(sorted(counts.items()))


def shard_name(index: int) -> str:
    return f"{index:05d}.parquet"


def encode(table: pa.Table, info: ShardInfo | None = None) -> bytes:
    """A table as the bytes of a Parquet file: zstd, page checksums, `SPLIT_COLUMNS` byte-split."""
    if info is not None:
        metadata = {**(table.schema.metadata or {}), METADATA_KEY: json.dumps(info.__dict__, sort_keys=True).encode()}
        table = table.replace_schema_metadata(metadata)
    split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in SPLIT_COLUMNS if name in table.column_names}
    rows_per_group = max(1, ROW_GROUP_BYTES * table.num_rows // max(table.nbytes, 1))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_group,
        compression="zstd",
        use_dictionary=[name for name in ("language", "source") if name in table.column_names],
        column_encoding=split or None,
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def read(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's table, page checksums verified. Raises `ShardError` when it is not whole or not Parquet."""
    try:
        with store.open(key) as file:
            table = pq.read_table(
                file, columns=None if columns is None else list(columns), page_checksum_verification=True
            )
            return table.replace_schema_metadata(None)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ShardError(
            f"{store.path(key)}: is damaged or not a Parquet file ({type(error).__name__}); delete it and run again"
        ) from None


def read_info(store: Store, key: str) -> ShardInfo:
    """What the shard at `key` says of itself. Raises `ShardError` when it is not one of ours."""
    try:
        with store.open(key) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return ShardInfo(**json.loads(metadata[METADATA_KEY]))
    except (pa.ArrowInvalid, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ShardError(
            f"{store.path(key)}: is damaged or not written by a run ({type(error).__name__}); delete it and run again"
        ) from None


def ledger_table(infos: Iterable[ShardInfo]) -> pa.Table:
    """The ledger rows of shards as a table of `schemas.tables.LEDGER`."""
    from schemas import tables

    rows = [{**row, "stage": info.stage} for info in infos for row in info.ledger]
    return pa.Table.from_pylist(rows, schema=tables.LEDGER)
