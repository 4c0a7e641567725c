"""Guard models as classifiers: a language model on the teacher's engine is asked, and its verdict's probability is the
score.

The question is the guard's chat template around the text, which can write no control token there
(`stages.teacher.guard`, of another meaning of the word). The verdict is the first token after a mark in the answer. Of
the most probable tokens there, those count that begin one of the words for yes or for no, and the score is the share of
yes: a threshold means the same for every text.

Shape legend: N texts, L labels, S tokens written, K tokens known per place.
"""

import asyncio
import contextlib
import itertools
import re
import threading
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from stillhouse.schemas.config import (
    Config,
    ConfigError,
    GenerateConfig,
    GuardConfig,
    QuestionConfig,
    SamplingConfig,
    TargetsConfig,
    TeacherConfig,
)
from stillhouse.stages.filters.classifier import check_thresholds
from stillhouse.stages.teacher import Answer, TeacherError, TemplateError, load_teacher
from stillhouse.stages.teacher import chat as chats
from stillhouse.stages.teacher.watchdog import Watchdog

TOP_K = 20
"""Tokens that the engine tells of each place."""
LEAST_MASS = 0.01
"""Yes and no together must be so probable: below that the guard was about to write something else."""
LEAST_ROOM = 64
"""Tokens that a text must be left beside the template."""
DIGITS = 4
"""Of a score. An engine's sixth digit depends on which texts it computes together."""

Result = TypeVar("Result")
Groups = list[tuple[chats.Chat, list[QuestionConfig]]]
"""Questions with the same variables of the template share a request."""


class Asked(NamedTuple):
    """One request: a window of text `number`, in the template of question group `group`."""

    number: int
    group: int
    prompt_ids: NDArray[np.int32]


def place_of(config: GuardConfig) -> str:
    """What sentences call a guard's section."""
    return f"screen.classifiers (guard {config.questions[0].label})"


def check_guard(config: GuardConfig) -> None:
    """Raises `ConfigError` where `GuardClassifier` would before it starts an engine."""
    check_thresholds(config.thresholds, config.labels, place_of(config))
    with _explained(place_of(config)):
        _prepared(config)


