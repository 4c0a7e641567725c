"""generate: the teacher answers each prompt, turn by turn, and its distribution is kept for every token it wrote.

Ids are carried from the engine to the table and from turn to turn; no text is tokenised twice.

Shape legend: T tokens of a conversation, S supervised tokens, K targets kept per token, D draws per token.
"""

import asyncio
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas import tables, targets
from stillhouse.schemas.config import Config, GenerateConfig, TargetsConfig
from stillhouse.stages import fidelity
from stillhouse.stages.chat import Chat, TemplateError
from stillhouse.stages.teacher import Answer, Teacher, TeacherError

IGNORED = -100
"""Label of a token that the teacher did not write (PyTorch's cross-entropy ignores it)."""


@dataclass
class Sample:
    """One conversation as it grows: parts to be joined once, at the end."""

    sample_id: str
    row: int  # of the prompts table
    input_ids: list[npt.NDArray[np.int32]] = field(default_factory=list)
    labels: list[npt.NDArray[np.int32]] = field(default_factory=list)
    top_k: list[targets.TopK] = field(default_factory=list)
    draws: list[targets.Draws] = field(default_factory=list)
    probe: dict[str, Any] | None = None
    token_logprobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    drop_reason: str | None = None

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.input_ids))

    def add_prompt(self, text: str, ids: npt.NDArray[np.int32]) -> None:
        self.messages.append({"role": "user", "content": text})
        self.input_ids.append(ids)
        self.labels.append(np.full(len(ids), IGNORED, dtype=np.int32))

    def add_answer(self, text: str, answer: Answer, supervised: npt.NDArray[np.bool_], settings: TargetsConfig) -> None:
        """`supervised` [S]: which of the answer's tokens get labels and targets."""
        self.messages.append({"role": "assistant", "content": text})
        self.input_ids.append(answer.token_ids)
        self.labels.append(np.where(supervised, answer.token_ids, IGNORED).astype(np.int32))
        kept = slice(None) if supervised.all() else supervised  # a mask would copy
        # Encoded here, not at the shard's end: what the engine returned would double what a shard in flight holds.
        top_k = draws = None
        if settings.method != "sampled":
            top_k = targets.encode_top_k(
                answer.target_ids[kept], answer.target_logprobs[kept], settings.top_p, settings.precision
            )
            self.top_k.append(top_k)
        if settings.method != "top_k":
            assert answer.draws is not None
            draws = targets.encode_draws(answer.draws[kept])
            self.draws.append(draws)
        if answer.probe is not None and supervised[answer.probe[0]]:
            number = int(supervised[: answer.probe[0]].sum())
            found = fidelity.probe(answer.probe[1], top_k, draws, number, settings.precision)
            self.probe = found | {"token": number + sum(map(len, self.token_logprobs))}
        self.token_logprobs.append(answer.token_logprobs[kept])
        self.finish_reasons.append(answer.finish_reason)


