"""Reads conversations and keeps what the user said, in shards of consecutive source rows.

Keeps user turns and a leading system prompt only, and answers with `task: score`; otherwise only the role of an answer
is looked at. Not deduplication or screening (those are `stages.dedupe` and `stages.screen`).
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from stillhouse.schemas import tables
from stillhouse.schemas.config import Config
from stillhouse.stages.filters.clock import Clock
from stillhouse.stages.personal import PERSONAL, PLACEHOLDER, Finder
from stillhouse.stages.sources import conversation, sample, source_name
from stillhouse.stages.sources.content import is_unicode, text_of
from stillhouse.stages.sources.exchanges import MALFORMED_IDS, UNANSWERED, exchanges, given_ids
from stillhouse.stages.sources.ids import Ids, digest_of, usable_id
from stillhouse.stages.sources.row import (
    INVALID_CSV,
    INVALID_JSON,
    MALFORMED_CONVERSATION,
    MISSING_CONVERSATION,
    NOT_TEXT,
    ROW_TOO_LARGE,
    TRANSCRIPT,
    TRUNCATED_SOURCE,
    UNDECODABLE,
    UNKNOWN_ROLE,
    RefusedError,
    Row,
)
from stillhouse.stages.sources.rules import NO_TEACHER, Rules

NOT_AN_OBJECT = "not_an_object"
NO_USER_TURN = "no_user_turn"
STARTS_WITH_ASSISTANT = "starts_with_assistant"
EMPTY = "empty"
LANGUAGE = "language"
TOO_LONG = "too_long"
DUPLICATE_ID = "duplicate_id"
PURGED = "purged"

REASONS: dict[str, str] = {
    INVALID_CSV: "the row of a CSV file has more or fewer fields than the first line, or a quote inside of a field",
    INVALID_JSON: "the line or array element is not JSON, or is nested or numbered beyond reason",
    UNDECODABLE: "the bytes are not UTF-8 (or a damaged Parquet page), or a kept text holds a lone surrogate",
    TRUNCATED_SOURCE: "the file ends in the middle; stands for all that is missing",
    ROW_TOO_LARGE: "the line or array element is larger than any conversation",
    NOT_AN_OBJECT: "the row is a number, a string, null, or a list of anything but messages",
    MISSING_CONVERSATION: "the row has no conversation under the names of docs/sources.md or `source.columns`, or null",
    MALFORMED_CONVERSATION: "the conversation is no list, a message no object, or a role or a kept content is missing",
    TRANSCRIPT: "a plain text is a whole conversation written out, answers included",
    UNKNOWN_ROLE: "a message's role is not in docs/sources.md, nor in `source.roles`",
    NO_USER_TURN: "no message is the user's",
    STARTS_WITH_ASSISTANT: "something other than a system prompt comes before the first user turn",
    NOT_TEXT: "a kept message holds something that is not text, such as an image",
    EMPTY: "the first user turn is empty or white space",
    UNANSWERED: "the first user turn has no answer, or an empty one, or several (`task: score`)",
    MALFORMED_IDS: "`input_ids` and `labels` are not those of the conversation's answers (`score.ids: source`)",
    LANGUAGE: "the language is none of `ingest.languages`",
    NO_TEACHER: "no rule of `teachers` takes the row",
    PLACEHOLDER: "names were replaced by placeholders such as NAME_1 (`personal.placeholders`)",
    PERSONAL: "a kept text holds personal information (`personal.prompts`)",
    TOO_LONG: "the first prompt has more tokens than `Config.max_prompt_tokens`",
    DUPLICATE_ID: "an earlier kept row has this id and the same texts",
    PURGED: "somebody asked for its deletion (`stillhouse purge`); the ledger has a digest in the place of its id",
}
"""Every `drop_reason` of this stage. A row gets the first that applies, in this order: reading, conversation,
roles, kept texts, language, teacher, personal information, length, and whether an earlier row has its id and texts. A
purge replaces any."""


_DIGEST = "digest"
"""Column of judged tables by which ids are given and repeated rows found: `_Prompt.digest`; null in dropped rows."""


class _Refused(NamedTuple):
    """Why a row is dropped. Holds no text of the row."""

    reason: str
    prompt_id: str | None = None
    prompt_personal: dict[str, int] | None = None


class _Prompt(NamedTuple):
    """What is kept of a row; `prompt_id` is None where the source gives none."""

    prompt_id: str | None
    user_turns: list[str]
    system_prompt: str | None
    language: str | None
    redacted: bool | None
    moderation_flagged: bool | None
    prompt_personal: dict[str, int] | None = None
    answers: list[str] | None = None  # with task: score; of the user turns
    given_ids: list[int] | None = None
    given_labels: list[int] | None = None
    asked_ids: list[int] | None = None
    teacher: str | None = None  # with several
    student_logprobs: list[float] | None = None

    @property
    def digest(self) -> str:
        """By which a row that repeats an earlier one is told, and by which its id is made where it has none."""
        texts = [*self.user_turns, *(self.answers or [])]
        return digest_of(texts if self.prompt_id is None else [self.system_prompt or "", *texts])


Counter = Callable[..., Sequence[int | None]]
"""First user turns, and with `generate.system_prompts: source` their system prompts, to numbers of tokens."""


class Ingest:
    """Maps a stream of source rows to tables of schema `tables.marked(tables.prompts(kinds))`.

    There is one table for every `ingest.rows_per_shard` consecutive rows (with `source.sample`, of those drawn).
    Refused rows are in it, with their reason and without text. `num_prompt_tokens` maps first user turns to their
    lengths in the teacher's tokens, chat template included, or to None where these are certain to be within
    `Config.max_prompt_tokens`; with `generate.system_prompts: source` its second argument is the system prompt of each.
    With `teachers` it may be one for each of them, by their names.

    With `personal`, texts are masked before anything else is made of them: their length, their ids, every file; `clock`
    knows how long that took.
    """

    def __init__(self, config: Config, num_prompt_tokens: Counter | Mapping[str, Counter]) -> None:
        self._config = config
        self._views: dict[str | None, Config] = {None: config}
        self._rules = None
        self._num_prompt_tokens = num_prompt_tokens
        self._source = source_name(config.source)
        self._spelling = conversation.Spelling(config.source)
        self._personal = None if config.personal is None else Finder(config.personal)
        if config.teachers is not None and config.has_rules:
            self._views = {name: config.of_teacher(name) for name in config.teacher_names}
            self._rules = Rules(config.teachers, self._spelling, self._source)
        scored = config.reads_answers
        self._schema = tables.marked(tables.prompts(config.personal_kinds, scored=scored, several=config.has_rules))
        self._languages = None if config.ingest.languages is None else frozenset(config.ingest.languages)
        self.clock = Clock()

    def __call__(self, rows: Iterable[Row]) -> Generator[pa.Table]:
        """The shards of a stream that begins with the source's first row. Ids are unique within one call."""
        source = self._config.source
        stream: Iterator[tuple[int, Row]] = enumerate(islice(rows, source.limit))
        if source.sample is not None:
            stream = sample.draw(stream, source.sample, self._config.sampling.seed)
        return self.admit(self.judge(stream))

    def judge(self, rows: Iterable[tuple[int, Row]]) -> Iterator[pa.Table]:
        """What numbered rows come to by themselves, in tables of consecutive rows: `admit` has the rest to say. Rows of
        one stream may be judged in pieces, by several processes."""
        stream = iter(rows)
        while some := list(islice(stream, self._config.ingest.rows_per_shard)):
            yield self._table([(number, self._judge(row)) for number, row in some])

    def admit(self, tables: Iterable[pa.Table]) -> Generator[pa.Table]:
        """The shards of a stream whose rows are judged: gives those without an id one, and drops those that repeat an
        earlier row."""
        ids, num_rows = Ids(), self._config.ingest.rows_per_shard
        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(_admitted(table, ids))
            if sum(map(len, waiting)) >= num_rows:
                whole = pa.concat_tables(waiting)
                end = len(whole) // num_rows * num_rows
                yield from (whole.slice(start, num_rows).combine_chunks() for start in range(0, end, num_rows))
                waiting = [whole.slice(end)]
        if any(map(len, waiting)):
            yield pa.concat_tables(waiting).combine_chunks()

    def _judge(self, row: Row) -> _Prompt | _Refused:
        if row.error is not None:
            return _Refused(row.error)
        value = row.value
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {"messages": value}  # a conversation without anything around it
        if not isinstance(value, dict):
            return _Refused(NOT_AN_OBJECT)
        prompt_id = usable_id(self._spelling.ids(value))
        try:
            prompt = _prompt(value, self._spelling, prompt_id, self._config)
            if self._languages is not None and prompt.language not in self._languages:
                raise RefusedError(LANGUAGE)
            if self._rules is not None:
                prompt = prompt._replace(teacher=self._rules.teacher(value))
                if prompt.teacher is None:
                    raise RefusedError(NO_TEACHER)
        except RefusedError as refused:
            return _Refused(refused.reason, prompt_id)
        return prompt if self._personal is None else self._without_personal(prompt, self._personal)

    def _without_personal(self, prompt: _Prompt, finder: Finder) -> _Prompt | _Refused:
        systems = [] if prompt.system_prompt is None else [prompt.system_prompt]
        said = (prompt.answers or []) if finder.masks else []  # review looks at what stays as it is
        with self.clock.of(PERSONAL):
            texts, counts = finder.masked([*prompt.user_turns, *systems, *said], prompt.language)
        reason = finder.prompt_reason(counts)
        if reason is not None:
            return _Refused(reason, prompt.prompt_id, counts)
        prompt = prompt._replace(prompt_personal=counts)
        if not finder.masks:
            return prompt
        masked = iter(texts)
        turns, system = [next(masked) for _ in prompt.user_turns], next(masked) if systems else None
        answers = None if prompt.answers is None else list(masked)
        return prompt._replace(user_turns=turns, system_prompt=system, answers=answers)

    def _table(self, verdicts: list[tuple[int, _Prompt | _Refused]]) -> pa.Table:
        prompts = [verdict for _, verdict in verdicts if isinstance(verdict, _Prompt)]
        counts = {
            teacher: iter(self._count([prompt for prompt in prompts if prompt.teacher == teacher], teacher))
            for teacher in self._views
        }
        records = []
        for source_row, verdict in verdicts:
            record: dict[str, Any] = {"source": self._source, "source_row": source_row}
            num_tokens = None
            if isinstance(verdict, _Prompt):
                num_tokens = next(counts[verdict.teacher])
                if num_tokens is not None and num_tokens > self._views[verdict.teacher].max_prompt_tokens:
                    verdict = _Refused(TOO_LONG, verdict.prompt_id)
            if isinstance(verdict, _Refused):
                record |= {"drop_reason": verdict.reason, "prompt_id": verdict.prompt_id}
                record["prompt_personal"] = verdict.prompt_personal
            else:
                record |= verdict._asdict() | {"num_prompt_tokens": num_tokens, _DIGEST: verdict.digest}
            records.append(record)
        return pa.Table.from_pylist(records, schema=self._schema.append(pa.field(_DIGEST, pa.string())))

    def _count(self, prompts: list[_Prompt], teacher: str | None) -> Sequence[int | None]:
        """Tokens of the first turns of prompts of one teacher."""
        if not prompts:
            return []
        told = self._num_prompt_tokens
        count = told if callable(told) else told[teacher or ""]
        first_turns = [prompt.user_turns[0] for prompt in prompts]
        systems = [prompt.system_prompt for prompt in prompts]
        beside = [systems] if self._views[teacher].generate.system_prompts == "source" else []
        counts = count(first_turns, *beside)
        if len(counts) != len(first_turns):
            raise ValueError(
                f"num_prompt_tokens: gave {len(counts)} counts for {len(first_turns)} texts; give one each"
            )
        return counts


