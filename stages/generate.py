"""generate: the teacher answers each prompt, turn by turn, and its distribution is kept for every token it wrote.

Ids are carried from the engine to the table and from turn to turn; no text is tokenised twice.

Shape legend: T tokens of a conversation, S supervised tokens, K targets kept per token, D draws per token.
"""

import asyncio
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer, Teacher, TeacherError, TemplateError, fault
from stillhouse.stages.teacher.channels import Channels, without_end
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.completions import Sample, completions
from stillhouse.stages.teacher.conversing import Conversing, check_template, sample_seed, system_prompts
from stillhouse.stages.teacher.draws import draw_from_top_k
from stillhouse.stages.teacher.thinking import Thinking

INTERRUPTED = ("abort", "error", None)
"""Finish reasons of answers that the engine gave up: vLLM 0.32 aborts all that is under way when it is asked to stop,
which spot machines do, and has `error` for what may be tried again. The shard is: nothing was wrong with the row."""
CALLS_A_TOOL = ("<|call|>", "<|eom_id|>")
"""Ends of a turn (gpt-oss, Llama 3) after which a tool speaks and not the user: the conversation ends there."""


class Generate(Conversing):
    """Prompts in, completions out: `sampling.n` rows per prompt, in the prompts' order.

    Drop reasons: `template_refused` (the chat template or the guard against control tokens refuses the prompt),
    `too_long` (no room for an answer), `teacher_failed` (the engine refuses this prompt), `unfinished_answer` (it ended
    neither by itself nor by length), `invalid_logprobs` (numbers that are no log-probabilities), `no_answer` (thinking
    never came to an end and is not to be learned).

    Raises `TemplateError` when the teacher's template or tokenizer cannot do what the configuration asks.
    """

    def __init__(self, config: Config, chat: Chat, teacher: Teacher) -> None:
        super().__init__(teacher)
        self._config = config
        self._chat = chat
        check_template(config, chat)
        self._end_ids = {*chat.end_of_turn_ids(), *config.sampling.stop_token_ids}
        self._control_ids = set(chat.control_ids.values())
        self._tool_ids = {chat.control_ids[text] for text in CALLS_A_TOOL if text in chat.control_ids}
        self._channels = Channels(chat, config.generate.thinking_tokens)
        self._thinking = None if config.generate.thinking == "supervise" else Thinking(config.generate, chat)

    async def __call__(self, prompts: pa.Table) -> pa.Table:
        turns = prompts.column("user_turns").to_pylist()
        prompt_ids = prompts.column("prompt_id").to_pylist()
        samples = [
            Sample(f"{prompt_id}/{number}", row)
            for row, prompt_id in enumerate(prompt_ids)
            for number in range(self._config.sampling.n)
        ]
        systems = system_prompts(self._config, prompts)
        await asyncio.gather(*(self._count_and_converse(s, turns[s.row], systems[s.row]) for s in samples))
        return completions(prompts, samples, self._config.targets)

    async def _count_and_converse(self, sample: Sample, user_turns: list[str], system_prompt: str | None) -> None:
        with self._counted():
            await self._converse(sample, user_turns, system_prompt)
            if sample.finish_reasons:
                sample.rendering_differs = self._channels.difference(
                    sample.messages, np.concatenate(sample.input_ids), sample.finish_reasons[-1]
                )

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
