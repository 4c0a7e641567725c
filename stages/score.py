"""score: the teacher reads conversations that have answers, and its distribution is kept for every token of these.

The peer of `generate`: the same columns come out. Ids are those that the source gives, or what the teacher's chat
template makes of the text, under the same guard: neither a question nor an answer can speak as control.

Shape legend: T tokens of a conversation, S supervised tokens, Q more ids asked about per token.
"""

import asyncio
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.schemas import tables
from stillhouse.schemas.config import Config
from stillhouse.schemas.lists import supervised_runs
from stillhouse.stages.teacher import Answer, ControlTextError, Scorer, TeacherError, TemplateError, fault
from stillhouse.stages.teacher.channels import Channels, without_end
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.completions import Sample, completions
from stillhouse.stages.teacher.conversing import Conversing, check_template, sample_seed, system_prompts
from stillhouse.stages.teacher.draws import draw_from_top_k

GIVEN, LENGTH = "given", "length"
"""Finish reasons: an answer that came whole, and one of which the end was cut off."""


class Turn(NamedTuple):
    """A question and its answer as ids."""

    prompt: npt.NDArray[np.int32]  # from the end of the turn before to the opening of the teacher's
    answer: npt.NDArray[np.int32]  # with the token that ends the turn
    supervised: npt.NDArray[np.bool_]  # of the answer: which tokens are learned
    asked_ids: npt.NDArray[np.int32]  # [S, Q] more ids that the source asks about, of each of these
    student_logprobs: npt.NDArray[np.float32]  # [S] of who wrote it; empty where the source does not say


class _RefusedError(Exception):
    """A conversation cannot be scored, for a reason."""


