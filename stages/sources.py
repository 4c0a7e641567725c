"""Reads a source row by row: local files, folders, globs, object stores, hub data sets; Parquet, JSONL, JSON.

Not the meaning of a row (that is `stages.ingest`). Memory is bounded by one row (as JSON at most `MAX_ROW_BYTES`) or
one batch of a Parquet row group, never by a file. A row that cannot be read becomes a `Row` with an error, so that one
bad row costs one row; a source that cannot be read at all is a `SourceError`.
"""

import glob
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.object_store import insist, open_store, reason

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore.store import ObjectStore

    Reader = io.BufferedReader[Any]  # subscripted, which it cannot be at run time

# Why a row could not be read. `stages.ingest.REASONS` explains them beside its own.
INVALID_JSON = "invalid_json"
UNDECODABLE = "undecodable"
TRUNCATED_SOURCE = "truncated_source"
ROW_TOO_LARGE = "row_too_large"

MAX_ROW_BYTES = 32 << 20
"""A longer line or array element is no conversation; without a bound one missing newline costs the memory of a file."""
MAX_JSON_DEPTH = 100
"""Deeper nesting is refused by count: how deep Python's parser gets depends on the depth of its caller's stack."""

COLUMNS = frozenset(
    {
        *("conversation", "conversations", "messages"),
        *("conversation_id", "conversation_hash", "id", "prompt_id", "uuid"),
        *("language", "redacted", "openai_moderation"),
    }
)
"""The columns that any importer needs: no other is read from Parquet."""

_MESSAGE_FIELDS = frozenset({"role", "content", "from", "value", "toxic"})
_SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {"gzip": re.compile(rb"\x1f\x8b"), "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")}
_BATCH_BYTES = 4 << 20  # of a Parquet row group, uncompressed
_READ_BYTES = 1 << 20
_STORE_READ_BYTES = 8 << 20  # an object store answers a request in ~100 ms: 1 MiB each would read 10 MB/s
_STORE_TIMEOUT_S = 60.0  # of such a read, or a listing
_COMPRESSED_BYTES = 1 << 10  # small, because zstd may expand a chunk 30,000-fold
_BOM = b"\xef\xbb\xbf"
_GLOB = re.compile(r"[*?\[]")


class SourceError(ValueError):
    """A source that cannot be read as configured."""


class Row(NamedTuple):
    """One row of a source: its parsed value, or the reason why there is none."""

    value: object | None
    error: str | None = None


class _File(NamedTuple):
    """A file of a source, not yet opened."""

    name: str
    open: "Callable[[], Reader]"


class _BrokenStream(Exception):  # noqa: N818 - never leaves this module
    """Compressed bytes that end early or are damaged."""


def read_rows(config: SourceConfig) -> Iterator[Row]:
    """The rows of a source in a fixed order: the enumeration is `source_row`.

    A missing file, an empty match or an unknown suffix is a `SourceError` of this call; a file that turns out not to be
    what its name says is one when it is reached. A failing disk or network raises its own error.
    """
    files = list(_files(config))
    return (row for file in files for row in _read_file(file))


def count_rows(config: SourceConfig) -> int | None:
    """How many rows `read_rows` will give up to `source.limit`, where that can be known without reading them all: for
    Parquet that need not be downloaded first. None otherwise."""
    import pyarrow.parquet as pq

    if config.dataset is not None:
        return config.limit
    total = 0
    for file in _files(config):
        if not file.name.lower().endswith(".parquet"):
            return config.limit
        with file.open() as stream:
            total += pq.read_metadata(stream).num_rows
    return total if config.limit is None else min(total, config.limit)


def source_name(config: SourceConfig) -> str:
    """What goes into the `source` column: the configured name, the data set's id or the (first) path's last part."""
    if config.name is not None:
        return config.name
    if config.dataset is not None:
        return config.dataset
    path = _paths(config)[0]
    return path.rstrip("/").rpartition("/")[2] or path


# ---------------------------------------------------------------------------------------------------------------------
# Which files


def _paths(config: SourceConfig) -> list[str]:
    paths = [config.path] if isinstance(config.path, str) else config.path or []
    if not paths or not all(paths):
        raise SourceError("source.path: is empty; name a file, folder, glob or URL")
    return paths


def _files(config: SourceConfig) -> Iterator[_File]:
    if config.dataset is not None:
        yield from _hub_files(config.dataset, config.revision)
        return
    for path in _paths(config):
        yield from _store_files(path) if "://" in path else _local_files(path)


def _kind(name: str) -> tuple[str, str | None] | None:
    """Format and compression that a file name stands for; None for a name that stands for neither."""
    path = PurePosixPath(name.lower())
    compression = _COMPRESSIONS.get(path.suffix)
    kind = _SUFFIXES.get(path.with_suffix("").suffix if compression else path.suffix)
    return None if kind is None or (compression and kind == "parquet") else (kind, compression)


