"""Ingest: reads the source and fixes the partition of a run."""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import pyarrow as pa

from stillhouse.pipeline import flow
from stillhouse.pipeline.errors import StageError, StorageError
from stillhouse.pipeline.folder import Folder, keys, open_folder, partition, purged
from stillhouse.pipeline.folder.shard import ShardId
from stillhouse.pipeline.in_order import InOrder
from stillhouse.pipeline.run.commit import commit
from stillhouse.pipeline.run.result import ShardResult
from stillhouse.schemas.config import Config, config_hash

if TYPE_CHECKING:
    from stillhouse.stages.ingest import Ingest
    from stillhouse.stages.sources import Row
    from stillhouse.stages.sources.pieces import Piece


MIN_ROWS_APART = 20_000
"""A `source.limit` below this is read by one process: others would read past it before it is reached."""


def ingest(
    config: Config,
    num_prompt_tokens: Callable[[list[str]], Sequence[int | None]] | None = None,
    in_order: InOrder | None = None,
) -> Iterator[ShardResult]:
    """Reads the source from its start and commits its shards one after the other; shards that exist are checked against
    what the source says now. Ends by fixing the partition. `num_prompt_tokens` replaces the teacher's tokenizer. With
    `in_order` pieces of a large source are read and judged by others, and here rows get their ids: it is the same
    rows, in the same order.

    Raises `StageError` when a shard that exists differs, or there are more or fewer now:
    the source changed under a run.
    """
    from stillhouse.stages.ingest import Ingest
    from stillhouse.stages.sources import read_rows
    from stillhouse.stages.sources.rules import more_columns

    read: Ingest = _build(config) if num_prompt_tokens is None else Ingest(config, num_prompt_tokens)
    is_alone = in_order is None or num_prompt_tokens is not None
    pieces, num_readers = ([], 1) if is_alone else _pieces(config)
    if in_order is None or num_readers == 1:
        made = read(read_rows(config.source, more_columns=more_columns(config)))
    else:
        workers = config.resources.ingest.model_copy(update={"max_workers": num_readers})
        made = read.admit(_judged(config, pieces, read, functools.partial(in_order, workers=workers)))
    folder, digest = open_folder(config.run_dir), config_hash(config)
    number, num_rows = 0, 0
    started = time.monotonic()
    register = purged.read(folder)
    fixed = _fixed(folder)
    with contextlib.closing(made):  # and with it whoever reads for it
        for marked in map(register.mark, made):
            name = keys.shard_name(number)
            if number == fixed:
                raise _changed(folder, name)
            seconds = read.clock.read()
            result = commit(
                folder,
                ShardId("ingest", name, digest),
                keys.stage_shard("ingest", name, 0),
                marked,
                marked.num_rows,
                time.monotonic() - started,
                reproducible=True,
            )
            yield dataclasses.replace(result, filter_seconds=seconds)
            number, num_rows, started = number + 1, num_rows + marked.num_rows, time.monotonic()
    if not num_rows:
        raise StageError("ingest: the source has no rows; check source.path and source.limit")
    if number < max(partition.num_ingested(folder), fixed or 0):
        raise _changed(folder, keys.shard_name(number))
    partition.write(folder, number, num_rows)


def _fixed(folder: Folder) -> int | None:
    """How many shards the run has; None before an ingest has ended."""
    with contextlib.suppress(FileNotFoundError):
        return len(partition.read(folder))
    return None


def _changed(folder: Folder, name: str) -> StageError:
    return StageError(
        f"{folder.path(keys.stage_shard('ingest', name, 0))}: the source gives another number of shards now; it "
        "changed since this run began, so start a new run_dir (or restore the source)"
    )


def _build(config: Config) -> "Ingest":
    return cast("Ingest", flow.stage(config, "ingest").build(config))