class Score(Conversing):
    """Conversations in, completions out, row for row.

    Drop reasons: `template_refused` (the chat template or the guard refuses the conversation), `control_tokens` (an
    answer spells a control token), `too_long` (no answer fits the teacher's context), `unknown_ids` (given ids are
    outside of the teacher's vocabulary), `empty_answer` (nothing is left of a student's answer), `teacher_failed` (the
    engine refuses this conversation), `invalid_logprobs` (numbers that are no log-probabilities).

    Raises `TemplateError` when the teacher's template or tokenizer cannot do what the configuration asks.
    """

    def __init__(self, config: Config, chat: Chat, teacher: Scorer) -> None:
        super().__init__(teacher)
        assert config.score is not None
        self._config, self._settings, self._chat, self._scorer = config, config.score, chat, teacher
        self._are_ids_given = config.given_ids or config.rollout is not None
        if not self._are_ids_given:
            check_template(config, chat)
            chat.answer_ids("An answer.")
        self._end_ids = set(chat.end_of_turn_ids())
        self._control_ids = set(chat.control_ids.values())
        self._channels = Channels(chat, config.generate.thinking_tokens)

    async def __call__(self, prompts: pa.Table) -> pa.Table:
        columns = ["user_turns", "answers", *tables.GIVEN.names[1:]]
        rows = prompts.select(columns).to_pylist()
        if "sample_id" in prompts.column_names:  # of a student
            names = prompts.column("sample_id").to_pylist()
        else:
            names = [f"{name}/0" for name in prompts.column("prompt_id").to_pylist()]
        samples = [Sample(name, row) for row, name in enumerate(names)]
        systems = system_prompts(self._config.writer, prompts)
        await asyncio.gather(*(self._score(sample, rows[sample.row], systems[sample.row]) for sample in samples))
        return completions(
            prompts,
            samples,
            self._config.targets,
            asked=self._config.asks_more,
            student=self._settings.student_logprobs is not None or self._config.rollout is not None,
        )

    def _num_tokens(self) -> int:
        return self._num_ended_tokens  # an engine writes one token for each conversation

    async def _score(self, sample: Sample, row: dict[str, Any], system_prompt: str | None) -> None:
        with self._counted():
            try:
                turns = self._fitting(self._turns(row, system_prompt))
                answer = await self._scored(sample, turns)
            except _RefusedError as refused:
                sample.drop_reason = str(refused)
                return
            if system_prompt is not None:
                sample.messages.append({"role": "system", "content": system_prompt})
            self._lay_out(sample, turns, row["user_turns"], answer)
            sample.rendering_differs = self._channels.difference(
                sample.messages, np.concatenate(sample.input_ids), sample.finish_reasons[-1]
            )
            self._num_ended_tokens += len(answer.token_ids)

    def _turns(self, row: dict[str, Any], system_prompt: str | None) -> list[Turn]:
        if self._are_ids_given:
            turns = self._given_turns(row)
        else:
            try:
                turns = self._rendered_turns(row["user_turns"], row["answers"], system_prompt)
            except ControlTextError:
                raise _RefusedError("control_tokens") from None
            except TemplateError:
                raise _RefusedError("template_refused") from None
        if self._settings.answers == "last":
            turns[:-1] = [
                turn._replace(
                    supervised=np.zeros(len(turn.answer), np.bool_),
                    asked_ids=turn.asked_ids[:0],
                    student_logprobs=turn.student_logprobs[:0],
                )
                for turn in turns[:-1]
            ]
        return turns

    def _rendered_turns(self, questions: list[str], answers: list[str], system_prompt: str | None) -> list[Turn]:
        """The turns of a conversation as the template writes them, each prompt as `generate` would have asked it."""
        turns: list[Turn] = []
        for number, text in enumerate(answers):
            if number == 0:
                prompt = self._chat.prompt_ids([{"role": "user", "content": questions[0]}], system_prompt)
            else:
                prompt = self._chat.next_turn_ids(questions[: number + 1], system_prompt)
                if int(prompt[0]) == int(turns[-1].answer[-1]):
                    prompt = prompt[1:]  # the end of turn, which stands after the answer already
                elif int(prompt[0]) in self._control_ids:
                    raise TemplateError("the chat template ends earlier answers with another token than the last one")
            answer = self._chat.answer_ids(text)
            turns.append(_turn(prompt, answer))
        return turns

    def _given_turns(self, row: dict[str, Any]) -> list[Turn]:
        """The same of given ids: a turn is what comes before a run of labels, and the run."""
        ids_T = np.array(row["given_ids"], np.int32)
        asked = np.array(row["asked_ids"] or [], np.int32)
        if max(ids_T.max(), asked.max(initial=0)) >= self._scorer.vocab_size:
            raise _RefusedError("unknown_ids")
        starts, ends = supervised_runs(np.array(row["given_labels"], np.int32))
        if len(starts) != len(row["user_turns"]):
            # A student's answer was a control token alone, which the template's end of turn took the place of.
            raise _RefusedError("empty_answer")
        asked_SQ = asked.reshape(int((ends - starts).sum()), -1)
        own_S = np.array(row["student_logprobs"] or [], np.float32)
        done, number, turns = 0, 0, []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            here = slice(number, number + end - start)
            turn = _turn(ids_T[done:start], ids_T[start:end], asked_SQ[here])
            turns.append(turn._replace(student_logprobs=own_S[here]))
            done, number = end, here.stop
        return turns

    def _fitting(self, turns: list[Turn]) -> list[Turn]:
        """The turns that fit the teacher's context, the last of them cut where that is asked for."""
        room = self._config.teacher.max_model_len
        fitting: list[Turn] = []
        for turn in turns:
            left = room - len(turn.prompt) - len(turn.answer)
            if left < 0:
                num_kept = room - len(turn.prompt)
                if self._settings.cut_long and num_kept > 0:
                    kept = slice(num_kept)
                    cut = _turn(turn.prompt, turn.answer[kept], turn.asked_ids[kept])
                    logprobs = turn.student_logprobs[kept]
                    fitting.append(cut._replace(supervised=turn.supervised[kept], student_logprobs=logprobs))
                break
            fitting.append(turn)
            room = left
        if not any(turn.supervised.any() for turn in fitting):
            raise _RefusedError("too_long")
        return fitting

    async def _scored(self, sample: Sample, turns: list[Turn]) -> Answer:
        """The answer of all supervised tokens of a conversation."""
        ids_T = np.concatenate([part for turn in turns for part in (turn.prompt, turn.answer)])
        supervised_T = np.concatenate(
            [part for turn in turns for part in (np.zeros(len(turn.prompt), np.bool_), turn.supervised)]
        )
        seed = sample_seed(self._config.sampling.seed, sample.sample_id, 0)
        try:
            asked_SQ = np.concatenate([turn.asked_ids for turn in turns])
            answer = await self._scorer.score(
                ids_T, supervised_T, sample.sample_id, seed, asked_SQ if asked_SQ.size else None
            )
        except TeacherError:
            raise _RefusedError("teacher_failed") from None
        if fault(answer, self._scorer.vocab_size) is not None:
            raise _RefusedError("invalid_logprobs")
        settings = self._config.targets
        if settings.method != "top_k" and settings.draws_from == "top_k":
            answer = replace(answer, draws=draw_from_top_k(answer, settings.num_draws, seed))
        return answer

    def _lay_out(self, sample: Sample, turns: list[Turn], questions: list[str], answer: Answer) -> None:
        """Fill `sample`, giving each turn its part of `answer`."""
        number_S = np.repeat(np.arange(len(turns)), [int(turn.supervised.sum()) for turn in turns])
        for number, (turn, question) in enumerate(zip(turns, questions[: len(turns)], strict=True)):
            sample.add_prompt(question, turn.prompt)
            ends = int(turn.answer[-1]) in self._end_ids | self._control_ids
            reason = GIVEN if ends or number < len(turns) - 1 else LENGTH
            words = without_end(turn.answer.tolist(), reason, self._end_ids, self._control_ids)
            message = self._channels.message(words, is_opened=True)
            if not turn.supervised.any():
                sample.add_unsupervised(message, turn.answer, reason)
                continue
            part = replace(answer.only(number_S == number), finish_reason=reason)
            sample.add_answer(message, part, turn.supervised, self._config.targets)
            sample.asked_ids.append(turn.asked_ids.ravel())
            sample.student_logprobs.append(turn.student_logprobs)


def _turn(
    prompt: npt.NDArray[np.int32],
    answer: npt.NDArray[np.int32],
    asked_ids: npt.NDArray[np.int32] | None = None,
) -> Turn:
    """One of which the whole answer is learned; by default nothing more is asked."""
    asked_ids = np.empty((len(answer), 0), np.int32) if asked_ids is None else asked_ids
    return Turn(prompt, answer, np.ones(len(answer), np.bool_), asked_ids, np.empty(0, np.float32))
