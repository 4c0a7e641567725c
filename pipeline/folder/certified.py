"""JSON with a digest of itself: the state files of a run, which a crash or a disk can damage."""

import hashlib
import json
from typing import Any


def certified(facts: dict[str, Any]) -> dict[str, Any]:
    """`facts`, which JSON can hold, and as `sha256` the digest of the rest (as JSON with sorted keys)."""
    # NaN and Infinity are Python's, not JSON's.
    return {**facts, "sha256": hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()}


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
