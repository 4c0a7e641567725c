"""A teacher (and a student that writes) in plain torch: for models so small that an engine's start would cost more than
its answers. `teacher.backend: examples.on_policy.torch_teacher:TorchTeacher` puts it in vLLM's place.

Shape legend: B conversations, T tokens of the longest, S supervised tokens, V vocabulary, K targets per token, D draws
per token.
"""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer, TeacherError
from stillhouse.stages.teacher.draws import num_engine_draws

BATCH_ROWS = 32
ROWS_OF_LOGITS = 256


class _Asked(NamedTuple):
    """One call: a prompt to answer, or ids to score."""

    ids: npt.NDArray[np.int32]
    seed: int
    max_tokens: int
    places: npt.NDArray[np.int64]  # of supervised tokens; empty for a prompt
    asked_ids: npt.NDArray[np.int32] | None


@functools.lru_cache(maxsize=2)
def _model(folder: str, made: int) -> Any:
    """`made`: when, because a student's next weights may come under the same name."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class TorchTeacher:
    """Calls that come together make one batch. Draws and tokens depend on the seed of a call alone, but for rounding:
    how a batch is padded changes the last digits. Samples with a temperature, nothing else."""

    broken = False
    last_token_at = 0.0

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        sampling = config.sampling
        if (sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty) != (1.0, 0, 0.0, 1.0):
            raise TeacherError("sampling: TorchTeacher knows temperature alone; leave out top_p, top_k, min_p, penalty")
        self._model = _model(config.teacher.model, (Path(config.teacher.model) / "config.json").stat().st_mtime_ns)
        self.vocab_size = int(self._model.config.vocab_size)
        self._temperature, self._stop = sampling.temperature, stop_token_ids
        self._top_k, self._num_draws = config.targets.top_k, num_engine_draws(config.targets)
        self._waiting: list[tuple[_Asked, asyncio.Future[Answer]]] = []

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        return await self._asked(_Asked(prompt_ids, seed, max_tokens, np.empty(0, np.int64), None))

    async def score(
        self,
        token_ids: npt.NDArray[np.int32],
        supervised: npt.NDArray[np.bool_],
        request_id: str,
        seed: int,
        asked_ids: npt.NDArray[np.int32] | None = None,
    ) -> Answer:
        return await self._asked(_Asked(token_ids, seed, 0, np.flatnonzero(supervised), asked_ids))

    def shutdown(self) -> None:
        pass

    async def _asked(self, asked: _Asked) -> Answer:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((asked, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._work)  # after all others that are about to ask
        return await future

    def _work(self) -> None:
        waiting, self._waiting = sorted(self._waiting, key=lambda item: len(item[0].ids)), []
        for start in range(0, len(waiting), BATCH_ROWS):
            batch = waiting[start : start + BATCH_ROWS]
            kinds: list[tuple[bool, Callable[[list[_Asked]], list[Answer]]]] = [
                (True, self._scored),
                (False, self._written),
            ]
            for is_scored, work in kinds:
                chosen = [item for item in batch if bool(len(item[0].places)) == is_scored]
                answers = work([asked for asked, _ in chosen]) if chosen else []
                for (_, future), answer in zip(chosen, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)

    @torch.inference_mode()
    def _written(self, batch: list[_Asked]) -> list[Answer]:
        T = max(len(asked.ids) for asked in batch)
        ids_BT, mask_BT = (torch.zeros((len(batch), T), dtype=torch.int64) for _ in range(2))
        for row, asked in enumerate(batch):
            ids_BT[row, T - len(asked.ids) :] = torch.from_numpy(asked.ids.astype(np.int64))
            mask_BT[row, T - len(asked.ids) :] = 1
        randoms = [np.random.default_rng(asked.seed) for asked in batch]
        places_BT, cache = (mask_BT.cumsum(1) - 1).clamp_min(0), None
        is_going = np.ones(len(batch), np.bool_)
        steps: list[list[npt.NDArray[Any]]] = []
        while is_going.any():
            output = self._model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=places_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, logits_BV = output.past_key_values, output.logits[:, -1].float()
            token_B = self._sampled(logits_BV, randoms)
            steps.append([token_B.numpy(), *self._kept(logits_BV, token_B, batch[0].seed + len(steps))])
            limits = [len(steps) < asked.max_tokens for asked in batch]
            is_going &= ~np.isin(steps[-1][0], self._stop) & np.array(limits)
            ids_BT, places_BT = token_B[:, None], places_BT[:, -1:] + 1
            mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], 1)
        stacked = [np.stack(values, 1) for values in zip(*steps, strict=True)]
        return [self._answer(stacked, row, asked) for row, asked in enumerate(batch)]

    def _sampled(self, logits_BV: torch.Tensor, randoms: list[np.random.Generator]) -> torch.Tensor:
        if self._temperature == 0:
            return logits_BV.argmax(1)
        sums_BV = (logits_BV.double() / self._temperature).softmax(1).cumsum(1)
        at_B = torch.tensor([random.random() for random in randoms], dtype=torch.float64) * sums_BV[:, -1]
        return torch.searchsorted(sums_BV, at_B[:, None], right=True)[:, 0].clamp_max(self.vocab_size - 1)

    def _kept(self, logits_SV: torch.Tensor, tokens_S: torch.Tensor, seed: int) -> tuple[npt.NDArray[Any], ...]:
        """Own log-probabilities [S], top K [S, K] twice, draws [S, D]: all at temperature 1."""
        logprobs_SV = logits_SV.log_softmax(1)
        top = logprobs_SV.topk(self._top_k)
        draws_SD = torch.empty((len(tokens_S), 0), dtype=torch.int64)
        if self._num_draws:
            generator = torch.Generator().manual_seed(seed)
            draws_SD = torch.multinomial(logprobs_SV.exp(), self._num_draws, replacement=True, generator=generator)
        own_S = logprobs_SV.gather(1, tokens_S[:, None])[:, 0]
        return own_S.numpy(), top.indices.numpy(), top.values.numpy(), draws_SD.numpy()

    def _answer(self, stacked: list[npt.NDArray[Any]], row: int, asked: _Asked) -> Answer:
        tokens_S, own_S, ids_SK, logprobs_SK, draws_SD = (values[row, : asked.max_tokens] for values in stacked)
        ends = np.flatnonzero(np.isin(tokens_S, self._stop))
        S, reason = (int(ends[0]) + 1, "stop") if len(ends) else (len(tokens_S), "length")
        draws = draws_SD[:S].astype(np.int32) if self._num_draws else None
        written = tokens_S[:S].astype(np.int32)
        return Answer(written, ids_SK[:S].astype(np.int32), logprobs_SK[:S], own_S[:S], reason, draws)

    @torch.inference_mode()
    def _scored(self, batch: list[_Asked]) -> list[Answer]:
        ids_BT, mask_BT = (torch.zeros((len(batch), len(batch[-1].ids)), dtype=torch.int64) for _ in range(2))
        for row, asked in enumerate(batch):
            ids_BT[row, : len(asked.ids)] = torch.from_numpy(asked.ids.astype(np.int64))
            mask_BT[row, : len(asked.ids)] = 1
        hidden_BTD = self._model.model(ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        return [self._read(hidden_BTD[row], ids_BT[row], asked) for row, asked in enumerate(batch)]

    def _read(self, hidden_TD: torch.Tensor, ids_T: torch.Tensor, asked: _Asked) -> Answer:
        places_S = torch.from_numpy(asked.places)
        tokens_S = ids_T[places_S]
        parts: list[tuple[npt.NDArray[Any], ...]] = []
        more: list[npt.NDArray[np.float32]] = []
        for rows, tokens in zip((places_S - 1).split(ROWS_OF_LOGITS), tokens_S.split(ROWS_OF_LOGITS), strict=True):
            logits_SV = self._model.lm_head(hidden_TD[rows]).float()
            parts.append(self._kept(logits_SV, tokens, asked.seed + len(parts)))
            if asked.asked_ids is not None:
                begin = sum(map(len, more))
                ids_SQ = torch.from_numpy(asked.asked_ids[begin : begin + len(rows)].astype(np.int64))
                more.append(logits_SV.log_softmax(1).gather(1, ids_SQ).numpy())
        own_S, ids_SK, logprobs_SK, draws_SD = (np.concatenate(values) for values in zip(*parts, strict=True))
        draws = draws_SD.astype(np.int32) if self._num_draws else None
        tokens = tokens_S.numpy().astype(np.int32)
        asked_logprobs = np.concatenate(more) if more else None
        kept = (ids_SK.astype(np.int32), logprobs_SK, own_S)
        return Answer(tokens, *kept, "given", draws, asked_logprobs=asked_logprobs)