def _readable(name: str, root: str = "") -> bool:
    """Whether a file found in a folder is data: a known suffix, and no part of its path below the root is hidden."""
    parts = PurePosixPath(name).relative_to(root).parts if root else PurePosixPath(name).parts
    return _kind(name) is not None and not any(part.startswith((".", "_")) for part in parts)


def _known_suffixes() -> str:
    return f"{', '.join(_SUFFIXES)} (all but .parquet also with {', '.join(_COMPRESSIONS)})"


def _require(names: Sequence[str], where: str, num_seen: int) -> None:
    if not names:
        raise SourceError(f"{where}: matches no data file ({num_seen} of other kinds); wanted {_known_suffixes()}")


def _require_kind(name: str) -> None:
    if _kind(name) is None:
        raise SourceError(f"{name}: has no known suffix; rename it to one of {_known_suffixes()}")


def _local_files(path: str) -> Iterator[_File]:
    expanded = os.path.expanduser(path)
    if os.path.isfile(expanded):
        _require_kind(expanded)
        found = [expanded]
    elif os.path.isdir(expanded):
        found = _walk(expanded, path)
    elif _GLOB.search(expanded):
        matches = sorted(glob.glob(expanded, recursive=True))
        found = [match for match in matches if os.path.isfile(match) and _readable(os.path.basename(match))]
        _require(found, path, len(matches))
    else:
        raise SourceError(f"{path}: does not exist; check source.path")
    yield from (_File(name, partial(_open_local, name)) for name in found)


def _walk(folder: str, where: str) -> list[str]:
    found = [Path(parent, name).as_posix() for parent, _, names in os.walk(folder) for name in names]
    root = Path(folder).as_posix()
    readable = sorted(name for name in found if _readable(name, root))
    _require(readable, where, len(found))
    return readable


def _open_local(name: str) -> "Reader":
    try:
        return io.BufferedReader(io.FileIO(name), _READ_BYTES)
    except OSError as error:
        raise SourceError(f"{name}: cannot be opened ({error.strerror}); check its permissions") from None


def _store_files(url: str) -> Iterator[_File]:
    """Files of `scheme://bucket/key`, where the key is a file, a prefix, or a glob whose * stays within one segment."""
    from obstore.exceptions import BaseError
    from obstore.store import LocalStore

    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    store: ObjectStore
    if scheme == "file":
        root, key, store = "file://", unquote(rest), LocalStore("/")
    else:
        root = f"{scheme}://{bucket}"
        store = open_store(root, _STORE_TIMEOUT_S)
    key = key.strip("/")
    try:
        parts = key.split("/")
        if _GLOB.search(key):
            fixed = next(i for i, part in enumerate(parts) if _GLOB.search(part))
            listed = _list(store, "/".join(parts[:fixed]))
            found = [name for name in listed if _readable(PurePosixPath(name).name) and _matches(name, parts)]
            _require(found, url, len(listed))
        elif _kind(key) is not None and _is_object(store, key):
            found = [key]
        else:
            listed = _list(store, key)
            found = [name for name in listed if _readable(name, key)]
            if not listed and _is_object(store, key):
                _require_kind(url)
            _require(found, url, len(listed))
    except BaseError as error:
        raise SourceError(
            f"{url}: cannot be listed ({reason(error)}); check bucket, endpoint, region and credentials"
        ) from None
    yield from (_File(f"{root}/{name}", partial(open_object, store, name)) for name in found)


def open_object(store: "ObjectStore", name: str) -> "Reader":
    """An object as a seekable buffered file: what is read is fetched, in ranges. Raises FileNotFoundError."""
    import obstore

    reader = obstore.open_reader(store, name, buffer_size=_STORE_READ_BYTES)
    return io.BufferedReader(_StoreFile(reader, name), _READ_BYTES)


def _list(store: "ObjectStore", prefix: str) -> list[str]:
    import obstore

    def listed() -> list[str]:
        return sorted(meta["path"] for chunk in obstore.list(store, prefix=prefix or None) for meta in chunk)

    return insist(listed)


def _is_object(store: "ObjectStore", key: str) -> bool:
    import obstore

    try:
        insist(lambda: obstore.head(store, key))
    except FileNotFoundError:
        return False
    return True


def _matches(name: str, pattern: Sequence[str]) -> bool:
    parts = name.split("/")
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))


