"""generate: the teacher answers each prompt, turn by turn, and its distribution is kept for every token it wrote.

Ids are carried from the engine to the table and from turn to turn; no text is tokenised twice.

Shape legend: T tokens of a conversation, S supervised tokens, K targets kept per token.
"""

import asyncio
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas import tables, targets
from schemas.config import Config
from stages.chat import Chat, TemplateError
from stages.teacher import Answer, Teacher, TeacherError

IGNORED = -100
"""Label of a token that the teacher did not write (PyTorch's cross-entropy ignores it)."""


@dataclass
class Sample:
    """One conversation as it grows: parts to be joined once, at the end."""

    sample_id: str
    row: int  # of the prompts table
    input_ids: list[npt.NDArray[np.int32]] = field(default_factory=list)
    labels: list[npt.NDArray[np.int32]] = field(default_factory=list)
    distributions: list[targets.Targets] = field(default_factory=list)
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

    def add_answer(self, text: str, answer: Answer) -> None:
        self.messages.append({"role": "assistant", "content": text})
        self.input_ids.append(answer.token_ids)
        self.labels.append(answer.token_ids)
        # Rounded here, not at the shard's end: float32 rows would double what a shard in flight holds.
        self.distributions.append(targets.encode(answer.target_ids, answer.target_logprobs))
        self.token_logprobs.append(answer.token_logprobs)
        self.finish_reasons.append(answer.finish_reason)


class Generate:
    """Prompts in, completions out: `sampling.n` rows per prompt, in the prompts' order.

    Drop reasons: `template_refused` (the chat template or the guard against control tokens refuses the prompt),
    `too_long` (no room for an answer), `teacher_failed` (the engine refuses this prompt).
    """

    def __init__(self, config: Config, chat: Chat, teacher: Teacher) -> None:
        self._config = config
        self._chat = chat
        self._teacher = teacher
        self._end_ids = {*chat.end_of_turn_ids(), *config.sampling.stop_token_ids}

    async def __call__(self, prompts: pa.Table) -> pa.Table:
        turns = prompts.column("user_turns").to_pylist()
        samples = [
            Sample(f"{prompt_id}/{number}", row)
            for row, prompt_id in enumerate(prompts.column("prompt_id").to_pylist())
            for number in range(self._config.sampling.n)
        ]
        await asyncio.gather(*(self._converse(sample, turns[sample.row]) for sample in samples))
        return _completions(prompts, samples)

    def close(self) -> None:
        """Ends the teacher."""
        self._teacher.shutdown()

    async def _converse(self, sample: Sample, user_turns: list[str]) -> None:
        """Fills `sample`. A conversation ends at its last turn, at a truncated answer, or before a turn that no longer
        fits the context; what was complete by then is kept."""
        for turn, text in enumerate(user_turns):
            try:
                if turn == 0:
                    ids = self._chat.prompt_ids([{"role": "user", "content": text}])
                else:
                    ids = self._chat.next_turn_ids(user_turns[: turn + 1])
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
            try:
                answer = await self._teacher.answer(
                    np.concatenate([*sample.input_ids, ids]),
                    f"{sample.sample_id}/{turn}",
                    sample_seed(self._config.sampling.seed, sample.sample_id, turn),
                    self._config.sampling.max_tokens,
                )
            except TeacherError:
                if turn == 0:
                    sample.drop_reason = "teacher_failed"
                return
            sample.add_prompt(text, ids)
            sample.add_answer(self._text(answer.token_ids), answer)
            if answer.finish_reason != "stop":
                return

    def _text(self, token_ids: npt.NDArray[np.int32]) -> str:
        """What the teacher said, without the token that ended its turn."""
        ids = token_ids.tolist()
        if ids and ids[-1] in self._end_ids:
            ids = ids[:-1]
        return str(self._chat.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def sample_seed(seed: int, sample_id: str, turn: int) -> int:
    """A 63-bit seed that depends on nothing but the run's seed, the sample and the turn."""
    return int.from_bytes(blake2b(f"{seed}/{turn}/{sample_id}".encode(), digest_size=8).digest()) >> 1


def _completions(prompts: pa.Table, samples: list[Sample]) -> pa.Table:
    carried = prompts.take(pa.array([sample.row for sample in samples], type=pa.int64()))
    columns: dict[str, Any] = {
        "sample_id": pa.array([s.sample_id for s in samples], type=pa.string()),
        "messages": pa.array([s.messages for s in samples], type=tables.MESSAGES),
        "input_ids": _lists([s.input_ids for s in samples], pa.int32()),
        "labels": _lists([s.labels for s in samples], pa.int32()),
        "target_ids": _lists([[t.ids.ravel() for t in s.distributions] for s in samples], pa.int32()),
        "target_logprobs": _lists([[t.logprobs.ravel() for t in s.distributions] for s in samples], pa.float16()),
        "target_tail": _lists([[t.tail for t in s.distributions] for s in samples], pa.float16()),
        "token_logprobs": _lists([s.token_logprobs for s in samples], pa.float32()),
        "finish_reasons": pa.array([s.finish_reasons for s in samples], type=pa.list_(pa.string())),
        "num_input_tokens": pa.array([s.num_tokens for s in samples], type=pa.int32()),
        "num_target_tokens": pa.array([sum(map(len, s.token_logprobs)) for s in samples], type=pa.int32()),
        "drop_reason": pa.array([s.drop_reason for s in samples], type=pa.string()),
    }
    labels = carried.schema.field("prompt_scores").type.names if "prompt_scores" in carried.column_names else ()
    schema = tables.marked(tables.completions(labels))
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
