"""Reads conversations and keeps what the user said, in shards of consecutive source rows.

Keeps user turns and a leading system prompt only. Of an answer, only the role is looked at; its text never leaves this
module. Not deduplication or screening (those are `stages.dedupe` and `stages.screen`).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from stillhouse.schemas import tables
from stillhouse.schemas.config import Config
from stillhouse.stages.sources import source_name
from stillhouse.stages.sources.row import INVALID_JSON, ROW_TOO_LARGE, TRUNCATED_SOURCE, UNDECODABLE, Row

NOT_AN_OBJECT = "not_an_object"
INVALID_ID = "invalid_id"
MISSING_CONVERSATION = "missing_conversation"
MALFORMED_CONVERSATION = "malformed_conversation"
UNKNOWN_ROLE = "unknown_role"
NO_USER_TURN = "no_user_turn"
STARTS_WITH_ASSISTANT = "starts_with_assistant"
NOT_TEXT = "not_text"
EMPTY = "empty"
LANGUAGE = "language"
TOO_LONG = "too_long"
DUPLICATE_ID = "duplicate_id"

REASONS: dict[str, str] = {
    INVALID_JSON: "the line or array element is not JSON, or is nested or numbered beyond reason",
    UNDECODABLE: "the bytes are not UTF-8 (or a damaged Parquet page), or a kept text holds a lone surrogate",
    TRUNCATED_SOURCE: "the file ends in the middle; stands for all that is missing",
    ROW_TOO_LARGE: "the line or array element is larger than any conversation",
    NOT_AN_OBJECT: "the row is a list, number, string or null",
    INVALID_ID: "the id is no string or integer, or is empty, too long, or holds control characters",
    MISSING_CONVERSATION: "the row has no conversation under the source's format, or null",
    MALFORMED_CONVERSATION: "the conversation is no list, a message no object, or a role or a kept content is missing",
    UNKNOWN_ROLE: "a message's role is none of user, assistant, system, tool or their known synonyms",
    NO_USER_TURN: "no message is the user's",
    STARTS_WITH_ASSISTANT: "something other than a system prompt comes before the first user turn",
    NOT_TEXT: "a kept message holds something that is not text, such as an image",
    EMPTY: "the first user turn is empty or white space",
    LANGUAGE: "the language is none of `ingest.languages`",
    TOO_LONG: "the first prompt has more tokens than `Config.max_prompt_tokens`",
    DUPLICATE_ID: "an earlier kept row has this id",
}
"""Every `drop_reason` of this stage. A row gets the first that applies, in this order: reading, id, conversation,
roles, kept texts, language, length, and whether an earlier row has its id."""

MAX_ID_CHARACTERS = 512

_USER, _ASSISTANT, _SYSTEM, _OTHER = "user", "assistant", "system", "other"
_ROLES = {
    **dict.fromkeys(("user", "human"), _USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), _ASSISTANT),
    **dict.fromkeys(("system", "developer"), _SYSTEM),
    **dict.fromkeys(("tool", "function", "function_call", "observation"), _OTHER),
}
_BAD_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class _Format(NamedTuple):
    """How a source's rows spell a conversation: its column, two fields of its messages, and columns that may hold the
    row's id."""

    conversation: str
    role: str
    content: str
    ids: tuple[str, ...]


_FORMATS = {
    "lmsys": _Format("conversation", "role", "content", ("conversation_id",)),
    "wildchat": _Format("conversation", "role", "content", ("conversation_hash",)),
    "sharegpt": _Format("conversations", "from", "value", ("id",)),
    "messages": _Format("messages", "role", "content", ("id", "prompt_id", "conversation_id", "uuid")),
}