def _hub_files(dataset: str, revision: str | None) -> Iterator[_File]:
    """A data set's files at one commit: its Parquet files, or where it has none its JSONL, or else its JSON files.

    One kind only, because data sets often hold the same rows in two.
    """
    from huggingface_hub import HfApi

    where = f"{dataset}@{revision}"
    api = HfApi()
    try:
        # A branch may move between the listing and a download; a commit does not.
        commit = api.repo_info(dataset, repo_type="dataset", revision=revision).sha
        listed = sorted(api.list_repo_files(dataset, repo_type="dataset", revision=commit))
    except _hub_failures() as error:
        raise SourceError(
            f"{where}: cannot be listed ({type(error).__name__}); check the id, the revision, HF_TOKEN and the network"
        ) from None
    by_kind: dict[str, list[str]] = {}
    for name in filter(_readable, listed):
        by_kind.setdefault((_kind(name) or ("",))[0], []).append(name)
    found = by_kind.get("parquet") or by_kind.get("jsonl") or by_kind.get("json") or []
    _require(found, where, len(listed))
    yield from (_File(f"{where}/{name}", partial(_open_hub, dataset, commit, name)) for name in found)


def _open_hub(dataset: str, commit: str | None, name: str) -> "Reader":
    from huggingface_hub import hf_hub_download

    try:
        return _open_local(hf_hub_download(dataset, name, repo_type="dataset", revision=commit))
    except _hub_failures() as error:
        raise SourceError(
            f"{dataset}@{commit}/{name}: cannot be downloaded ({type(error).__name__}); "
            "check HF_TOKEN, the disk and the network"
        ) from None


def _hub_failures() -> tuple[type[Exception], ...]:
    # HTTPError from there, because which HTTP library the hub's client uses differs between its versions.
    from huggingface_hub.errors import HFValidationError, HTTPError

    return HFValidationError, HTTPError, OSError


# ---------------------------------------------------------------------------------------------------------------------
# Bytes


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
            # Not as it is: for Arrow, and so for `_raise_if_io`, an OSError without errno is a damaged page.
            raise SourceError(
                f"{self._name}: cannot be read ({reason(error)}); check endpoint and network, then run again"
            ) from None
        target[: len(data)] = data
        return len(data)


class _Decompressed(io.RawIOBase):
    """The plain bytes of a gzip or zstd stream, several members or frames in a row included.

    Raises `_BrokenStream` where it ends early or is damaged, after giving out all that came before (zstandard's own
    reader ends silently, gzip's buffered reader loses up to a buffer).
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
                    raise _BrokenStream
                return 0
            if self._frame is None:
                if self._num_frames:
                    chunk = chunk.lstrip(b"\0")  # tapes and some writers pad with zeros
                    if not chunk:
                        continue
                self._frame = self._start_frame()
                self._num_frames += 1
            try:
                self._output = memoryview(self._frame.decompress(chunk))
            except self._damage:
                raise _BrokenStream from None
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._output))
        target[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _read_file(file: _File) -> Iterator[Row]:
    kind, compression = _kind(file.name) or ("", None)
    with file.open() as stream:
        if kind == "parquet":
            yield from _read_parquet(file.name, stream)
            return
        plain: Reader = stream
        if compression:
            head = stream.peek(4)
            if head and not _MAGIC[compression].match(head):
                raise SourceError(f"{file.name}: is not a {compression} stream; check the file or rename it")
            plain = io.BufferedReader(_Decompressed(stream, compression), _READ_BYTES)
        try:
            is_array = kind == "json" and plain.peek(1).removeprefix(_BOM).lstrip().startswith(b"[")
            yield from _read_array(plain) if is_array else _read_lines(plain)
        except _BrokenStream:
            yield Row(None, TRUNCATED_SOURCE)


def _parse(raw: bytes) -> Row:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Row(None, UNDECODABLE)
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        return Row(None, INVALID_JSON)
    try:
        return Row(json.loads(text))
    except ValueError:  # also for integers of more digits than Python converts
        return Row(None, INVALID_JSON)


_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text nest."""
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        character = text[match.start()]
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _read_lines(stream: "Reader") -> Iterator[Row]:
    """One JSON value per line; blank lines are no rows."""
    is_first = True
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if is_first:
            line, is_first = line.removeprefix(_BOM), False
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_ROW_BYTES + 1)
            yield Row(None, ROW_TOO_LARGE)
        elif line.strip():
            yield _parse(line)


_OUTSIDE_STRING = re.compile(rb'[^"\[\]{},]*+')
_INSIDE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_QUOTE, _BACKSLASH, _COMMA, _CLOSE_LIST = b'"\\,]'