def _admitted(table: pa.Table, ids: Ids) -> pa.Table:
    """A judged table with the ids that its kept rows get, and without what is said in those that get none."""
    names, digests = table["prompt_id"].to_pylist(), table[_DIGEST].to_pylist()
    table = table.drop_columns([_DIGEST])
    repeated = set[int]()
    for i, (name, digest) in enumerate(zip(names, digests, strict=True)):
        if digest is not None:
            admitted = ids.make(digest) if name is None else ids.claim(name, digest)
            if admitted is None:
                repeated.add(i)
            else:
                names[i] = admitted
    if repeated:
        told = {name: table[name] for name in ("source", "source_row", "drop_reason")}
        table = table.take(pa.array([None if i in repeated else i for i in range(len(table))], pa.int64()))
        reasons = [
            DUPLICATE_ID if i in repeated else reason for i, reason in enumerate(told["drop_reason"].to_pylist())
        ]
        told["drop_reason"] = pa.chunked_array([reasons], pa.string())
        for name, column in told.items():
            table = table.set_column(table.schema.get_field_index(name), name, column)
    return table.set_column(table.schema.get_field_index("prompt_id"), "prompt_id", pa.array(names, pa.string()))


def _prompt(value: dict[str, Any], spelling: conversation.Spelling, prompt_id: str | None, config: Config) -> _Prompt:
    """What is kept of a row. Raises `RefusedError`.

    Roles are checked in the whole conversation, contents only where they are kept. With all turns, the first empty one
    and those after it are left out, because they follow an answer to nothing.
    """
    messages = spelling.messages(value)
    roles = [message.role for message in messages]
    if conversation.USER not in roles:
        raise RefusedError(NO_USER_TURN)
    first = roles.index(conversation.USER)
    if any(role != conversation.SYSTEM for role in roles[:first]):
        raise RefusedError(STARTS_WITH_ASSISTANT)
    beside = spelling.system(value)
    parts = [] if beside is None else [text_of(beside)]
    parts += [text_of(message.content) for message in messages[:first]]
    system = "\n\n".join(dict.fromkeys(filter(str.strip, parts)))
    kept = _kept(messages, first, config)
    turns = [text_of(messages[i].content) for i in kept]
    given: dict[str, Any] = {}
    if config.reads_answers:
        given["answers"] = [text_of(messages[i + 1].content) for i in kept]
        if config.score is not None and config.given_ids:
            found = given_ids(value, roles.count(conversation.ASSISTANT), len(kept), config.score)
            given |= {"given_ids": found.ids, "given_labels": found.labels, "asked_ids": found.asked}
            given["student_logprobs"] = found.logprobs
    redacted = value.get("redacted")
    return _Prompt(
        prompt_id=prompt_id,
        user_turns=turns,
        system_prompt=system or None,
        language=_language(spelling.language(value)),
        redacted=redacted if isinstance(redacted, bool) else None,
        moderation_flagged=_moderation_flagged(value.get("openai_moderation"), messages, kept),
        **given,
    )


