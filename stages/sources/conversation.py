"""How rows spell a conversation: its column, its messages, their roles, and columns beside it. docs/sources.md lists
the spellings.

The text of an answer is never looked at here, except that a plain column which holds a whole conversation is refused.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources.json_values import parse_printed, parse_text
from stillhouse.stages.sources.row import (
    MALFORMED_CONVERSATION,
    MISSING_CONVERSATION,
    TRANSCRIPT,
    UNDECODABLE,
    UNKNOWN_ROLE,
    RefusedError,
)

USER, ASSISTANT, SYSTEM, OTHER = "user", "assistant", "system", "tool"
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai", "chatbot", "claude"), ASSISTANT
    ),
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("tool", "tools", "function", "observation", "ipython", "environment"), OTHER),
    **dict.fromkeys(("function_call", "function_response", "tool_call", "tool_calls"), OTHER),
    **dict.fromkeys(("tool_response", "tool_result", "tool_results", "tool_output"), OTHER),
}
"""Whose turn a role is, by its name in lower case."""

CHATS = (
    "conversation",
    "conversations",
    "messages",
    "contents",
    "dialogue",
    "items",
    "turns",
    "chat",
    "conversation_a",
)
NESTED_CHATS = ("body.messages", "body.input", "params.messages", "request.contents")
"""Rows of the batch files of OpenAI (chat completions, responses), Anthropic and Google."""
PLAIN = ("prompt", "instruction", "question", "query", "problem", "input", "text")
"""Columns that hold the user's words as a text, or messages, or a list of user turns."""
LAST_CHATS = ("chosen",)
"""Conversations with an answer that somebody preferred; read where there is no other column."""
SYSTEMS = ("system", "system_prompt", "body.instructions", "params.system", "request.systemInstruction")
IDS = ("conversation_id", "conversation_hash", "id", "prompt_id", "uuid", "custom_id", "question_id", "_id")
_FIRST_IDS = {
    "conversation": ("conversation_hash", "conversation_id"),
    "conversations": ("id",),
    "messages": ("id", "prompt_id", "conversation_id", "uuid"),
}
_FORMATS = {
    "lmsys": ("conversation", ("conversation_id",)),
    "wildchat": ("conversation", ("conversation_hash",)),
    "sharegpt": ("conversations", ("id",)),
    "messages": ("messages", _FIRST_IDS["messages"]),
}
ROLE_FIELDS = ("role", "from", "sender", "speaker", "author", "type")
CONTENT_FIELDS = ("content", "value", "text", "message", "parts", "data.content")
ASKED_FIELDS = ("human", "user", "prompt", "question", "instruction", "query", "input")
ANSWERED_FIELDS = ("assistant", "gpt", "bot", "ai", "answer", "response", "output")

_TOKENS = re.compile(  # what opens an answer in a rendered template, and that something follows
    r"(?:<\|im_start\|>assistant|<\|assistant\|>|<start_of_turn>model|\[/INST\]"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>)\s*[^\s<]"
)
_ASKED = re.compile(r"(?:^|\n|#{2,4})[ \t]*(?:human|user|prompter|instruction|question)[ \t]*:", re.IGNORECASE)
_ANSWERED = re.compile(
    r"(?:\n|#{2,4})[ \t]*(?:assistant|gpt|chatgpt|bot|ai|response|answer)[ \t]*:\s*\S", re.IGNORECASE
)


class Message(NamedTuple):
    """One turn. `content` is what the row holds, not yet known to be text; `toxic` is WildChat's verdict."""

    role: str
    content: object
    toxic: object = None