class Generate:
    """Prompts in, completions out: `sampling.n` rows per prompt, in the prompts' order.

    Drop reasons: `template_refused` (the chat template or the guard against control tokens refuses the prompt),
    `too_long` (no room for an answer), `teacher_failed` (the engine refuses this prompt), `no_answer` (thinking never
    came to an end and is not to be learned).

    Raises `TemplateError` when the teacher's template or tokenizer cannot do what the configuration asks.
    """

    def __init__(self, config: Config, chat: Chat, teacher: Teacher) -> None:
        self._config = config
        self._chat = chat
        self._teacher = teacher
        check_template(config, chat)
        self._end_ids = {*chat.end_of_turn_ids(), *config.sampling.stop_token_ids}
        self._thinking = None if config.generate.thinking == "supervise" else Thinking(config.generate, chat)

    async def __call__(self, prompts: pa.Table) -> pa.Table:
        turns = prompts.column("user_turns").to_pylist()
        prompt_ids = prompts.column("prompt_id").to_pylist()
        samples = [
            Sample(f"{prompt_id}/{number}", row)
            for row, prompt_id in enumerate(prompt_ids)
            for number in range(self._config.sampling.n)
        ]
        systems = [
            draw_system_prompt(self._config.generate.system_prompts, self._config.sampling.seed, prompt_id)
            for prompt_id in prompt_ids
        ]
        await asyncio.gather(*(self._converse(s, turns[s.row], systems[s.row]) for s in samples))
        return _completions(prompts, samples, self._config.targets)

    @property
    def broken(self) -> bool:
        """Whether the teacher has failed for good: only a new process helps."""
        return self._teacher.broken

    def close(self) -> None:
        """Ends the teacher."""
        self._teacher.shutdown()

    async def _converse(self, sample: Sample, user_turns: list[str], system_prompt: str | None) -> None:
        """Fills `sample`. A conversation ends at its last turn, at a truncated answer, or before a turn that no longer
        fits the context; what was complete by then is kept."""
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        for turn, text in enumerate(user_turns):
            try:
                if turn == 0:
                    sample.messages += system
                    ids = self._chat.prompt_ids([*system, {"role": "user", "content": text}])
                else:
                    ids = self._chat.next_turn_ids(user_turns[: turn + 1], system_prompt)
                    if len(ids) and ids[0] == sample.input_ids[-1][-1]:
                        ids = ids[1:]  # the end of turn that the teacher wrote itself
            except TemplateError:
                if turn == 0:
                    sample.drop_reason = "template_refused"
                return
            room = self._config.teacher.max_model_len - sample.num_tokens - len(ids)
            if room < self._config.sampling.max_tokens:
                if turn == 0:
                    sample.drop_reason = "too_long"
                return
            seed = sample_seed(self._config.sampling.seed, sample.sample_id, turn)
            try:
                answer = await self._teacher.answer(
                    np.concatenate([*sample.input_ids, ids]),
                    f"{sample.sample_id}/{turn}",
                    seed,
                    self._config.sampling.max_tokens,
                )
            except TeacherError:
                if turn == 0:
                    sample.drop_reason = "teacher_failed"
                return
            settings = self._config.targets
            if settings.method != "top_k" and settings.draws_from == "top_k":
                answer = replace(answer, draws=draw_from_top_k(answer, settings.num_draws, seed))
            supervised = np.ones(len(answer.token_ids), dtype=np.bool_)
            if self._thinking is not None:
                span = self._thinking.span(answer.token_ids)
                supervised[span] = False
                if not supervised.any():
                    if turn == 0:
                        sample.drop_reason = "no_answer"
                    return
                if self._config.generate.thinking == "drop":
                    ids, answer, supervised = (
                        self._thinking.cut(ids),
                        _taken(answer, supervised),
                        supervised[supervised],
                    )
            sample.add_prompt(text, ids)
            sample.add_answer(self._text(answer.token_ids), answer, supervised, settings)
            if answer.finish_reason != "stop":
                return

    def _text(self, token_ids: npt.NDArray[np.int32]) -> str:
        """What the teacher said, without the token that ended its turn."""
        ids = token_ids.tolist()
        if ids and ids[-1] in self._end_ids:
            ids = ids[:-1]
        return str(self._chat.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def check_template(config: Config, chat: Chat) -> None:
    """Raises `TemplateError` when the teacher's template cannot do what the configuration asks of it: carry ids over
    turns, or take a system prompt."""
    system_prompts = set(config.generate.system_prompts or [None])
    for system_prompt in sorted({prompt is not None for prompt in system_prompts}):
        rewrites = chat.rewrites(system_prompt)
        if rewrites is not None and config.ingest.turns == "all":
            raise TemplateError(
                f"ingest.turns: all needs earlier turns as they were, but {rewrites}; set ingest.turns to first, "
                "generate.thinking to drop if that is what is stripped, or teacher.chat_template to one that keeps them"
            )


def longest_system_prompt(config: Config, chat: Chat) -> str | None:
    """The configured system prompt of most tokens, for checks of length before a prompt has drawn its own."""
    prompts = [prompt for prompt in config.generate.system_prompts or [] if prompt is not None]
    return max(prompts, key=lambda prompt: len(chat.tokenizer.encode(prompt)), default=None)


def _taken(answer: Answer, rows: npt.NDArray[np.bool_]) -> Answer:
    probe = answer.probe
    if probe is not None:
        probe = (int(rows[: probe[0]].sum()), probe[1]) if rows[probe[0]] else None
    return replace(
        answer,
        token_ids=answer.token_ids[rows],
        target_ids=answer.target_ids[rows],
        target_logprobs=answer.target_logprobs[rows],
        token_logprobs=answer.token_logprobs[rows],
        draws=None if answer.draws is None else answer.draws[rows],
        probe=probe,
    )


def draw_from_top_k(answer: Answer, num_draws: int, seed: int) -> npt.NDArray[np.int32]:
    """[S, D]: independent draws from what the top K of each token hold; -1 for one that fell outside of them.

    For engines that cannot draw themselves. Unbiased for the K tokens, and blind to all others: of the draws, as many
    are missing as the tail has mass.
    """
    random_SD = np.random.default_rng(seed).random((len(answer.token_ids), num_draws))
    mass_SK = np.exp(answer.target_logprobs.astype(np.float64)).cumsum(axis=1)
    draws_SD = np.full(random_SD.shape, -1, dtype=np.int32)
    for s, (mass_K, random_D) in enumerate(zip(mass_SK, random_SD, strict=True)):
        place_D = np.searchsorted(mass_K, random_D, side="right")
        inside_D = place_D < len(mass_K)
        draws_SD[s, inside_D] = answer.target_ids[s, place_D[inside_D]]
    return draws_SD


class Thinking:
    """Finds a reasoning teacher's thinking in what it wrote.

    Raises `TemplateError` when the teacher has no single tokens for `thinking_tokens`, or when its template opens
    thinking and something else behind it.
    """

    def __init__(self, config: GenerateConfig, chat: Chat) -> None:
        ids = []
        for text in config.thinking_tokens:
            encoded = chat.tokenizer.encode(text, add_special_tokens=False)
            if len(encoded) != 1:
                raise TemplateError(
                    f"generate.thinking: {text!r} is {len(encoded)} tokens of this teacher, not one; set "
                    "generate.thinking_tokens to what it writes, or generate.thinking to supervise"
                )
            ids.append(encoded[0])
        self._open, self._close = ids
        self._tokenizer = chat.tokenizer
        # Some templates open the thinking themselves, so that the teacher's first token is already inside.
        prompt = chat.prompt_ids([{"role": "user", "content": "x"}])
        opened = np.flatnonzero(prompt == self._open)
        closed = np.flatnonzero(prompt == self._close)
        self._num_opening = 0
        if len(opened) and (not len(closed) or closed[-1] < opened[-1]):
            self._num_opening = len(prompt) - int(opened[-1])

    def span(self, token_ids: npt.NDArray[np.int32]) -> slice:
        """Where in `token_ids` [S] the thinking is, its tokens and the blank ones behind it included; empty if none."""
        start = 0
        while start < len(token_ids) and not self._num_opening and self._blank(token_ids[start]):
            start += 1
        if not self._num_opening and (start == len(token_ids) or token_ids[start] != self._open):
            return slice(0, 0)
        closed = np.flatnonzero(token_ids == self._close)
        if not len(closed):
            return slice(0, len(token_ids))
        stop = int(closed[-1]) + 1
        while stop < len(token_ids) and self._blank(token_ids[stop]):
            stop += 1
        return slice(0, stop)

    def cut(self, prompt_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """`prompt_ids` without the opening of thinking that the template wrote."""
        return prompt_ids[: len(prompt_ids) - self._num_opening]

    def _blank(self, token_id: int) -> bool:
        text = self._tokenizer.decode([int(token_id)])
        return bool(text) and text.isspace()


def draw_system_prompt(system_prompts: list[str | None] | None, seed: int, prompt_id: str) -> str | None:
    """The one of `system_prompts` that `prompt_id` gets; the same for every sample of it, on every machine."""
    if not system_prompts:
        return None
    return system_prompts[_digest(seed, "system", prompt_id) % len(system_prompts)]


def sample_seed(seed: int, sample_id: str, turn: int) -> int:
    """A 63-bit seed that depends on nothing but the run's seed, the sample and the turn."""
    return _digest(seed, str(turn), sample_id) >> 1


def _digest(seed: int, purpose: str, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest())


def _completions(prompts: pa.Table, samples: list[Sample], settings: TargetsConfig) -> pa.Table:
    carried = prompts.take(pa.array([sample.row for sample in samples], type=pa.int64()))
    columns: dict[str, Any] = {
        "sample_id": pa.array([s.sample_id for s in samples], type=pa.string()),
        "messages": pa.array([s.messages for s in samples], type=tables.MESSAGES),
        "input_ids": _lists([s.input_ids for s in samples], pa.int32()),
        "labels": _lists([s.labels for s in samples], pa.int32()),
        "token_logprobs": _lists([s.token_logprobs for s in samples], pa.float32()),
        "finish_reasons": pa.array([s.finish_reasons for s in samples], type=pa.list_(pa.string())),
        "num_input_tokens": pa.array([s.num_tokens for s in samples], type=pa.int32()),
        "num_target_tokens": pa.array([sum(map(len, s.token_logprobs)) for s in samples], type=pa.int32()),
        "probe": pa.array([s.probe for s in samples], type=tables.PROBE),
        "num_draws": pa.array([settings.num_draws] * len(samples), type=pa.int32()),
        "target_precision": pa.array([settings.precision] * len(samples), type=pa.float32()),
        "drop_reason": pa.array([s.drop_reason for s in samples], type=pa.string()),
    }
    for field_ in tables.target_fields(settings):
        kind, _, name = field_.name.partition("_")
        if field_.name not in columns:
            rows = [[getattr(part, name) for part in (s.top_k if kind == "target" else s.draws)] for s in samples]
            columns[field_.name] = _lists(rows, field_.type.value_type)
    labels = carried.schema.field("prompt_scores").type.names if "prompt_scores" in carried.column_names else ()
    schema = tables.marked(tables.completions(labels, settings))
    return pa.table(
        [columns[name] if name in columns else carried.column(name) for name in schema.names], schema=schema
    )


def _lists(rows: list[list[npt.NDArray[Any]]], value_type: pa.DataType) -> pa.ListArray:
    """list<value_type>, one row per inner list of arrays, which are joined.

    Raises ValueError when a shard holds more values than Arrow's 32-bit offsets can count.
    """
    lengths = [sum(map(len, row)) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if offsets[-1] >= 2**31:
        raise ValueError(f"generate: a shard of {offsets[-1]} target values exceeds 2^31; lower ingest.rows_per_shard")
    parts = [part for row in rows for part in row]
    values = np.concatenate(parts) if parts else np.empty(0)
    dtype = value_type.to_pandas_dtype()
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), pa.array(values.astype(dtype, copy=False), type=value_type)
    )
