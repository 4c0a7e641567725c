"""What finished shards say of themselves, gathered in one file per stage (`state/index/<stage>.json`), so that going on
with ten thousand shards opens six files.

Only a cache: an entry counts while the listing shows the version of the shard that it was made from, and everything in
it can be read again from the shards.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stillhouse.pipeline.errors import DamagedError, RedoError
from stillhouse.pipeline.folder import keys, shard
from stillhouse.pipeline.folder.certified import parse_object
from stillhouse.pipeline.folder.quarantine import quarantine
from stillhouse.pipeline.folder.shard import ShardId, ShardInfo
from stillhouse.pipeline.folder.store import Entry, Folder
from stillhouse.schemas.config import Config, config_hash

NUM_READERS = 32
"""Footers read at once: an object store answers each in tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """One shard. `sha256` is the digest it carries; `file_sha256`, of published files only, that of all its bytes."""

    version: str
    num_bytes: int
    rows_in: int
    rows_out: int
    num_target_tokens: int
    dropped: dict[str, int]
    sha256: str
    source_sha256: str
    file_sha256: str = ""
    num_turns: int = 0
    """User turns of all rows, where the shard holds prompts."""
    fidelity: dict[str, Any] = field(default_factory=dict)
    teachers: dict[str, dict[str, int]] = field(default_factory=dict)
    """`ShardInfo.teachers`."""


def read(config: Config, folder: Folder, stage: str, names: list[str]) -> dict[str, ShardSummary]:
    """Summaries of the shards of `stage` that exist, out of `names`, by name. Raises `RedoError` when some are damaged:
    they are put into quarantine."""
    summaries, damaged = scan(config, folder, stage, names, save=True)
    if damaged:
        digest, messages, paths = config_hash(config), [], []
        for name, message in damaged:
            paths.append(keys.stage_shard(stage, name, len(names)))
            messages.append(f"{message}; {quarantine(folder, paths[-1], ShardId(stage, name, digest))}")
        raise RedoError("; ".join(messages), paths)
    return summaries


def scan(
    config: Config, folder: Folder, stage: str, names: list[str], *, save: bool
) -> tuple[dict[str, ShardSummary], list[tuple[str, str]]]:
    """As `read`, but only names what is damaged: pairs of shard and message.

    Footers are checked; rows are when the next stage reads them. With `save` published files are checked as a whole,
    and what was read is kept for next time.
    """
    known = load(folder, stage)
    paths = {name: keys.stage_shard(stage, name, len(names)) for name in names}
    digest = config_hash(config)
    entries = folder.entries(keys.stage_folder(stage))
    present = {name: entries[file] for name in names if (file := keys.name(paths[name])) in entries}
    summaries = {
        name: known[name] for name, entry in present.items() if name in known and known[name].version == entry.version
    }
    damaged = []
    unknown = [name for name in present if name not in summaries]

    def look(name: str) -> ShardSummary | str | None:
        return _look(folder, paths[name], ShardId(stage, name, digest), present[name], whole=save)

    with ThreadPoolExecutor(NUM_READERS) as pool:
        for name, seen in zip(unknown, pool.map(look, unknown), strict=True):
            if isinstance(seen, ShardSummary):
                summaries[name] = seen
            elif seen is not None:
                damaged.append((name, seen))
    if save and unknown:
        write(folder, stage, summaries)
    return summaries, damaged


def _look(folder: Folder, key: str, expected: ShardId, entry: Entry, *, whole: bool) -> ShardSummary | str | None:
    """A shard's summary, or what is wrong with it; None when it has gone since the listing. `whole`: a published file
    is read to its end."""
    file_sha256 = ""
    try:
        if whole and expected.stage == keys.PUBLISH:
            footer, file_sha256 = shard.read_whole(folder, key, entry.size)
        else:
            footer = shard.read_footer(folder, key, entry.size)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        return str(error)
    if footer.info.id != expected:
        return f"{folder.path(key)}: holds {footer.info.id}"
    return _summary(*footer, entry, file_sha256)


def glance(folder: Folder, stage: str, files: Sequence[str]) -> tuple[dict[str, ShardSummary], list[str]]:
    """Summaries of some files of a stage by key, from the index and footers alone, whoever's they are; and what is
    damaged of them. Nothing is written."""
    known = load(folder, stage)
    entries = {f: folder.entries(f) for f in {key.rpartition("/")[0] for key in files}}

    def look(key: str) -> ShardSummary | str | None:
        above, _, name = key.rpartition("/")
        entry = entries[above].get(name)
        shard_name = keys.published_shard(name) if stage == keys.PUBLISH else name
        if entry is None:
            return None
        if shard_name in known and known[shard_name].version == entry.version:
            return known[shard_name]
        try:
            return _summary(*shard.read_footer(folder, key, entry.size), entry)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            return str(error)

    with ThreadPoolExecutor(NUM_READERS) as pool:
        seen = dict(zip(files, pool.map(look, files), strict=True))
    summaries = {key: summary for key, summary in seen.items() if isinstance(summary, ShardSummary)}
    return summaries, [text for text in seen.values() if isinstance(text, str)]


def _summary(info: ShardInfo, sha256: str, num_turns: int, entry: Entry, file_sha256: str = "") -> ShardSummary:
    return ShardSummary(
        version=entry.version,
        num_bytes=entry.size,
        rows_in=info.rows_in,
        rows_out=info.rows_out,
        num_target_tokens=info.num_target_tokens,
        dropped=info.dropped,
        sha256=sha256,
        source_sha256=info.source_sha256,
        file_sha256=file_sha256,
        num_turns=num_turns,
        fidelity=info.fidelity,
        teachers=info.teachers,
    )


def write(folder: Folder, stage: str, summaries: dict[str, ShardSummary]) -> None:
    entries = (f"{json.dumps(name)}: {json.dumps(dataclasses.asdict(summaries[name]))}" for name in sorted(summaries))
    body = f"{{{', '.join(entries)}}}"
    folder.put(keys.index(stage), f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}".encode())


def load(folder: Folder, stage: str) -> dict[str, ShardSummary]:
    """The index of a stage; empty when there is none or it is damaged."""
    return parse(folder.get_or_none(keys.index(stage)))


def parse(data: bytes | None) -> dict[str, ShardSummary]:
    """An index as it was written; empty when there is none or it is damaged."""
    digest, _, body = (data or b"").partition(b"\n")
    if not body or hashlib.sha256(body).hexdigest().encode() != digest:
        return {}
    try:
        return {name: ShardSummary(**summary) for name, summary in parse_object(body).items()}
    except (ValueError, TypeError):  # of another version
        return {}


def stage_counts(summaries: dict[str, ShardSummary]) -> tuple[int, dict[str, int]]:
    """Rows that went into a stage and rows it dropped by reason, over its shards that exist."""
    rows_in, dropped = 0, dict[str, int]()
    for summary in summaries.values():
        rows_in += summary.rows_in
        for reason, count in summary.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return rows_in, dict(sorted(dropped.items()))