class Spelling:
    """How the rows of a source spell what is kept of them: by its format or columns, or else by each row's own columns,
    so that files of several kinds may stand side by side."""

    def __init__(self, source: SourceConfig, *, every_column: bool = False, more_columns: tuple[str, ...] = ()) -> None:
        self._columns, self._more_columns = source.columns, more_columns
        self._every_column = every_column
        named = _FORMATS.get(source.format)
        self._ids: tuple[str, ...] | None = named[1] if named else None
        self.candidates = (named[0],) if named else (*CHATS, *NESTED_CHATS, *PLAIN, *LAST_CHATS)
        if self._columns.conversation is not None:
            self.candidates = (self._columns.conversation,)
        if self._columns.id is not None:
            self._ids = (self._columns.id,)
        self._systems = SYSTEMS if self._columns.system is None else (self._columns.system,)
        self._language = self._columns.language or "language"
        self._role_fields = ROLE_FIELDS if self._columns.role is None else (self._columns.role,)
        self._content_fields = CONTENT_FIELDS if self._columns.content is None else (self._columns.content,)
        self._roles = ROLES | {name.strip().casefold(): role for name, role in source.roles.items()}

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Dotted paths of all that a row may be asked for; None for everything."""
        if self._every_column:
            return None
        beside = ("role", "context", "history", "redacted", "openai_moderation", self._language, *self._more_columns)
        return (*self.candidates, *(self._ids or IDS), *self._systems, *beside)

    @property
    def message_fields(self) -> frozenset[str]:
        """What is looked at of a message, or of what stands for one, in lower case."""
        fields = (*self._role_fields, *self._content_fields, *ASKED_FIELDS, *ANSWERED_FIELDS, "system", "toxic")
        return frozenset(part for field in fields for part in field.casefold().split("."))

    def is_asked(self, path: str) -> bool:
        """Whether a place in a row is asked for by itself, not as part of a conversation."""
        return path in (self.columns or ()) or any(f"{path}.".startswith(f"{name}.") for name in self._more_columns)

    def has_conversation(self, row: object) -> bool:
        return isinstance(row, dict) and self._find(row) is not None

    def holds_conversation(self, row: dict[str, Any]) -> bool:
        """Whether a row has a conversation that is not empty, and no object of something else under its name."""
        value = at(row, self._find(row) or "")
        return _holds(value) and (not isinstance(value, dict) or self._are_messages(value))

    def is_plain(self, row: dict[str, Any]) -> bool:
        """Whether the conversation of a row, which has one, is a text or nothing that is read as messages."""
        return not isinstance(at(row, self._find(row) or ""), list)

    def is_message(self, value: object) -> bool:
        """Whether an object is one turn rather than a row."""
        role = first(value, self._role_fields) if isinstance(value, dict) else None
        return isinstance(role, str) and role.strip().casefold() in self._roles and not self._has_chat(value)

    def is_row_of(self, key: str, value: object) -> bool:
        """Whether an object is a row, in a list that a file keeps under `key`. A conversation's own items may look like
        rows (`prompt`, `question`); those that hold messages themselves do not."""
        return (
            self._has_chat(value)
            if key in self.candidates
            else self.has_conversation(value) and not self.is_message(value)
        )

    def _has_chat(self, value: object) -> bool:
        return any(isinstance(at(value, name), list) for name in self.candidates)

    def ids(self, row: dict[str, Any]) -> list[object]:
        """The values that may be the row's id, the best first."""
        column = next((name for name in _FIRST_IDS if name in row), "messages")
        names = self._ids or dict.fromkeys((*_FIRST_IDS[column], *IDS))
        return [_raw_at(row, name) for name in names]

    def language(self, row: dict[str, Any]) -> object:
        return at(row, self._language)

    def system(self, row: dict[str, Any]) -> object:
        """What a column beside the conversation holds of a system prompt; None where there is none."""
        found = first(row, self._systems)
        if isinstance(found, dict):
            content = self._content(found, CONTENT_FIELDS)
            # An object that says nothing in a known way is refused, not left out.
            found = content if content is not None or found.keys() & {*CONTENT_FIELDS} else found
        return found if _holds(found) else None

    def messages(self, row: dict[str, Any]) -> list[Message]:
        """The conversation of a row, whose contents are looked at by nobody yet. Raises `RefusedError`."""
        name = self._find(row)
        if name is None:
            raise RefusedError(MISSING_CONVERSATION)
        value = at(row, name)
        is_plain = name in PLAIN or name == "body.input" or name == self._columns.conversation
        if isinstance(value, bytes):
            raise RefusedError(UNDECODABLE)
        if isinstance(value, str):
            parsed = _decoded(value)
            if not isinstance(parsed, str) and (not is_plain or self._are_messages(parsed)):
                return self._expanded(parsed)
            if not is_plain:
                raise RefusedError(MALFORMED_CONVERSATION)
            # A table of single messages (OpenAssistant's) has answers in this column too.
            spoken_by = self._roles.get(str(at(row, "role")).strip().casefold(), USER)
            return [*self._history(row, name), Message(spoken_by, f"{self._plain(value, name)}{_input(row, name)}")]
        if isinstance(value, list) and value and (is_plain or name == "turns") and isinstance(value[0], str | bytes):
            value = list(map(as_text, value))
            decoded = list(map(_decoded, value))
            if self._are_messages(decoded):
                return self._expanded(decoded)
            return [Message(USER, self._plain(turn, name)) for turn in value]
        return self._expanded(value)

    def _find(self, row: dict[str, Any]) -> str | None:
        if self._columns.conversation is not None:
            return None if at(row, self._columns.conversation) is None else self._columns.conversation
        empty = None
        for name in self.candidates:
            if _may_hold(name, value := at(row, name)):
                if _holds(value):
                    return name
                empty = empty or name
        return empty

    def _plain(self, text: object, name: str) -> object:
        """A plain text, unless it is a whole conversation written out: its answers would pass for the user's words."""
        if isinstance(text, str) and (_TOKENS.search(text) or (name not in PLAIN[:-1] and _is_spoken(text))):
            raise RefusedError(TRANSCRIPT)
        return text

    def _are_messages(self, value: object) -> bool:
        value = _rows_of(value, self._role_fields)
        return (
            isinstance(value, list)
            and bool(value)
            and all(isinstance(item, dict) and first(item, self._role_fields) is not None for item in value)
        )

    def _history(self, row: dict[str, Any], name: str) -> Iterable[Message]:
        """The rounds before an `instruction`, as LLaMA-Factory writes them: pairs of texts."""
        rounds = row.get("history") if name in ("instruction", "prompt", "query") else None
        for pair in rounds if isinstance(rounds, list) else []:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise RefusedError(MALFORMED_CONVERSATION)
            yield from (Message(USER, pair[0]), Message(ASSISTANT, pair[1]))

    def _expanded(self, value: object) -> list[Message]:
        conversation = _rows_of(value, (*self._role_fields, *ASKED_FIELDS))
        if not isinstance(conversation, list):
            raise RefusedError(MALFORMED_CONVERSATION)
        return [message for item in conversation for message in self._read(_decoded(item))]

    def _read(self, item: object) -> Iterable[Message]:
        """The turns that one item of a conversation stands for: a message, or a question and its answer."""
        if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str):
            return [Message(self._role(item[0]), item[1])]
        if not isinstance(item, dict):
            raise RefusedError(MALFORMED_CONVERSATION)
        role = first(item, self._role_fields)
        if isinstance(role, dict):  # ChatGPT's export: {"author": {"role": …}}
            role = role.get("role")
        if role is not None:
            return [Message(self._role(role), self._content(item), item.get("toxic"))]
        fields = {name.casefold(): text for name, text in item.items() if isinstance(name, str) and text is not None}
        pair = ((SYSTEM, ("system",)), (USER, ASKED_FIELDS), (ASSISTANT, ANSWERED_FIELDS))
        found = [(role, name) for role, names in pair if (name := next(filter(fields.__contains__, names), None))]
        if self._columns.role is not None or not any(role != SYSTEM for role, _ in found):
            raise RefusedError(MALFORMED_CONVERSATION)
        return [Message(role, fields[name]) for role, name in found]

    def _content(self, item: dict[str, Any], more_fields: tuple[str, ...] = ()) -> object:
        content = first(item, (*self._content_fields, *more_fields))
        return content.get("parts", content) if isinstance(content, dict) else content

    def _role(self, name: object) -> str:
        if not isinstance(name, str):
            raise RefusedError(MALFORMED_CONVERSATION)
        role = self._roles.get(name) or self._roles.get(name.strip().casefold())
        if role is None:
            raise RefusedError(UNKNOWN_ROLE)
        return role