def _read_array(stream: "Reader") -> Iterator[Row]:
    """The elements of one JSON array, found by counting brackets and quotes, so that a bad element costs one row.

    An array that does not end gives a last row `truncated_source` for what is missing; anything after its end one row
    `invalid_json`.
    """
    element = bytearray()
    is_too_large = False
    depth = 0
    in_string = False
    carry = b""
    is_open = False  # past the array's [
    while data := stream.read1(_READ_BYTES):
        chunk = carry + data
        carry = b""
        at = start = 0
        if not is_open:
            at = start = chunk.index(b"[") + 1
            is_open = True
        while at < len(chunk):
            found = (_INSIDE_STRING if in_string else _OUTSIDE_STRING).match(chunk, at)
            at = found.end() if found else at
            if at == len(chunk):
                break
            byte = chunk[at]
            if in_string:
                if byte == _BACKSLASH:  # the last byte here: what it escapes is in the next chunk
                    carry = chunk[at:]
                    break
                in_string = False
            elif byte == _QUOTE:
                in_string = True
            elif byte in b"[{":
                depth += 1
            elif depth:
                depth -= byte in b"]}"
            elif byte in b",]":
                element += chunk[start:at]
                is_last = byte == _CLOSE_LIST
                if is_too_large or len(element) > MAX_ROW_BYTES:
                    yield Row(None, ROW_TOO_LARGE)
                elif not is_last or element.strip():  # an empty array, or a comma before its end, is not a row
                    yield _parse(bytes(element))
                if is_last:
                    if chunk[at + 1 :].strip() or any(rest.strip() for rest in iter(stream.read1, b"")):
                        yield Row(None, INVALID_JSON)
                    return
                element.clear()
                is_too_large = False
                start = at + 1
            at += 1
        element += chunk[start:at]
        if len(element) > MAX_ROW_BYTES:
            element.clear()
            is_too_large = True
    if not depth and not in_string and not is_too_large and element.rstrip().endswith((b"}", b"]")):
        yield _parse(bytes(element))
    yield Row(None, TRUNCATED_SOURCE)


def _read_parquet(name: str, stream: "Reader") -> Iterator[Row]:
    """The rows of a Parquet file as dicts of the `COLUMNS` that it has; rows of damaged pages are `undecodable`."""
    import pyarrow.parquet as pq

    try:
        # By default Arrow fetches whole row groups ahead, and without a buffer size whole column chunks.
        parquet = pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False)
        columns = _leaves(parquet)
        if not _counts_agree(parquet.metadata):
            raise ValueError
    except (pa.ArrowException, OSError, ValueError) as error:  # a name that is not UTF-8 is a ValueError
        _raise_if_io(error)
        raise SourceError(f"{name}: is not a readable Parquet file; its footer is damaged or missing") from None
    for group in range(parquet.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        row_bytes = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
        batch_size = min(1000, max(1, _BATCH_BYTES // row_bytes))
        num_read = 0
        try:
            for batch in parquet.iter_batches(batch_size, row_groups=[group], columns=columns, use_threads=False):
                rows = _batch_rows(batch.slice(0, metadata.num_rows - num_read))
                num_read += len(rows)
                yield from rows
        except (pa.ArrowException, OSError, ValueError) as error:
            _raise_if_io(error)
        # What a damaged page holds, Arrow does not always say by an error: it may just give fewer rows.
        yield from (Row(None, UNDECODABLE) for _ in range(metadata.num_rows - num_read))


def _counts_agree(metadata: Any) -> bool:
    """Whether a footer agrees with itself on how many rows there are: where it does not, rows would be lost without a
    word or made up by the million. (Not by its columns: PyArrow 26 ends the process on a damaged one.)"""
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return min(counts, default=0) >= 0 and sum(counts) == metadata.num_rows


def _raise_if_io(error: Exception) -> None:
    """Arrow reports damaged bytes as OSError too, but without an errno; and `_StoreFile` fails with a `SourceError`."""
    if isinstance(error, SourceError) or (isinstance(error, OSError) and error.errno is not None):
        raise error


def _leaves(parquet: Any) -> list[str]:
    """Paths of the leaf columns to read: of moderation entries the flag only, of messages who speaks and what."""
    leaves: dict[str, list[list[str]]] = {}
    for i in range(len(parquet.schema)):
        path = parquet.schema.column(i).path.split(".")
        if path[0] in COLUMNS:
            leaves.setdefault(path[0], []).append(path)
    chosen: list[str] = []
    for column, paths in leaves.items():
        wanted = {"flagged"} if column == "openai_moderation" else _MESSAGE_FIELDS
        needed = [path for path in paths if wanted.intersection(path[1:])]
        chosen += [".".join(path) for path in needed or paths]
    return chosen


def _batch_rows(batch: pa.RecordBatch) -> list[Row]:
    names = batch.schema.names
    if not names:
        return [Row({})] * batch.num_rows
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except (ValueError, OverflowError):  # a UnicodeDecodeError is one; some row is to blame, not the batch
        return [_batch_row(batch, i) for i in range(batch.num_rows)]
    return [Row(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _batch_row(batch: pa.RecordBatch, i: int) -> Row:
    try:
        return Row({name: column[i].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)})
    except (ValueError, OverflowError):
        return Row(None, UNDECODABLE)
