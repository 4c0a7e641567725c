"""A shard: a Parquet file that certifies itself, so that no second file has to be committed with it.

A shard that exists is complete: it is encoded in memory and put if absent. Its Parquet footer holds
    stillhouse          JSON (`ShardInfo`): which stage made it, of which shard, how many rows went in, which rows were
                        dropped and why; with a digest of its own, since it is also read without the rest of the file
    stillhouse.sha256   digest of the whole file, taken with 64 zeros in its place
`ledger/` is a view of the former for people.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder.certified import certified, parse_certified
from stillhouse.pipeline.folder.store import Folder
from stillhouse.schemas.tables import LEDGER, TEACHER

METADATA_KEY = b"stillhouse"
DIGEST_KEY = b"stillhouse.sha256"
ROW_GROUP_BYTES = 32 << 20
"""Uncompressed size that a row group aims at: large enough to compress, small enough to stream and shuffle."""

COMPRESSION_LEVEL = 3
"""Of zstd. At 1, PyArrow's default, byte-split float32 log-probabilities are 16 % larger than as float16; at 3 they are
as small, at the same speed."""

TURNS = "user_turns"
"""The column of prompts (`schemas.tables.PROMPTS`)."""
_FOOTER_BYTES = 64 << 10
_PART_BYTES = 8 << 20
_DIGEST_MARK = b"\x18\x11stillhouse.sha256\x18\x40"
"""Key and length of the digest as Thrift's compact protocol writes them in a footer; the digest comes right after."""
_NO_DIGEST = b"0" * 64


class ShardId(NamedTuple):
    """Which shard of which run a file must be."""

    stage: str
    shard: str
    config_hash: str

    def __str__(self) -> str:
        return f"{self.stage} {self.shard} of {self.config_hash[:12]}"


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
    teachers: dict[str, dict[str, int]] = field(default_factory=dict)
    """With several teachers the `rows` and `target_tokens` of each, by its name; else empty, and not written."""

    @property
    def id(self) -> ShardId:
        return ShardId(self.stage, self.shard, self.config_hash)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows dropped, by reason."""
        counts: dict[str, int] = {}
        for row in self.ledger:
            counts[row["reason"]] = counts.get(row["reason"], 0) + 1
        return dict(sorted(counts.items()))

    def to_json(self) -> bytes:
        facts = {name: value for name, value in self.__dict__.items() if name != "teachers" or value}
        return json.dumps(certified(facts), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ShardInfo":
        """Raises ValueError or TypeError when `data` is not what `to_json` gave."""
        return cls(**parse_certified(data))


@dataclass(frozen=True)
class Shard:
    """A shard in memory, its bytes verified."""

    table: pa.Table
    info: ShardInfo | None
    sha256: str


def encode(table: pa.Table, info: ShardInfo | None = None) -> bytes:
    """A table as the bytes of a Parquet file, certified: zstd, page checksums, and encodings that every reader knows
    (docs/compatibility.md has them).

    Floats are BYTE_STREAM_SPLIT: their high bytes resemble each other, their low ones do not. Integers in lists (ids,
    counts) and names have a dictionary. A table without rows has no row group: some readers fail on an empty one.
    """
    return encode_parts(table.schema, [table], info)


def encode_parts(schema: pa.Schema, tables: Iterable[pa.Table], info: ShardInfo | None = None) -> bytes:
    """`encode` of several tables of one schema, of which only one is in memory at a time."""
    schema = schema.remove_metadata()
    leaves = [leaf for field in schema for leaf in _leaves(field)]
    split = [path for path, kind in leaves if pa.types.is_float32(kind) or pa.types.is_float64(kind)]
    repeated = [path for path, kind in leaves if pa.types.is_integer(kind) and "." in path]
    sink = io.BytesIO()  # gives out its bytes without copying them
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=[*repeated, *(name for name in ("language", "source", TEACHER.name) if name in schema.names)],
        column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT") or None,
        write_page_checksum=True,
    ) as writer:
        for table in tables:
            if not table.num_rows:
                continue
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


def _leaves(column: pa.Field, path: str = "") -> list[tuple[str, pa.DataType]]:
    """Parquet's paths of what a column holds, of any depth, each with its type."""
    path, kind = f"{path}{column.name}", column.type
    while pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(field, f"{path}.")]
    return [(path, kind)]


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


def _without_checksum(where: str, num_bytes: int) -> DamagedError:
    return DamagedError(f"{where}: is damaged or not written by a run (no checksum in {num_bytes} bytes)")


def _of_other_checksum(where: str, num_bytes: int) -> DamagedError:
    return DamagedError(f"{where}: is damaged (its {num_bytes} bytes do not have the checksum they carry)")


def verify(data: bytes, where: str) -> str:
    """The digest that `data` carries and has. Raises `DamagedError`, with `where`, when it is not a whole shard."""
    place = _digest_place(data)
    if place is None:
        raise _without_checksum(where, len(data))
    view = memoryview(data)
    digest = hashlib.sha256(view[:place])
    digest.update(_NO_DIGEST)
    digest.update(view[place + 64 :])
    if digest.hexdigest().encode() != view[place : place + 64]:
        raise _of_other_checksum(where, len(data))
    return digest.hexdigest()


