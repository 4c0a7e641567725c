"""Shards on disk: where they are, how they are read, and how one comes to exist.

A shard that exists is complete. It is encoded in memory, written under another name, synced, and put under its own only
if nothing is there yet: by hard link on a file system, by a conditional put on an object store. Of two writers one
wins and the other discards its copy.

A shard certifies itself, so that no second file has to be committed with it. Its Parquet footer holds
    stillhouse          JSON (`ShardInfo`): which stage made it, of which shard, how many rows went in, which rows were
                        dropped and why; with a digest of its own, since it is also read without the rest of the file
    stillhouse.sha256   digest of the whole file, taken with 64 zeros in its place
`ledger/` is a view of the former for people.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.stages import object_store
from stillhouse.stages.object_store import insist, open_store

METADATA_KEY = b"stillhouse"
DIGEST_KEY = b"stillhouse.sha256"
ROW_GROUP_BYTES = 32 << 20
"""Uncompressed size that a row group aims at: large enough to compress, small enough to stream and shuffle."""

SPLIT_COLUMNS = (
    *("target_ids", "target_logprobs", "target_gaps", "target_lengths", "target_tail"),
    *("draw_ids", "draw_counts", "draw_lengths", "token_logprobs"),
    *("target_token_ids", "token_ids", "top_values", "teacher_ids", "teacher_logprobs", "target_tokens", "weights"),
)
"""Stored as BYTE_STREAM_SPLIT: high bytes of neighbouring ids and floats resemble each other, low ones do not."""

STAGED = "state/staged"
"""Where files are written before they get their names: not beside those, because a killed writer leaves its file, and
`dataset/` is what people copy and upload."""
STALE_AFTER_S = 3600.0
"""A staged file this old belongs to a process that was killed: no write takes so long."""

_FOOTER_BYTES = 64 << 10
_DIGEST_MARK = b"\x18\x11stillhouse.sha256\x18\x40"
"""Key and length of the digest as Thrift's compact protocol writes them in a footer; the digest comes right after."""
_NO_DIGEST = b"0" * 64


class ShardError(RuntimeError):
    """A shard or run folder that cannot be used; the message names it and says what to do."""


class DamagedError(ShardError):
    """A file that is not, byte for byte, what a run wrote under its name."""


class StorageError(RuntimeError):
    """A disk or an object store that does not do its part; no shard is to blame."""


@dataclass(frozen=True)
class Entry:
    """One file of a listing. `version` changes whenever the file is written again."""

    size: int
    version: str


