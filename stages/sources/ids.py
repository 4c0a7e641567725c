"""Ids of rows: which of a source's own ids can be used, and ids that are unique in a run."""

import math
import re
import uuid
from collections.abc import Iterable
from decimal import Decimal
from hashlib import blake2b

MAX_ID_CHARACTERS = 512
_BAD_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def usable_id(values: Iterable[object]) -> str | None:
    """The first of a row's values that can be its id, as text; None where none can.

    Text stays as it is. Numbers are written as integers where they are whole (pandas makes 7 to 7.0 where an id is
    missing), bytes as UTF-8 text or in hexadecimal digits, MongoDB's {"$oid": …} without its wrapping. What is null,
    empty, longer than `MAX_ID_CHARACTERS`, of another type, or holds control characters is no id.
    """
    return next(filter(None, map(_as_text, values)), None)


def _as_text(value: object) -> str | None:
    if isinstance(value, dict) and len(value) == 1:
        value = value.get("$oid", value.get("$uuid"))
    if isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = "\0"
        value = text if _BAD_ID.search(text) is None else value.hex()
    elif isinstance(value, float | Decimal) and math.isfinite(value):
        # Not written out where its exponent is large.
        value = int(value) if abs(float(value)) < 1e300 and value == int(value) else str(value)
    if isinstance(value, uuid.UUID) or (isinstance(value, int) and not isinstance(value, bool)):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_ID_CHARACTERS or _BAD_ID.search(value):
        return None
    return value


_MADE_ID = re.compile(r"[0-9a-f]{32}(-[0-9]+)?|.*-[0-9a-f]{16}")


def may_be_made(row_id: str) -> bool:
    """Whether an id has the form of one that `Ids` makes of a row's texts."""
    return _MADE_ID.fullmatch(row_id) is not None


def is_made(row_id: str, system_prompt: str | None, user_turns: list[str]) -> bool:
    """Whether `Ids` made an id, or its end, of the row's texts: whoever guesses these can tell by it."""
    return row_id.partition("-")[0] == digest_of(user_turns) or row_id.endswith(
        f"-{digest_of([system_prompt or '', *user_turns])[:16]}"
    )


class Ids:
    """The ids that the kept rows of a stream have taken, 32 bytes each.

    The first row that has an id keeps it. A later one with other texts gets `<id>-<digest of its texts>`, as in files
    that each count from 0; one with the same texts is a duplicate.
    """

    def __init__(self) -> None:
        self._taken: set[bytes] = set()
        self._contents: set[bytes] = set()
        self._num_copies: dict[str, int] = {}

    def claim(self, row_id: str, digest: str) -> str | None:
        """Take an id for a row whose texts have this digest, and return it. None where an earlier row has both."""
        content = blake2b(f"{digest} {row_id}".encode(), digest_size=16).digest()
        if content in self._contents:
            return None
        self._contents.add(content)
        name = row_id
        while not self._take(name):
            name = f"{name}-{digest[:16]}"
        return name

    def make(self, digest: str) -> str:
        """Take an id made from texts: their digest, followed by -2, -3, ... for repeats in the order of the stream."""
        if self._take(digest):
            return digest
        number = self._num_copies.get(digest, 1) + 1
        while not self._take(f"{digest}-{number}"):
            number += 1
        self._num_copies[digest] = number
        return f"{digest}-{number}"

    def _take(self, name: str) -> bool:
        digest = blake2b(name.encode(), digest_size=16).digest()
        is_free = digest not in self._taken
        self._taken.add(digest)
        return is_free


def digest_of(texts: list[str]) -> str:
    """32 hexadecimal digits, by which texts are known."""
    digest = blake2b(digest_size=16)
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))  # so that ["ab"] and ["a", "b"] differ
        digest.update(data)
    return digest.hexdigest()