class GuardClassifier:
    """A guard model. Labels: those of its questions, of the categories that it names, and `<label>_unread`.

    A text that does not fit the guard's context is read in windows that overlap by a quarter, and has the highest score
    of them; of what was asked before an answer, the end is kept where it takes more than half the room. `_unread` is 1,
    and other scores are 0, where there was no verdict: the template or the engine refused the text, or the answer has
    another form. Blank texts are not asked about; their scores are 0.

    Raises `ConfigError` when the guard has no template or one that loses text, when its tokenizer begins yes and no
    with the same token, when the template leaves no room, or when the engine cannot start.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.labels: tuple[str, ...] = config.labels
        where = place_of(config)
        self.thresholds = check_thresholds(config.thresholds, self.labels, where)
        self._config = config
        with _explained(where):
            self._groups, self._room = _prepared(config)
            self._tokenizer = self._groups[0][0].tokenizer
            self._loop = _Loop()
            ends = self._groups[0][0].end_of_turn_ids()
            self._teacher: Watchdog = self._loop.run(_started(as_run(config), ends, config.stall_timeout_s))
        self._names = itertools.count()

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities [N, L] of user turns."""
        messages = [[[_said("user", part)] for part in self._windows(text, self._room)] for text in texts]
        return self._scores(messages, [question.after for question in self._config.questions])

    def score_answers(self, asked: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities [N, L] of `texts`, which answer `asked`."""
        messages = []
        for before, text in zip(asked, texts, strict=True):
            before, num_tokens = self._end(before, self._room // 2)
            parts = self._windows(text, self._room - num_tokens)
            messages.append([[_said("user", before), _said("assistant", part)] for part in parts])
        marks = [question.after_in_answers for question in self._config.questions]
        first = [question.after for question in self._config.questions]
        return self._scores(messages, [a if b is None else b for a, b in zip(first, marks, strict=True)])

    @property
    def broken(self) -> bool:
        """Whether the engine has failed for good."""
        return self._teacher.broken

    def close(self) -> None:
        """End the engine."""
        self._loop.run(_ended(self._teacher))

    def _scores(self, messages: list[list[list[dict[str, str]]]], marks: list[str]) -> NDArray[np.float32]:
        """[N, L] of texts, each as the conversations of its windows; `marks` are what verdicts stand after."""
        scores_NL = np.zeros((len(messages), len(self.labels)), np.float32)
        unread, asked = len(self.labels) - 1, list[Asked]()
        for number, windows in enumerate(messages):
            for window in windows:
                for group, (chat, _) in enumerate(self._groups):
                    try:
                        ids = chat.prompt_ids(window)
                    except TemplateError:
                        scores_NL[number, unread] = 1
                        continue
                    asked.append(Asked(number, group, ids))
        answers = self._loop.run(self._answers(asked))
        mark_of = {question.label: mark for question, mark in zip(self._config.questions, marks, strict=True)}
        for request, answer in zip(asked, answers, strict=True):
            scores = self._read(answer, self._groups[request.group][1], mark_of)
            row_L = scores_NL[request.number]
            np.maximum(row_L, scores, out=row_L)
        return scores_NL

    async def _answers(self, asked: list[Asked]) -> list[Answer | None]:
        return await asyncio.gather(*(self._answer(request.prompt_ids) for request in asked))

    async def _answer(self, prompt_ids: NDArray[np.int32]) -> Answer | None:
        """What the guard writes; None where the engine refuses the prompt. Raises RuntimeError where it gave up."""
        if len(prompt_ids) + self._config.max_tokens > self._config.max_model_len:
            return None  # text that spells control tokens takes more tokens than a tokenizer counts
        try:
            answer = await self._teacher.answer(prompt_ids, f"guard/{next(self._names)}", 0, self._config.max_tokens)
        except TeacherError:
            return None
        if answer.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"{self.labels[0]}: the guard's engine ended an answer with {answer.finish_reason!r}")
        return answer

    def _read(self, answer: Answer | None, questions: list[QuestionConfig], mark_of: dict[str, str]) -> Any:
        """[L]: the scores of an answer to `questions`."""
        scores = dict.fromkeys(self.labels, 0.0)
        for question in questions:
            share = None if answer is None else self._share_of_yes(answer, question, mark_of[question.label])
            if answer is None or share is None:
                scores[self._config.unread] = 1.0
                continue
            scores[question.label] = round(share, DIGITS)
            if question is self._config.questions[0] and self._config.categories is not None:
                text = self._text(answer.token_ids)
                for label in _named(text, self._config.categories.after, self._config.categories.labels):
                    scores[label] = scores[question.label]
        return np.array([scores[label] for label in self.labels], np.float32)

    def _share_of_yes(self, answer: Answer, question: QuestionConfig, mark: str) -> float | None:
        """The probability of yes among yes and no where the answer says one of them; None where it does not."""
        place = self._place(answer.token_ids, mark)
        if place is None:
            return None
        start, begin = place
        mass = {True: 0.0, False: 0.0}
        for token, logprob in zip(answer.target_ids[start].tolist(), answer.target_logprobs[start], strict=True):
            written = self._text([*answer.token_ids[:start].tolist(), token])[begin:].strip().casefold()
            begins = _begins(written, question)
            if len(begins) == 1:
                mass[begins.pop()] += float(np.exp(np.float64(logprob)))
        total = mass[True] + mass[False]
        return mass[True] / total if total >= LEAST_MASS else None  # NaN is not

    def _place(self, token_ids: NDArray[np.int32], mark: str) -> tuple[int, int] | None:
        """The token in which the verdict begins, and where in the text the mark before it ends."""
        for i in range(len(token_ids)):
            text = self._text(token_ids[: i + 1])
            at = text.find(mark)
            if at >= 0 and text[at + len(mark) :].strip():
                return i, at + len(mark)
        return None

    def _text(self, token_ids: Any) -> str:
        return str(self._tokenizer.decode(list(map(int, token_ids)), skip_special_tokens=True))

    def _windows(self, text: str, room: int) -> list[str]:
        """The text in pieces of up to `room` tokens, each but the first with a quarter of the one before; none of a
        blank text."""
        if not text.strip():
            return []
        offsets = self._offsets(text) or [(0, len(text))]
        step = room - room // 4
        starts = range(0, max(len(offsets) - room // 4, 1), step)
        return [text[offsets[start][0] : offsets[min(start + room, len(offsets)) - 1][1]] for start in starts]

    def _end(self, text: str, room: int) -> tuple[str, int]:
        """The last `room` tokens of a text, and how many tokens it then has."""
        offsets = self._offsets(text)
        return (text[offsets[-room][0] :], room) if len(offsets) > room else (text, len(offsets))

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = self._tokenizer.backend_tokenizer.encode(
            text, add_special_tokens=False
        ).offsets
        return offsets


class _Loop:
    """An event loop in a thread of its own: an engine belongs to one loop, and a stage may be called from another."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="guard", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except (TemplateError, TeacherError) as error:
        reason = re.sub(r"teacher(\.|: )", "", str(error))  # keys of a guard, not of the teacher
        raise ConfigError(f"{where}: {reason}") from None


def _prepared(config: GuardConfig) -> tuple[Groups, int]:
    """How a guard is asked, and the tokens that there are for a text. Raises `TemplateError` where its model, its
    template or its words will not do."""
    groups: Groups = []
    variables: list[dict[str, Any]] = []
    for question in config.questions:
        if question.chat_template_kwargs not in variables:
            variables.append(question.chat_template_kwargs)
            groups.append((chats.load_chat(as_run(config, question.chat_template_kwargs)), []))
        groups[variables.index(question.chat_template_kwargs)][1].append(question)
    overhead = max(_overhead(chat, config) for chat, _ in groups)
    room = config.max_model_len - config.max_tokens - overhead - 8
    if room < LEAST_ROOM:
        raise TemplateError(
            f"max_model_len: {config.max_model_len} leaves {max(room, 0)} tokens for a text beside {overhead} of the "
            f"template and {config.max_tokens} of the answer; raise it"
        )
    for question in config.questions:
        _check_words(groups[0][0].tokenizer, question)
    return groups, room


async def _started(config: Config, stop_token_ids: list[int], stall_timeout_s: float) -> Watchdog:
    """A coroutine, so that the engine finds the loop that it will be used in."""
    return Watchdog(load_teacher(config, stop_token_ids), stall_timeout_s)


async def _ended(teacher: Watchdog) -> None:
    teacher.shutdown()


def as_run(config: GuardConfig, variables: dict[str, Any] | None = None) -> Config:
    """The sections of a run that a teacher and its chat read, as they are for a guard; `variables` are more of the
    template's."""
    teacher = TeacherConfig(
        model=config.model,
        revision=config.revision,
        chat_template=config.chat_template,
        chat_template_kwargs=config.chat_template_kwargs | (variables or {}),
        max_model_len=config.max_model_len,
        dtype=config.dtype,
        engine=config.engine,
        env=config.env,
        stall_timeout_s=config.stall_timeout_s,
        backend=config.backend,
    )
    # Not validated: a run's other sections are not there, and nobody asks for them.
    return Config.model_construct(
        teacher=teacher,
        sampling=SamplingConfig(temperature=0.0, max_tokens=config.max_tokens),
        targets=TargetsConfig(top_k=TOP_K, probe_fraction=0.0),
        generate=GenerateConfig(),
    )


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _overhead(chat: chats.Chat, config: GuardConfig) -> int:
    """Tokens of the template around a short text. Raises `TemplateError` where it does not write what it is given."""
    longest = 0
    for what, messages in {
        "prompts": [_said("user", "Palermo")],
        "answers": [_said("user", "Palermo"), _said("assistant", "Agrigento")],
    }.items():
        if what not in config.reads:
            continue
        rendered = chat.render(messages)
        if any(message["content"] not in rendered for message in messages):
            raise TemplateError(
                f"chat_template: it does not write all of the {what} that the guard is to judge; set `reads`, or "
                "another template"
            )
        longest = max(longest, len(chat.prompt_ids(messages)))
    return longest


def _check_words(tokenizer: Any, question: QuestionConfig) -> None:
    """Raises `TemplateError` where the tokenizer begins a word for yes and one for no with the same token."""
    for space in ("", " "):
        for word in (*question.yes, *question.no):
            ids = tokenizer.backend_tokenizer.encode(space + word, add_special_tokens=False).ids
            # A word may begin with a token that is white space alone.
            first = next((text for i in range(len(ids)) if (text := tokenizer.decode(ids[: i + 1]).strip())), "")
            if len(_begins(first.casefold(), question)) != 1:
                raise TemplateError(
                    f"questions ({question.label}): its tokenizer begins {word!r} with {first!r}, which begins words "
                    "for yes and for no; choose words that differ in their first token"
                )


def _begins(written: str, question: QuestionConfig) -> set[bool]:
    """Whether `written`, which is folded, begins words for yes, for no, or both; it may be more than the word."""
    return {
        is_yes
        for is_yes, words in ((True, question.yes), (False, question.no))
        for word in map(str.casefold, words)
        if written and (word.startswith(written) or written.startswith(word))
    }


def _named(text: str, mark: str, labels: dict[str, str]) -> list[str]:
    """The labels of the kinds that an answer names."""
    items = text.partition(mark)[2].replace("\n", ",").split(",")
    named = {item.strip().casefold() for item in items}
    return [label for kind, label in labels.items() if kind.casefold() in named]