def decode(data: bytes, where: str, columns: Sequence[str] | None = None, expected: ShardId | None = None) -> Shard:
    """The shard that `data` is. It must be the one that is `expected`.

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
    if expected is not None and (info is None or info.id != expected):
        what = "an unnamed table" if info is None else str(info.id)
        raise DamagedError(f"{where}: holds {what}, not {expected}")
    return Shard(table, info, sha256)


def load(folder: Folder, key: str, columns: Sequence[str] | None = None, expected: ShardId | None = None) -> Shard:
    """`decode` of what is at `key`. Raises FileNotFoundError too."""
    return decode(folder.get(key), folder.path(key), columns, expected)


def read(folder: Folder, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's table. Raises `DamagedError` when it is not whole."""
    return load(folder, key, columns).table


def read_info(folder: Folder, key: str) -> ShardInfo:
    """What the shard at `key` says of itself, from its footer alone. Raises `DamagedError` when it says nothing."""
    return read_footer(folder, key)[0]


class Footer(NamedTuple):
    """What a shard says of itself."""

    info: ShardInfo
    sha256: str
    """The digest it carries."""
    num_turns: int
    """User turns of all rows, where it holds prompts; 0 elsewhere."""


def read_footer(folder: Folder, key: str, size: int | None = None) -> Footer:
    """A shard's footer, without reading its rows: what it says, not that it is whole.

    `size` of the file saves a request. Raises `DamagedError` when it is not a shard.
    """
    return _footer(folder, key, _end(folder, key, size))


def read_whole(folder: Folder, key: str, size: int) -> tuple[Footer, str]:
    """A shard's footer, and the digest of all of its `size` bytes, a part of which is in memory at a time. Raises
    `DamagedError` when it is not whole."""
    where, end = folder.path(key), _end(folder, key, size)
    place = _digest_place(end)
    if place is None:
        raise _without_checksum(where, size)
    carried, digest, of_file = end[place : place + 64], hashlib.sha256(), hashlib.sha256()
    place += size - len(end)
    for start in range(0, size, _PART_BYTES):
        part = bytearray(folder.part(key, start, min(start + _PART_BYTES, size)))
        of_file.update(part)
        first, last = max(place - start, 0), min(place + 64 - start, len(part))
        if first < last:
            part[first:last] = _NO_DIGEST[: last - first]
        digest.update(part)
    if digest.hexdigest().encode() != carried:
        raise _of_other_checksum(where, size)
    return _footer(folder, key, end), of_file.hexdigest()


def _end(folder: Folder, key: str, size: int | None) -> bytes:
    """The end of a Parquet file, with all of its footer."""
    data = folder.tail(key, _FOOTER_BYTES, size)
    footer_bytes = int.from_bytes(data[-8:-4], "little") + 8
    if len(data) < footer_bytes and len(data) == _FOOTER_BYTES:
        data = folder.tail(key, footer_bytes, size)
    return data


def _footer(folder: Folder, key: str, data: bytes) -> Footer:
    try:
        parquet = pq.read_metadata(pa.BufferReader(data))
        metadata = parquet.metadata or {}
        return Footer(
            ShardInfo.from_json(metadata[METADATA_KEY]), metadata[DIGEST_KEY].decode(), _num_values(parquet, TURNS)
        )
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedError(
            f"{folder.path(key)}: is damaged or not written by a run ({type(error).__name__} in its footer)"
        ) from None


def _num_values(parquet: pq.FileMetaData, column: str) -> int:
    """How many values the lists of a column hold (an empty one counts as one); 0 where there is no such column."""
    groups = [parquet.row_group(number) for number in range(parquet.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(chunk.num_values for chunk in chunks if chunk.path_in_schema.partition(".")[0] == column)


def ledger_table(infos: Iterable[ShardInfo]) -> pa.Table:
    """The ledger rows of shards as a table of `schemas.tables.LEDGER`."""
    rows = [{**row, "stage": info.stage} for info in infos for row in info.ledger]
    return pa.Table.from_pylist(rows, schema=LEDGER)


def num_target_tokens(table: pa.Table) -> int:
    """Supervised tokens of all rows; 0 of tables from before generate."""
    if "num_target_tokens" not in table.column_names:
        return 0
    return int(pc.sum(table.column("num_target_tokens")).as_py() or 0)


def of_teachers(table: pa.Table) -> dict[str, dict[str, int]]:
    """`ShardInfo.teachers` of a table."""
    if TEACHER.name not in table.column_names:
        return {}
    counts: dict[str, dict[str, int]] = {}
    for name in sorted(set(table.column(TEACHER.name).to_pylist())):
        rows = table.filter(pc.equal(table.column(TEACHER.name), name))
        counts[name] = {"rows": rows.num_rows, "target_tokens": num_target_tokens(rows)}
    return counts
