"""generate: the teacher answers each prompt, turn by turn, and its distribution is kept for every token it wrote.

Ids are carried from the engine to the table and from turn to turn; no text is tokenised twice.

Shape legend: T tokens of a conversation, S supervised tokens, K targets kept per token, D draws per token.
"""

import asyncio
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer, Load, Teacher, TeacherError, TemplateError, fault
from stillhouse.stages.teacher.channels import Channels, without_end
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.completions import Sample, completions
from stillhouse.stages.teacher.draws import draw_from_top_k
from stillhouse.stages.teacher.thinking import Thinking

INTERRUPTED = ("abort", "error", None)
"""Finish reasons of answers that the engine gave up: vLLM 0.32 aborts all that is under way when it is asked to stop,
which spot machines do, and has `error` for what may be tried again. The shard is: nothing was wrong with the row."""
CALLS_A_TOOL = ("<|call|>", "<|eom_id|>")
"""Ends of a turn (gpt-oss, Llama 3) after which a tool speaks and not the user: the conversation ends there."""


class GenerateProgress(NamedTuple):
    """Counts since the stage was built, over all the shards that it works on."""

    num_done: int  # samples that have ended
    num_under_way: int  # samples that have begun and not ended
    num_tokens: int  # tokens that the teacher has written, those of answers under way included


class Generate:
    """Prompts in, completions out: `sampling.n` rows per prompt, in the prompts' order.

    Drop reasons: `template_refused` (the chat template or the guard against control tokens refuses the prompt),
    `too_long` (no room for an answer), `teacher_failed` (the engine refuses this prompt), `unfinished_answer` (it ended
    neither by itself nor by length), `invalid_logprobs` (numbers that are no log-probabilities), `no_answer` (thinking
    never came to an end and is not to be learned).

    Raises `TemplateError` when the teacher's template or tokenizer cannot do what the configuration asks.
    """

    def __init__(self, config: Config, chat: Chat, teacher: Teacher) -> None:
        self._config = config
        self._chat = chat
        self._teacher = teacher
        check_template(config, chat)
        self._end_ids = {*chat.end_of_turn_ids(), *config.sampling.stop_token_ids}
        self._control_ids = set(chat.control_ids.values())
        self._tool_ids = {chat.control_ids[text] for text in CALLS_A_TOOL if text in chat.control_ids}
        self._channels = Channels(chat, config.generate.thinking_tokens)
        self._thinking = None if config.generate.thinking == "supervise" else Thinking(config.generate, chat)
        self._num_done = self._num_under_way = self._num_ended_tokens = 0

    async def __call__(self, prompts: pa.Table) -> pa.Table:
        turns = prompts.column("user_turns").to_pylist()
        prompt_ids = prompts.column("prompt_id").to_pylist()
        samples = [
            Sample(f"{prompt_id}/{number}", row)
            for row, prompt_id in enumerate(prompt_ids)
            for number in range(self._config.sampling.n)
        ]
        asked = self._config.generate.system_prompts
        systems = (
            prompts.column("system_prompt").to_pylist()
            if asked == "source"
            else [draw_system_prompt(asked, self._config.sampling.seed, prompt_id) for prompt_id in prompt_ids]
        )
        await asyncio.gather(*(self._count_and_converse(s, turns[s.row], systems[s.row]) for s in samples))
        return completions(prompts, samples, self._config.targets)

    @property
    def broken(self) -> bool:
        """Whether the teacher has failed for good: only a new process helps."""
        return self._teacher.broken

    def progress(self) -> GenerateProgress:
        """How far the stage is; may be called from another thread. A teacher that cannot tell how many tokens it has
        written counts those of the answers that have ended."""
        num_tokens = getattr(self._teacher, "num_tokens", self._num_ended_tokens)
        return GenerateProgress(self._num_done, self._num_under_way, num_tokens)

    @property
    def load(self) -> Load:
        """How full the teacher's engine is, as far as it tells; may be read from another thread."""
        load: Load = getattr(self._teacher, "load", Load())
        return load

    def close(self) -> None:
        """End the teacher."""
        self._teacher.shutdown()

    async def _count_and_converse(self, sample: Sample, user_turns: list[str], system_prompt: str | None) -> None:
        self._num_under_way += 1
        try:
            await self._converse(sample, user_turns, system_prompt)
            if sample.finish_reasons:
                sample.rendering_differs = self._channels.difference(
                    sample.messages, np.concatenate(sample.input_ids), sample.finish_reasons[-1]
                )
            self._num_done += 1
        finally:
            self._num_under_way -= 1

    async def _converse(self, sample: Sample, user_turns: list[str], system_prompt: str | None) -> None:
        """Fill `sample`. A conversation ends at its last turn, at an answer that is cut off or calls a tool, or before
        a turn that no longer fits the context; what was complete by then is kept."""
        settings = self._config.sampling
        for turn, text in enumerate(user_turns):
            try:
                ids, num_ends = self._prompt_ids(sample, user_turns[: turn + 1], system_prompt)
            except TemplateError:
                sample.drop_reason = "template_refused" if turn == 0 else None
                return
            before = np.concatenate([*sample.input_ids, ids[:0]])
            context = np.concatenate([before[: len(before) - num_ends], ids])
            room = self._config.teacher.max_model_len - len(context)
            if room < settings.max_tokens:
                sample.drop_reason = "too_long" if turn == 0 else None
                return
            seed = sample_seed(settings.seed, sample.sample_id, turn)
            try:
                answer = await self._teacher.answer(context, f"{sample.sample_id}/{turn}", seed, settings.max_tokens)
            except TeacherError:
                sample.drop_reason = "teacher_failed" if turn == 0 else None
                return
            self._num_ended_tokens += len(answer.token_ids)
            if answer.finish_reason in INTERRUPTED:
                raise RuntimeError(f"generate: the teacher ended an answer with {answer.finish_reason!r}")
            if answer.finish_reason not in ("stop", "length"):
                sample.drop_reason = "unfinished_answer" if turn == 0 else None
                return
            if fault(answer, self._teacher.vocab_size) is not None:
                sample.drop_reason = "invalid_logprobs" if turn == 0 else None
                return
            if not self._add_turn(sample, text, ids, answer, seed, num_ends):
                sample.drop_reason = "no_answer" if turn == 0 else None
                return
            if answer.finish_reason != "stop" or int(answer.token_ids[-1]) in self._tool_ids:
                return

    def _prompt_ids(
        self, sample: Sample, user_turns: list[str], system_prompt: str | None
    ) -> tuple[npt.NDArray[np.int32], int]:
        """What the teacher must read next [T], after what `sample` holds, to answer the last of `user_turns`; and how
        many of the last ids of `sample` it takes the place of: 1 where the teacher ended its turn with another control
        token than the template does, because no template writes both."""
        if len(user_turns) == 1:
            system: list[dict[str, str | None]] = []
            if system_prompt is not None:
                system = [{"role": "system", "content": system_prompt}]
            sample.messages += system
            return self._chat.prompt_ids([*system, {"role": "user", "content": user_turns[0]}]), 0
        ids = self._chat.next_turn_ids(user_turns, system_prompt)
        end = int(sample.input_ids[-1][-1])
        if len(ids) and ids[0] == end:
            return ids[1:], 0  # the end of turn that the teacher wrote itself
        return ids, int(end in self._control_ids)

    def _add_turn(
        self, sample: Sample, text: str, ids: npt.NDArray[np.int32], answer: Answer, seed: int, num_ends: int
    ) -> bool:
        """Add a prompt and its answer to `sample`, in the place of its last `num_ends` ids. Returns False, and adds
        nothing, if none of it is to be learned."""
        settings = self._config.targets
        if settings.method != "top_k" and settings.draws_from == "top_k":
            answer = replace(answer, draws=draw_from_top_k(answer, settings.num_draws, seed))
        supervised = np.ones(len(answer.token_ids), dtype=np.bool_)
        if self._thinking is not None:
            supervised[self._thinking.span(answer.token_ids)] = False
            if not supervised.any():
                return False
            if self._config.generate.thinking == "drop":
                ids, answer = self._thinking.cut(ids), answer.only(supervised)
                supervised = supervised[supervised]
        if num_ends:
            sample.cut_end()
        sample.add_prompt(text, ids)
        sample.add_answer(self._message(answer), answer, supervised, settings)
        return True

    def _message(self, answer: Answer) -> dict[str, str | None]:
        """What the teacher said, without the token that ended its turn."""
        ids = without_end(answer.token_ids.tolist(), answer.finish_reason, self._end_ids, self._control_ids)
        return self._channels.message(ids, is_opened=self._config.generate.thinking != "drop")