def _kept(messages: list[conversation.Message], first: int, config: Config) -> list[int]:
    """Places of the user turns that are kept, of which `first` is the first. Where answers are read these are the ones
    that have an answer, one right after them, up to the first that has none."""
    if config.reads_answers:
        kept = exchanges(messages, first)
    else:
        kept = []
        for i, message in enumerate(messages):
            if message.role != conversation.USER:
                continue
            if not text_of(message.content).strip():
                break
            kept.append(i)
            if config.ingest.turns == "first":
                break
        if not kept:
            raise RefusedError(EMPTY)
    return kept[:1] if config.ingest.turns == "first" else kept


def _language(language: object) -> str | None:
    return language if isinstance(language, str) and is_unicode(language) else None


def _moderation_flagged(moderation: object, messages: list[conversation.Message], kept: list[int]) -> bool | None:
    """Whether the source flagged a kept user turn; None where none is flagged and some have no verdict.

    Entry i is about message i. Where the two lists differ in length, it is unknown which entry is about which message,
    and any flag counts.
    """
    entries = moderation if isinstance(moderation, list) else []
    flags = [entry.get("flagged") if isinstance(entry, dict) else None for entry in entries]
    flags = [flags[i] for i in kept] if len(flags) == len(messages) else [*flags, None]
    toxic = [messages[i].toxic for i in kept]  # WildChat's own verdict, of two classifiers
    if any(flag is True for flag in flags + toxic):
        return True
    is_clear = all(flag is False for flag in flags) or all(flag is False for flag in toxic)
    return False if is_clear else None