class _Refused(Exception):  # noqa: N818 - a row's verdict, never leaves this module
    """The row is dropped, for a reason. Holds no text of the row."""

    def __init__(self, reason: str, prompt_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.prompt_id = prompt_id


class _Prompt(NamedTuple):
    """What is kept of a row; `prompt_id` is None where the source gives none."""

    prompt_id: str | None
    user_turns: list[str]
    system_prompt: str | None
    language: str | None
    redacted: bool | None
    moderation_flagged: bool | None


class Ingest:
    """Maps a stream of source rows to tables of schema `tables.marked(tables.PROMPTS)`.

    There is one table for every `ingest.rows_per_shard` consecutive rows. Refused rows are in it, with their reason and
    without text. `num_prompt_tokens` maps first user turns to their lengths in the teacher's tokens, chat template
    included.
    """

    def __init__(self, config: Config, num_prompt_tokens: Callable[[list[str]], list[int]]) -> None:
        self._config = config
        self._num_prompt_tokens = num_prompt_tokens
        self._source = source_name(config.source)
        self._languages = None if config.ingest.languages is None else frozenset(config.ingest.languages)

    def __call__(self, rows: Iterable[Row]) -> Iterator[pa.Table]:
        """The shards of a stream that begins with the source's first row. Ids are unique within one call."""
        stream = islice(rows, self._config.source.limit)
        name = self._config.source.format
        spelling = None if name == "auto" else _FORMATS[name]
        ids = _Ids()
        first_row = 0
        while shard := list(islice(stream, self._config.ingest.rows_per_shard)):
            verdicts: list[_Prompt | _Refused] = []
            for row in shard:
                spelling = spelling or _detect(row)
                verdicts.append(self._judge(row, spelling))
            yield self._table(verdicts, ids, first_row)
            first_row += len(shard)

    def _judge(self, row: Row, spelling: _Format | None) -> _Prompt | _Refused:
        if row.error is not None:
            return _Refused(row.error)
        if not isinstance(row.value, dict):
            return _Refused(NOT_AN_OBJECT)
        try:
            # Before the first row with a known column the spelling is unknown, and no row has a conversation.
            prompt_id = _prompt_id(row.value, spelling.ids if spelling else ())
        except _Refused as refused:
            return refused
        try:
            if spelling is None:
                raise _Refused(MISSING_CONVERSATION)
            prompt = _prompt(row.value, spelling, prompt_id, self._config.ingest.turns == "first")
            if self._languages is not None and prompt.language not in self._languages:
                raise _Refused(LANGUAGE)
        except _Refused as refused:
            refused.prompt_id = prompt_id
            return refused
        return prompt

    def _table(self, verdicts: list[_Prompt | _Refused], ids: "_Ids", first_row: int) -> pa.Table:
        first_turns = [verdict.user_turns[0] for verdict in verdicts if isinstance(verdict, _Prompt)]
        counts = self._num_prompt_tokens(first_turns) if first_turns else []
        if len(counts) != len(first_turns):
            raise ValueError(
                f"num_prompt_tokens: gave {len(counts)} counts for {len(first_turns)} texts; give one each"
            )
        remaining = iter(counts)
        records = []
        for source_row, verdict in enumerate(verdicts, start=first_row):
            record: dict[str, Any] = {"source": self._source, "source_row": source_row}
            num_tokens = None
            if isinstance(verdict, _Prompt):
                num_tokens = next(remaining)
                verdict = self._admit(verdict, num_tokens, ids)
            if isinstance(verdict, _Refused):
                record |= {"prompt_id": verdict.prompt_id, "drop_reason": verdict.reason}
            else:
                record |= verdict._asdict() | {"num_prompt_tokens": num_tokens}
            records.append(record)
        return pa.Table.from_pylist(records, schema=tables.marked(tables.PROMPTS))

    def _admit(self, prompt: _Prompt, num_tokens: int, ids: "_Ids") -> _Prompt | _Refused:
        if num_tokens > self._config.max_prompt_tokens:
            return _Refused(TOO_LONG, prompt.prompt_id)
        if prompt.prompt_id is None:
            return prompt._replace(prompt_id=ids.make(prompt.user_turns))
        if not ids.claim(prompt.prompt_id):
            return _Refused(DUPLICATE_ID, prompt.prompt_id)
        return prompt


class _Ids:
    """The ids that the kept rows of a stream have taken, 16 bytes each."""

    def __init__(self) -> None:
        self._taken: set[bytes] = set()
        self._num_copies: dict[str, int] = {}

    def claim(self, prompt_id: str) -> bool:
        """Take an id. False where it is taken already."""
        digest = blake2b(prompt_id.encode(), digest_size=16).digest()
        if digest in self._taken:
            return False
        self._taken.add(digest)
        return True

    def make(self, user_turns: list[str]) -> str:
        """Take an id made from a text: its digest, followed by -2, -3, ... for repeats in the order of the stream."""
        digest = blake2b(digest_size=16)
        for turn in user_turns:
            data = turn.encode()
            digest.update(len(data).to_bytes(8, "little"))  # so that ["ab"] and ["a", "b"] differ
            digest.update(data)
        name = digest.hexdigest()
        if self.claim(name):
            return name
        number = self._num_copies.get(name, 1) + 1
        while not self.claim(f"{name}-{number}"):
            number += 1
        self._num_copies[name] = number
        return f"{name}-{number}"


def _detect(row: Row) -> _Format | None:
    """The format whose conversation column the row has; None where it has no such column."""
    if not isinstance(row.value, dict):
        return None
    if "conversation" in row.value:
        return _FORMATS["wildchat" if "conversation_hash" in row.value else "lmsys"]
    return next((spelling for spelling in _FORMATS.values() if spelling.conversation in row.value), None)


def _prompt_id(value: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The row's own id. A null id is no id, because in Parquet a missing one is null as well."""
    found = next((value[name] for name in names if value.get(name) is not None), None)
    if found is None:
        return None
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    if not isinstance(found, str) or not found.strip() or len(found) > MAX_ID_CHARACTERS or _BAD_ID.search(found):
        raise _Refused(INVALID_ID)
    return found


def _prompt(value: dict[str, Any], spelling: _Format, prompt_id: str | None, first_only: bool) -> _Prompt:
    """What is kept of a row. Raises `_Refused`.

    Roles are checked in the whole conversation, contents only where they are kept. With all turns, the first empty one
    and those after it are left out, because they follow an answer to nothing.
    """
    conversation = value.get(spelling.conversation)
    if conversation is None:
        raise _Refused(MISSING_CONVERSATION)
    if not isinstance(conversation, list):
        raise _Refused(MALFORMED_CONVERSATION)
    roles = [_role(message, spelling.role) for message in conversation]
    if _USER not in roles:
        raise _Refused(NO_USER_TURN)
    first = roles.index(_USER)
    if any(role != _SYSTEM for role in roles[:first]):
        raise _Refused(STARTS_WITH_ASSISTANT)
    system = "\n\n".join(filter(str.strip, (_text(message, spelling.content) for message in conversation[:first])))
    turns: list[str] = []
    kept: list[int] = []
    for i, role in enumerate(roles):
        if role != _USER:
            continue
        turn = _text(conversation[i], spelling.content)
        if not turn.strip():
            break
        turns.append(turn)
        kept.append(i)
        if first_only:
            break
    if not turns:
        raise _Refused(EMPTY)
    redacted = value.get("redacted")
    return _Prompt(
        prompt_id=prompt_id,
        user_turns=turns,
        system_prompt=system or None,
        language=_language(value.get("language")),
        redacted=redacted if isinstance(redacted, bool) else None,
        moderation_flagged=_moderation_flagged(value.get("openai_moderation"), conversation, kept),
    )


def _role(message: object, field: str) -> str:
    role = message.get(field) if isinstance(message, dict) else None
    if not isinstance(role, str):
        raise _Refused(MALFORMED_CONVERSATION)
    if role not in _ROLES:
        raise _Refused(UNKNOWN_ROLE)
    return _ROLES[role]


def _text(message: dict[str, Any], field: str) -> str:
    content = message.get(field)
    if content is None:
        raise _Refused(MALFORMED_CONVERSATION)
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise _Refused(NOT_TEXT)
    if not _is_unicode(content):
        raise _Refused(UNDECODABLE)
    return content


def _part(part: object) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise _Refused(NOT_TEXT)
    return text


def _is_unicode(text: str) -> bool:
    """Whether a string can be encoded as UTF-8. JSON escapes can spell half a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _language(language: object) -> str | None:
    return language if isinstance(language, str) and _is_unicode(language) else None


def _moderation_flagged(moderation: object, conversation: list[dict[str, Any]], kept: list[int]) -> bool | None:
    """Whether the source flagged a kept user turn; None where none is flagged and some have no verdict.

    Entry i is about message i. Where the two lists differ in length, it is unknown which entry is about which message,
    and any flag counts.
    """
    entries = moderation if isinstance(moderation, list) else []
    flags = [entry.get("flagged") if isinstance(entry, dict) else None for entry in entries]
    flags = [flags[i] for i in kept] if len(flags) == len(conversation) else [*flags, None]
    toxic = [conversation[i].get("toxic") for i in kept]  # WildChat's own verdict, of two classifiers
    if any(flag is True for flag in flags + toxic):
        return True
    is_clear = all(flag is False for flag in flags) or all(flag is False for flag in toxic)
    return False if is_clear else None
