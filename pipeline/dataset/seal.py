"""Checks of prompts that cannot be used to guess them, and a seal on what prompts can be told by.

A digest of one short prompt is a test for guesses of it. So no digest here is of one prompt: each is of all prompts
before it too, through a state that is never written. Who has the source computes them all; who guesses has to guess
`MIN_PROMPTS` prompts at once.
"""

import hashlib
import json
from typing import Any

MIN_PROMPTS = 8
"""Prompts, at least, that any digest covers."""


class Chain:
    """The running state over the prompts of a group of rows, in their order; `run` is the hash of the configuration, so
    that no other run over these prompts has the same seals."""

    def __init__(self, run: str) -> None:
        self._state = hashlib.blake2b(run.encode()).digest()
        self.source_rows: list[int] = []
        """The prompts so far; rows that share one count once."""
        self.num_tags = 0

    def add(self, source_row: int, texts: list[str], ids: list[bytes]) -> bytes | None:
        """Adds a row by what is withheld of it. Returns its tag, 16 bytes: a digest of this row and of all before it;
        None as long as these are fewer than `MIN_PROMPTS` prompts."""
        if source_row not in self.source_rows[-1:]:
            self.source_rows.append(source_row)
        row = json.dumps([source_row, texts, [part.hex() for part in ids]]).encode()
        self._state = hashlib.blake2b(row, key=self._state, digest_size=64, person=b"stillhouse state").digest()
        if len(self.source_rows) < MIN_PROMPTS:
            return None
        self.num_tags += 1
        return self._derive(b"stillhouse tag", 16)

    def seal(self, name: str, values: Any) -> bytes:
        """JSON `values`, readable only for who has all prompts that were added. Each `name` is used once."""
        return self._crypt(name, json.dumps(values).encode())

    def unseal(self, name: str, sealed: bytes) -> Any:
        """The values that `seal` got. Raises ValueError where the prompts added are others."""
        return json.loads(self._crypt(name, sealed))

    def _crypt(self, name: str, data: bytes) -> bytes:
        assert len(self.source_rows) >= MIN_PROMPTS
        stream = hashlib.shake_256(self._derive(b"stillhouse seal", 64) + name.encode()).digest(len(data))
        return bytes(a ^ b for a, b in zip(data, stream, strict=True))

    def _derive(self, person: bytes, size: int) -> bytes:
        return hashlib.blake2b(key=self._state, digest_size=size, person=person).digest()


def groups(files: list[dict[str, Any]], samples: int) -> list[list[dict[str, Any]]]:
    """The `files` of a manifest in groups that follow each other, each of `MIN_PROMPTS` prompts or more; none where all
    together have fewer. `samples` are the rows that a prompt has at most."""
    found: list[list[dict[str, Any]]] = []
    begun: list[dict[str, Any]] = []
    for file in files:
        begun.append(file)
        if sum(-(-file["rows"] // samples) for file in begun) >= MIN_PROMPTS:
            found.append(begun)
            begun = []
    if found:
        found[-1] += begun
    return found