class Store:
    """A folder, on a file system or an object store (`s3://`, `gs://`, `az://`), with put-if-absent.

    Keys are relative, with forward slashes. Object stores go through `stages.object_store`; the file system is handled
    here, because power loss is only survived when file and folder are synced, which `obstore` leaves out. All methods
    raise `StorageError` when the storage fails.
    """

    def __init__(self, url: str, staged: str = STAGED) -> None:
        self.url = url.rstrip("/")
        self._staged = staged
        self._remote: Any = None
        self._root = Path(url.removeprefix("file://"))
        self._seen = False
        if "://" in url and not url.startswith("file://"):
            self._remote = open_store(self.url, object_store.SHARD_TIMEOUT_S)
        else:
            self._seen = self._root.is_dir()

    def __reduce__(self) -> Any:
        return Store, (self.url, self._staged)  # connections do not go to other processes

    def path(self, key: str) -> str:
        """Where `key` is, for people and for other readers."""
        return f"{self.url}/{key}"

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Whether `data` is now at `key`; False when something was there before, which is then left as it is."""
        with self._blamed(key, "written"):
            if self._remote is not None:
                import obstore
                from obstore.exceptions import AlreadyExistsError

                try:
                    # Done twice after an answer that was lost, it finds its own: then, as after a race, it is there.
                    insist(lambda: obstore.put(self._remote, key, data, mode="create"))
                except AlreadyExistsError:
                    return False
                return True
            staged = self._stage(key, data)
            try:
                os.link(staged, self._root / key)
            except FileExistsError:
                return False
            finally:
                staged.unlink(missing_ok=True)
            _sync_folder((self._root / key).parent)
            return True

    def require_conditional_puts(self, key: str) -> None:
        """Raises `StorageError` when `key`, which is there, can be put as if it were not: some object stores overlook
        the condition, and of two drivers the later would then replace what the earlier has built upon."""
        if self._remote is not None and self.put_if_absent(key, self.get(key)):
            raise StorageError(
                f"{self.url}: this object store overlooks the condition of a put (If-None-Match), so that files could "
                "be written twice; use a store that knows it, or a file system"
            )

    def put(self, key: str, data: bytes) -> None:
        """Replaces `key` at once: a reader sees the old or the new, never a part."""
        with self._blamed(key, "written"):
            if self._remote is not None:
                import obstore

                insist(lambda: obstore.put(self._remote, key, data))
                return
            staged = self._stage(key, data)
            try:
                staged.replace(self._root / key)
            finally:
                staged.unlink(missing_ok=True)
            _sync_folder((self._root / key).parent)

    def get(self, key: str) -> bytes:
        """The bytes at `key`. Raises FileNotFoundError (obstore's is one)."""
        with self._blamed(key, "read", may_lack=True):
            if self._remote is not None:
                import obstore

                return insist(lambda: bytes(obstore.get(self._remote, key).bytes()))
            return (self._root / key).read_bytes()

    def tail(self, key: str, num_bytes: int, size: int | None = None) -> bytes:
        """The last `num_bytes` at `key`, or all of it. `size` saves a request. Raises FileNotFoundError."""
        with self._blamed(key, "read", may_lack=True):
            if self._remote is not None:
                import obstore

                end = insist(lambda: obstore.head(self._remote, key))["size"] if size is None else size
                start = max(0, end - num_bytes)
                return insist(lambda: bytes(obstore.get_range(self._remote, key, start=start, end=end))) if end else b""
            with (self._root / key).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
                return file.read()

    def get_or_none(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        try:
            with self._blamed(key, "read", may_lack=True):
                if self._remote is not None:
                    import obstore

                    insist(lambda: obstore.head(self._remote, key))
                else:
                    (self._root / key).stat()
        except FileNotFoundError:
            return False
        return True

    def entries(self, folder: str) -> dict[str, Entry]:
        """What is directly in `folder`, by name, sorted; empty when there is no such folder."""
        with self._blamed(folder, "listed"):
            if self._remote is not None:
                import obstore

                found = insist(lambda: obstore.list_with_delimiter(self._remote, folder + "/"))
                names = {
                    item["path"].rpartition("/")[2]: Entry(
                        item["size"], f"{item['size']}-{item['e_tag']}-{item['last_modified'].isoformat()}"
                    )
                    for item in found["objects"]
                }
            else:
                names = {}
                with contextlib.suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
                    for entry in entries:
                        if not entry.name.startswith(".") and entry.is_file():
                            stat = entry.stat()
                            names[entry.name] = Entry(
                                stat.st_size, f"{stat.st_size}-{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"
                            )
                if not names:
                    self._require_root()
        return dict(sorted(names.items()))

    def names(self, folder: str) -> set[str]:
        """The names directly in `folder`: on a file system much faster than with their sizes."""
        if self._remote is not None:
            return set(self.entries(folder))
        with self._blamed(folder, "listed"):
            names: set[str] = set()
            with contextlib.suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
                names = {entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()}
            if not names:
                self._require_root()
        return names

    def list(self, folder: str) -> dict[str, int]:
        """Names directly in `folder` with their sizes in bytes, sorted; empty when there is no such folder."""
        return {name: entry.size for name, entry in self.entries(folder).items()}

    def delete(self, key: str) -> None:
        """Removes `key`; nothing happens when it is not there."""
        with self._blamed(key, "deleted"):
            if self._remote is not None:
                import obstore

                with contextlib.suppress(FileNotFoundError):
                    insist(lambda: obstore.delete(self._remote, key))
            else:
                (self._root / key).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Deletes what killed writers left: staged files older than `STALE_AFTER_S`. Returns how many."""
        if self._remote is not None:
            return 0  # an object store shows a put when it is complete, or not at all
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
        """Removes the folder of staged files where it is empty."""
        with contextlib.suppress(OSError):
            if self._remote is None:
                (self._root / self._staged).rmdir()

    def _stage(self, key: str, data: bytes) -> Path:
        """A synced file on the file system of `key`, whose folder is there now."""
        self._require_root()
        staged = self._root / self._staged / secrets.token_hex(8)
        for folder in (staged.parent, (self._root / key).parent):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                for above in folder.parents:  # a new folder is an entry of the one above it
                    _sync_folder(above)
                    if above in (self._root, above.parent):
                        break
        self._seen = True
        try:
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return staged

    def _require_root(self) -> None:
        """A run folder that was there and is gone is a lost mount: a new one in its place would start the run over."""
        if self._seen and not self._root.is_dir():
            raise StorageError(f"{self.url}: the run folder is gone; mount or restore it, then run again")

    @contextlib.contextmanager
    def _blamed(self, key: str, what: str, *, may_lack: bool = False) -> Iterator[None]:
        """Failures of the storage as `StorageError`; where the key `may_lack`, FileNotFoundError stays what it is."""
        if self._remote is None:
            try:
                yield
            except FileNotFoundError as error:
                self._require_root()
                if may_lack:
                    raise
                raise self._failure(key, what, error.strerror or "not found") from None
            except OSError as error:
                raise self._failure(key, what, error.strerror or type(error).__name__) from None
            return
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
        check = "bucket, endpoint, region and credentials" if self._remote is not None else "disk and permissions"
        return StorageError(f"{self.path(key)}: cannot be {what} ({reason}); check {check}, then run again")


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
    source_sha256: str = ""
    """Digest (`stillhouse.sha256`) of the shard it was made from."""
    fidelity: dict[str, Any] = field(default_factory=dict)
    """Of a published shard: `stages.fidelity.statistics`."""

    @property
    def dropped(self) -> dict[str, int]:
        """Rows dropped, by reason."""
        counts: dict[str, int] = {}
        for row in self.ledger:
            counts[row["reason"]] = counts.get(row["reason"], 0) + 1
        return dict(sorted(counts.items()))

    def to_json(self) -> bytes:
        return json.dumps(certified(dict(self.__dict__)), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ShardInfo":
        """Raises ValueError or TypeError when `data` is not what `to_json` gave."""
        return cls(**parse_certified(data))


def certified(facts: dict[str, Any]) -> dict[str, Any]:
    """`facts`, which JSON can hold, and as `sha256` the digest of the rest (as JSON with sorted keys)."""
    return {**facts, "sha256": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def encode_certified(facts: dict[str, Any], indent: int | None = None) -> bytes:
    """`facts` as `certified` JSON, which `parse_certified` reads."""
    as_read = json.loads(json.dumps(facts))  # tuples become lists: the digest is of what a reader finds
    return json.dumps(certified(as_read), indent=indent).encode()


def parse_certified(data: bytes) -> dict[str, Any]:
    """The facts of a `certified` JSON object. Raises ValueError when `data` is anything else."""
    facts = parse_object(data)
    digest = facts.pop("sha256", None)
    if certified(facts)["sha256"] != digest:
        raise ValueError("is not what its sha256 says")
    return facts


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object of a state file. Raises ValueError when `data` is anything else."""
    try:
        facts = json.loads(data)
    except RecursionError:
        raise ValueError("is nested beyond reason") from None
    if not isinstance(facts, dict):
        raise ValueError("is no object")
    return facts


@dataclass(frozen=True)
class Shard:
    """A shard in memory, its bytes verified."""

    table: pa.Table
    info: ShardInfo | None
    sha256: str


def shard_name(index: int) -> str:
    return f"{index:05d}.parquet"


def encode(table: pa.Table, info: ShardInfo | None = None) -> bytes:
    """A table as the bytes of a Parquet file: zstd, page checksums, `SPLIT_COLUMNS` byte-split, certified."""
    return encode_parts(table.schema, [table], info)


def encode_parts(schema: pa.Schema, tables: Iterable[pa.Table], info: ShardInfo | None = None) -> bytes:
    """`encode` of several tables of one schema, of which only one is in memory at a time."""
    schema = schema.remove_metadata()
    split = {_leaf(schema.field(name)): "BYTE_STREAM_SPLIT" for name in SPLIT_COLUMNS if name in schema.names}
    sink = io.BytesIO()  # gives out its bytes without copying them
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=[name for name in ("language", "source") if name in schema.names],
        column_encoding=split or None,
        write_page_checksum=True,
    ) as writer:
        for table in tables:
            rows_per_group = max(1, ROW_GROUP_BYTES * table.num_rows // max(table.nbytes, 1))
            writer.write_table(table.replace_schema_metadata(None), row_group_size=rows_per_group)
        # In the footer and not in the Arrow schema, which would hold a second copy, in base64.
        if info is not None:
            writer.add_key_value_metadata({METADATA_KEY: info.to_json()})
        writer.add_key_value_metadata({DIGEST_KEY: _NO_DIGEST})
    with sink.getbuffer() as buffer:
        place = _digest_place(buffer)
        assert place is not None
        buffer[place : place + 64] = hashlib.sha256(buffer).hexdigest().encode()
    return sink.getvalue()


def _leaf(column: pa.Field) -> str:
    """Parquet's path of the values of a column of lists, of any depth."""
    path, kind = str(column.name), column.type
    while pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path


def _digest_place(data: bytes | memoryview) -> int | None:
    """Where in a Parquet file its digest is; None when it has none, or no footer."""
    if len(data) < 12 or data[-4:] != b"PAR1":
        return None
    footer_bytes = int.from_bytes(data[-8:-4], "little") + 8
    footer = bytes(data[-footer_bytes:])
    found = footer.rfind(_DIGEST_MARK)  # the last one: what comes before it in a footer may hold anybody's text
    if footer_bytes > len(data) or found < 0 or found + len(_DIGEST_MARK) + 64 > len(footer):
        return None
    return len(data) - footer_bytes + found + len(_DIGEST_MARK)


def verify(data: bytes, where: str) -> str:
    """The digest that `data` carries and has. Raises `DamagedError`, with `where`, when it is not a whole shard."""
    place = _digest_place(data)
    if place is None:
        raise DamagedError(f"{where}: is damaged or not written by a run (no checksum in {len(data)} bytes)")
    view = memoryview(data)
    digest = hashlib.sha256(view[:place])
    digest.update(_NO_DIGEST)
    digest.update(view[place + 64 :])
    if digest.hexdigest().encode() != view[place : place + 64]:
        raise DamagedError(f"{where}: is damaged (its {len(data)} bytes do not have the checksum they carry)")
    return digest.hexdigest()


def decode(
    data: bytes, where: str, columns: Sequence[str] | None = None, expected: tuple[str, str, str] | None = None
) -> Shard:
    """The shard that `data` is. `expected` is the stage, shard and configuration hash that it must be of.

    Raises `DamagedError` when it is not whole or not the one expected.
    """
    sha256 = verify(data, where)
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            metadata = file.metadata.metadata or {}
            info = ShardInfo.from_json(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
            table = file.read(columns=None if columns is None else list(columns)).replace_schema_metadata(None)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{where}: is damaged or of another version ({type(error).__name__})") from None
    if expected is not None and (info is None or (info.stage, info.shard, info.config_hash) != expected):
        what = "an unnamed table" if info is None else f"{info.stage} {info.shard} of {info.config_hash[:12]}"
        raise DamagedError(f"{where}: holds {what}, not {expected[0]} {expected[1]} of {expected[2][:12]}")
    return Shard(table, info, sha256)


def load(
    store: Store, key: str, columns: Sequence[str] | None = None, expected: tuple[str, str, str] | None = None
) -> Shard:
    """`decode` of what is at `key`. Raises FileNotFoundError too."""
    return decode(store.get(key), store.path(key), columns, expected)


def read(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's table. Raises `DamagedError` when it is not whole."""
    return load(store, key, columns).table


def read_info(store: Store, key: str) -> ShardInfo:
    """What the shard at `key` says of itself, from its footer alone. Raises `DamagedError` when it says nothing."""
    return read_footer(store, key)[0]


def read_footer(store: Store, key: str, size: int | None = None) -> tuple[ShardInfo, str]:
    """A shard's info and the digest it carries, without reading its rows: what it says, not that it is whole.

    `size` of the file saves a request. Raises `DamagedError` when it is not a shard.
    """
    data = store.tail(key, _FOOTER_BYTES, size)
    footer_bytes = int.from_bytes(data[-8:-4], "little") + 8
    if len(data) < footer_bytes and len(data) == _FOOTER_BYTES:
        data = store.tail(key, footer_bytes, size)
    try:
        metadata = pq.read_metadata(pa.BufferReader(data)).metadata or {}
        return ShardInfo.from_json(metadata[METADATA_KEY]), metadata[DIGEST_KEY].decode()
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedError(
            f"{store.path(key)}: is damaged or not written by a run ({type(error).__name__} in its footer)"
        ) from None


def ledger_table(infos: Iterable[ShardInfo]) -> pa.Table:
    """The ledger rows of shards as a table of `schemas.tables.LEDGER`."""
    from stillhouse.schemas import tables

    rows = [{**row, "stage": info.stage} for info in infos for row in info.ledger]
    return pa.Table.from_pylist(rows, schema=tables.LEDGER)