def _pieces(config: Config) -> tuple[Iterable["Piece"], int]:
    """The pieces of a source, and by how many processes they are read: one, which needs none of them, unless there is
    work for the second that it takes others to start. Of a hub with a limit others would download too many files."""
    from stillhouse.stages.sources import pieces

    source, most = config.source, config.resources.ingest.max_workers
    is_drawn = source.sample is not None  # by the numbers of rows, which one reader alone knows
    is_short = source.limit is not None and (source.limit < MIN_ROWS_APART or source.dataset is not None)
    if most == 1 or is_drawn or is_short:
        return [], 1
    found, num_bytes = pieces.pieces_of(source), 0.0
    first: list[Piece] = []
    for piece in found:
        first.append(piece)
        num_bytes += math.inf if piece.num_bytes is None else piece.num_bytes
        if len(first) >= most and num_bytes >= 2 * pieces.PIECE_BYTES:
            break
    num_readers = min(len(first), most) if num_bytes >= 2 * pieces.PIECE_BYTES else 1
    return itertools.chain(first, found), num_readers


def _judged(
    config: Config, pieces: Iterable["Piece"], read: "Ingest", in_order: Callable[..., Generator["_Judged"]]
) -> Iterator[pa.Table]:
    """The judged rows of pieces, numbered one after the other, up to `source.limit`."""
    num_rows, limit = 0, config.source.limit
    with contextlib.closing(_judged_apart(config, pieces, read, in_order)) as judged:
        for table in judged:
            if limit is not None:
                table = table.slice(0, limit - num_rows)
            numbers = pa.array(range(num_rows, num_rows + len(table)), pa.int64())
            yield table.set_column(table.schema.get_field_index("source_row"), "source_row", numbers)
            num_rows += len(table)
            if num_rows == limit:
                return


def _judged_apart(
    config: Config, pieces: Iterable["Piece"], read: "Ingest", in_order: Callable[..., Generator["_Judged"]]
) -> Generator[pa.Table]:
    asked: deque[Piece] = deque()

    def arguments() -> Iterator[tuple[Config, "Piece"]]:
        for piece in pieces:
            asked.append(piece)
            yield config, piece

    with contextlib.closing(in_order(_judge, arguments(), attempts=config.resources.max_attempts)) as judged:
        for tables, seconds, is_whole in judged:
            piece = asked.popleft()
            read.clock.add(seconds)
            yield from tables
            if not is_whole:
                rows = itertools.islice(_rows(config, piece), sum(map(len, tables)), None)
                yield from read.judge(enumerate(rows))


MAX_JUDGED_BYTES = 256 << 20
"""What a reader holds of a piece. The rest of it is read by who gives rows their ids, row by row."""


class _Judged(NamedTuple):
    tables: list[pa.Table]
    filter_seconds: dict[str, float]
    is_whole: bool


_built: list[tuple[Config, "Ingest"]] = []  # the last one of this process, because a tokenizer takes a second to load


def _judge(config: Config, piece: "Piece") -> _Judged:
    """The rows of a piece, in a process that may have judged others."""
    if not _built or _built[0][0] != config:
        _built[:] = [(config, _build(config))]
    ingest, tables, num_bytes = _built[0][1], list[pa.Table](), 0
    for table in ingest.judge(enumerate(_rows(config, piece))):
        tables.append(table)
        num_bytes += table.nbytes
        if num_bytes > MAX_JUDGED_BYTES:
            return _Judged(tables, ingest.clock.read(), is_whole=False)
    return _Judged(tables, ingest.clock.read(), is_whole=True)


def _rows(config: Config, piece: "Piece") -> Iterator["Row"]:
    from stillhouse.stages.sources.conversation import Spelling
    from stillhouse.stages.sources.rules import more_columns

    return piece.rows(Spelling(config.source, more_columns=more_columns(config)))


def ingest_task(config: Config, in_order: InOrder | None) -> Iterator[ShardResult]:
    """`ingest` for a pool: a failing storage is a result."""
    try:
        yield from ingest(config, in_order=in_order)
    except StorageError as error:
        yield ShardResult("ingest", "", 0.0, "fatal", str(error))