def at(row: object, path: str) -> Any:
    """What a row holds at a dotted path, through JSON texts too; None where there is nothing."""
    value = _raw_at(row, path)
    return as_text(value) if isinstance(value, bytes) else value


def as_text(value: object) -> Any:
    """Bytes as the text that they are; what is no text stays as it is."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _raw_at(row: object, path: str) -> Any:
    if isinstance(row, dict) and (path in row or "." not in path):
        return row.get(path)
    for name in path.split("."):
        row = _decoded(row)
        if not isinstance(row, dict):
            return None
        row = row.get(name)
    return row


def first(item: object, paths: Iterable[str]) -> Any:
    """The first value of some paths that holds something, or else the first that is there."""
    empty = None
    for path in paths:
        if (value := at(item, path)) is not None:
            if _holds(value):
                return value
            empty = value if empty is None else empty
    return empty


def _holds(value: object) -> bool:
    return bool(value) and not (isinstance(value, str) and value.isspace())


def _decoded(value: object) -> object:
    """An object or list that is written as a text, of JSON or of Python; anything else as it is."""
    value = as_text(value)
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        parsed = parse_text(value)
        return parse_printed(value) if parsed.error is not None else parsed.value
    return value


def _rows_of(value: object, fields: Iterable[str]) -> object:
    """A list of objects from an object of lists, which is what `datasets` writes for a sequence of objects."""
    if not isinstance(value, dict) or not any(isinstance(value.get(name), list) for name in fields):
        return value
    lists = {name: items for name, items in value.items() if isinstance(items, list)}
    if len({len(items) for items in lists.values()}) != 1:
        raise RefusedError(MALFORMED_CONVERSATION)
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _is_spoken(text: str) -> bool:
    asked = _ASKED.search(text)
    return asked is not None and _ANSWERED.search(text, asked.end()) is not None


def _may_hold(name: str, value: object) -> bool:
    """Whether a column has a conversation, well spelled or not. Some names mean other things too, such as a number of
    `turns`."""
    if isinstance(value, str | bytes):  # bytes that are no text are a reason to refuse the row
        return name not in (*CHATS[3:], *LAST_CHATS) or value.lstrip()[:1] in ("[", "{", b"[", b"{")
    if name in (*CHATS[3:], *NESTED_CHATS, *PLAIN, *LAST_CHATS):
        return isinstance(value, list | dict)
    return value is not None


def _input(row: dict[str, Any], name: str) -> str:
    """What belongs to an `instruction`: Alpaca's `input`, Dolly's `context`."""
    if name != "instruction":
        return ""
    found = first(row, ("input", "context"))
    if isinstance(found, bytes):
        raise RefusedError(UNDECODABLE)
    return f"\n\n{found}" if isinstance(found, str) and found.strip() else ""