def check_template(config: Config, chat: Chat) -> None:
    """Raises `TemplateError` when the teacher's template cannot do what the configuration asks of it: open a turn for
    the teacher, take a system prompt, or carry ids over turns."""
    asked = config.generate.system_prompts
    system_prompts = {None, ""} if asked == "source" else set(asked or [None])
    for system_prompt in sorted({prompt is not None for prompt in system_prompts}):
        chat.jinja.require(system_prompt)
        rewrites = chat.rewrites(system_prompt)
        if rewrites is not None and config.ingest.turns == "all":
            raise TemplateError(
                f"ingest.turns: all needs earlier turns as they were, but {rewrites}; set ingest.turns to first, "
                "generate.thinking to drop if that is what is stripped, or teacher.chat_template to one that keeps them"
            )


def longest_system_prompt(config: Config, chat: Chat) -> str | None:
    """The configured system prompt with the most tokens, to check lengths before a prompt has drawn its own. None where
    each prompt's own is used: `ingest` counts it."""
    asked = config.generate.system_prompts
    prompts = [prompt for prompt in asked or [] if prompt is not None] if asked != "source" else []
    return max(prompts, key=lambda prompt: len(chat.tokenizer.encode(prompt)), default=None)


def draw_system_prompt(system_prompts: list[str | None] | None, seed: int, prompt_id: str) -> str | None:
    """The one of `system_prompts` that the prompt `prompt_id` gets: the same for all its samples, on every machine."""
    if not system_prompts:
        return None
    return system_prompts[_digest(seed, "system", prompt_id) % len(system_prompts)]


def sample_seed(seed: int, sample_id: str, turn: int) -> int:
    """A 63-bit seed that depends on nothing but the run's seed, the sample and the turn."""
    return _digest(seed, str(turn), sample_id) >> 1


def _digest(seed: int, purpose: str, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest())
