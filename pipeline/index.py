"""What finished shards say of themselves, gathered in one file per stage (`state/index/<stage>.json`), so that going on
with ten thousand shards opens six files.

Only a cache: an entry counts while the listing shows the version of the shard that it was made from, and everything in
it can be read again from the shards.
"""

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stillhouse.pipeline import shards, worker
from stillhouse.pipeline.shards import DamagedError, Entry, Store
from stillhouse.pipeline.worker import RedoError
from stillhouse.schemas.config import Config, config_hash

NUM_READERS = 32
"""Footers read at once: an object store answers each in tens of milliseconds."""


@dataclass(frozen=True)
class Facts:
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
    fidelity: dict[str, Any] = field(default_factory=dict)


def read(config: Config, store: Store, stage: str, names: list[str]) -> dict[str, Facts]:
    """The facts of the shards of `stage` that exist, out of `names`. Raises `RedoError` when some are damaged: they are
    put away."""
    facts, damaged = scan(config, store, stage, names, save=True)
    if damaged:
        told = [
            f"{message}; {worker.put_away(store, _key(stage, name, len(names)), (stage, name, config_hash(config)))}"
            for name, message in damaged
        ]
        raise RedoError("; ".join(told))
    return facts


def scan(
    config: Config, store: Store, stage: str, names: list[str], *, save: bool
) -> tuple[dict[str, Facts], list[tuple[str, str]]]:
    """As `read`, but only names what is damaged: pairs of shard and message. `save` keeps what was read for next time.

    Footers are checked, and the whole of published files; rows of other shards are when the next stage reads them.
    """
    known = parse(store.get_or_none(key(stage)))
    keys = {name: _key(stage, name, len(names)) for name in names}
    digest = config_hash(config)
    entries = store.entries("dataset/data" if stage == "publish" else stage)
    found = {name: entries[file] for name in names if (file := keys[name].rpartition("/")[2]) in entries}
    facts = {
        name: known[name] for name, entry in found.items() if name in known and known[name].version == entry.version
    }
    damaged = []
    unknown = [name for name in found if name not in facts]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        looked = pool.map(lambda name: _look(store, keys[name], (stage, name, digest), found[name]), unknown)
        for name, fact in zip(unknown, looked, strict=True):
            if isinstance(fact, Facts):
                facts[name] = fact
            elif fact is not None:
                damaged.append((name, fact))
    if save and unknown:
        write(store, stage, facts)
    return facts, damaged


def _key(stage: str, name: str, num_shards: int) -> str:
    return worker.published_key(name, num_shards) if stage == "publish" else worker.stage_key(stage, name)


def _look(store: Store, place: str, expected: tuple[str, str, str], entry: Entry) -> Facts | str | None:
    """Facts, or what is wrong with the shard; None when it has gone since the listing."""
    file_sha256 = ""
    try:
        if expected[0] == "publish":
            data = store.get(place)
            shard = shards.decode(data, store.path(place), [], expected)
            assert shard.info is not None
            info, sha256, file_sha256 = shard.info, shard.sha256, hashlib.sha256(data).hexdigest()
        else:
            info, sha256 = shards.read_footer(store, place, entry.size)
            if (info.stage, info.shard, info.config_hash) != expected:
                return f"{store.path(place)}: holds {info.stage} {info.shard} of {info.config_hash[:12]}"
    except FileNotFoundError:
        return None
    except DamagedError as error:
        return str(error)
    return Facts(
        version=entry.version,
        num_bytes=entry.size,
        rows_in=info.rows_in,
        rows_out=info.rows_out,
        num_target_tokens=info.num_target_tokens,
        dropped=info.dropped,
        sha256=sha256,
        source_sha256=info.source_sha256,
        file_sha256=file_sha256,
        fidelity=info.fidelity,
    )


def key(stage: str) -> str:
    return f"state/index/{stage}.json"


def write(store: Store, stage: str, facts: dict[str, Facts]) -> None:
    body = json.dumps({name: dataclasses.asdict(facts[name]) for name in sorted(facts)})
    store.put(key(stage), f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}".encode())


def parse(data: bytes | None) -> dict[str, Facts]:
    """An index as it was written; empty when there is none or it is damaged."""
    digest, _, body = (data or b"").partition(b"\n")
    if not body or hashlib.sha256(body).hexdigest().encode() != digest:
        return {}
    try:
        return {name: Facts(**facts) for name, facts in shards.parse_object(body).items()}
    except (ValueError, TypeError):  # of another version
        return {}
