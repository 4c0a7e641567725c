"""Which prompts were purged: their ids as keyed digests, so that they are known when the source shows them again."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder.certified import encode_certified, parse_certified
from stillhouse.pipeline.folder.store import Folder

PURGED = "purged"
"""The reason, and what stands before a digest where an id was."""


@dataclass(frozen=True)
class Register:
    """The digests of a run. Their key stays in its `state/`: a ledger or a dataset alone is no test for ids, which can
    be made of prompts."""

    key: str
    digests: frozenset[str]

    def name(self, prompt_id: str) -> str:
        """What stands in the place of an id."""
        digest = hashlib.blake2b(prompt_id.encode(), key=bytes.fromhex(self.key), digest_size=16)
        return f"{PURGED}-{digest.hexdigest()}"

    def has(self, prompt_id: str | None) -> bool:
        return prompt_id is not None and bool(self.digests) and self.name(prompt_id) in self.digests

    def mark(self, marked: pa.Table) -> pa.Table:
        """Rows of ingest, those that were purged with `drop_reason` purged and without their ids."""
        ids = marked.column("prompt_id").to_pylist()
        hits = [self.has(prompt_id) for prompt_id in ids]
        if not any(hits):
            return marked
        reasons = marked.column("drop_reason").to_pylist()
        values = {
            "prompt_id": [self.name(name) if hit else name for name, hit in zip(ids, hits, strict=True)],
            "drop_reason": [PURGED if hit else reason for reason, hit in zip(reasons, hits, strict=True)],
        }
        for name, column in values.items():
            place = marked.column_names.index(name)
            marked = marked.set_column(place, marked.schema.field(name), pa.array(column, pa.string()))
        return marked


def read(folder: Folder) -> Register:
    """The register of a run; an empty one where nothing was purged. Raises `ShardError` where it is damaged: without it
    purged rows could come back."""
    data = folder.get_or_none(keys.PURGED)
    if data is None:
        return Register(secrets.token_hex(16), frozenset())
    try:
        facts = parse_certified(data)
        return Register(facts["key"], frozenset(facts["digests"]))
    except (ValueError, KeyError):
        raise ShardError(
            f"{folder.path(keys.PURGED)}: is damaged, so it cannot be told which rows must not come back; restore it"
        ) from None


def add(folder: Folder, prompt_ids: Iterable[str]) -> Register:
    """Adds ids to the register, and returns it."""
    register = read(folder)
    digests = register.digests | {register.name(prompt_id) for prompt_id in prompt_ids}
    folder.put(keys.PURGED, encode_certified({"key": register.key, "digests": sorted(digests)}))
    return Register(register.key, digests)
