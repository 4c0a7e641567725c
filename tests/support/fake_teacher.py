"""A teacher for tests of other parts: the real protocol, no model; a pure function of seed and prompt.

It misbehaves on demand, by environment variables.
"""

import asyncio
import errno
import os

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer, TeacherError
from stillhouse.stages.teacher.draws import num_engine_draws


class FakeTeacher:
    """Writes 1 to `max_tokens` random tokens, each drawn from a distribution over the whole vocabulary."""

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        self.vocab_size = 49152
        self._top_k = config.targets.top_k
        self._num_draws = num_engine_draws(config.targets)
        self._has_entropy = config.targets.has_entropy
        self._stop = stop_token_ids[0]
        self._die_on = os.environ.get("FAKE_TEACHER_DIES_ON")  # a prefix of request ids
        self._break_on = os.environ.get("FAKE_TEACHER_BREAKS_ON")
        self._raise_on = tuple(filter(None, os.environ.get("FAKE_TEACHER_RAISES_ON", "").split(",")))
        self._refuse = os.environ.get("FAKE_TEACHER_REFUSES")
        self._hang_on = os.environ.get("FAKE_TEACHER_HANGS_ON")
        self._refuse_over = int(os.environ.get("FAKE_TEACHER_REFUSES_OVER", "1000000"))
        self._delay_s = float(os.environ.get("FAKE_TEACHER_DELAY_S", "0"))
        if os.environ.get("FAKE_TEACHER_FAILS_TO_START") == "dies":
            os._exit(1)
        if os.environ.get("FAKE_TEACHER_FAILS_TO_START"):
            raise TeacherError("teacher: no such weights")
        if os.environ.get("FAKE_TEACHER_DISK_FULL"):
            _fill_disk()

    broken = False
    last_token_at = 0.0

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        await asyncio.sleep(self._delay_s)
        if self._die_on is not None and request_id.startswith(self._die_on):
            os._exit(1)
        if self._break_on is not None and request_id.startswith(self._break_on):
            self.broken = True
        if self._raise_on and request_id.startswith(self._raise_on):
            raise RuntimeError("this prompt is too much")
        if self._hang_on is not None and request_id.startswith(self._hang_on):
            await asyncio.sleep(1e6)
        if self.broken:
            raise RuntimeError("the engine is dead")
        if len(prompt_ids) > self._refuse_over or (self._refuse and request_id.startswith(self._refuse)):
            raise TeacherError(f"a prompt of {len(prompt_ids)} tokens")
        random = np.random.default_rng([seed, int(prompt_ids.sum())])
        S, K = int(random.integers(1, max_tokens + 1)), self._top_k
        ids_SK = np.stack([random.choice(self.vocab_size - 100, K, replace=False) + 100 for _ in range(S)]).astype(
            np.int32
        )
        weights_SK = np.sort(random.random((S, K)), axis=1)[:, ::-1]
        probs_SK = weights_SK / weights_SK.sum(axis=1, keepdims=True) * 0.9
        written = ids_SK[:, 0].copy()
        stopped = max_tokens > S
        if stopped:
            written[-1] = ids_SK[-1, 0] = self._stop
        logprobs_SK = np.log(probs_SK).astype(np.float32)
        draws = None
        if self._num_draws:  # as if there were one token beside the K
            rest = np.append(ids_SK, np.full((S, 1), 99), axis=1).astype(np.int32)
            p_SK = np.append(probs_SK, 1 - probs_SK.sum(axis=1, keepdims=True), axis=1)
            draws = np.stack([random.choice(i, self._num_draws, p=p) for i, p in zip(rest, p_SK, strict=True)])
        reason = "stop" if stopped else "length"
        return Answer(
            written, ids_SK, logprobs_SK, logprobs_SK[:, 0], reason, draws, entropies=self._entropies(probs_SK)
        )

    async def score(
        self,
        token_ids: npt.NDArray[np.int32],
        supervised: npt.NDArray[np.bool_],
        request_id: str,
        seed: int,
        asked_ids: npt.NDArray[np.int32] | None = None,
    ) -> Answer:
        """A pure function of seed and ids: a distribution over the whole vocabulary for each supervised token, which
        is in every second one the most probable, elsewhere none of the K."""
        places = np.flatnonzero(supervised)
        answer = await self.answer(token_ids[: places[0]], request_id, seed, 1)
        S, K = len(places), self._top_k
        random = np.random.default_rng([seed, int(token_ids.sum())])
        ids_SK = np.stack([random.choice(self.vocab_size - 100, K, replace=False) + 100 for _ in range(S)])
        written, is_inside_S = token_ids[places], np.arange(S) % 2 == 0
        for ids_K, token, is_inside in zip(ids_SK, written, is_inside_S, strict=True):
            ids_K[ids_K == token] = 98
            if is_inside:
                ids_K[0] = token
        weights_SK = np.sort(random.random((S, K)) + 0.1, axis=1)[:, ::-1]
        probs_SK = weights_SK / weights_SK.sum(axis=1, keepdims=True) * 0.9
        logprobs_SK = np.log(probs_SK).astype(np.float32)
        own_S = np.where(is_inside_S, logprobs_SK[:, 0], np.float32(-12.0))
        draws = None
        if self._num_draws:
            draws = np.stack(
                [random.choice(ids, self._num_draws, p=p / p.sum()) for ids, p in zip(ids_SK, probs_SK, strict=True)]
            )
        assert answer.finish_reason is not None
        asked = None if asked_ids is None else (-1 - asked_ids % 7).astype(np.float32)
        entropies = self._entropies(probs_SK)
        kept_ids = ids_SK.astype(np.int32)
        return Answer(written, kept_ids, logprobs_SK, own_S, "given", draws, None, asked, entropies)

    def _entropies(self, probs_SK: npt.NDArray[np.float64]) -> npt.NDArray[np.float32] | None:
        """As if all tokens beside the K were alike, so that none is more probable than one of the K."""
        if not self._has_entropy:
            return None
        rest_S, others = 1 - probs_SK.sum(axis=1), self.vocab_size - probs_SK.shape[1]
        entropies_S = -(probs_SK * np.log(probs_SK)).sum(axis=1) - rest_S * np.log(rest_S / others)
        return np.asarray(entropies_S, dtype=np.float32)

    def shutdown(self) -> None:
        pass


class OtherTeacher(FakeTeacher):
    """Another one: of the same prompt and seed it thinks otherwise."""

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        return await super().answer(prompt_ids, request_id, seed + 1, max_tokens)

    async def score(
        self,
        token_ids: npt.NDArray[np.int32],
        supervised: npt.NDArray[np.bool_],
        request_id: str,
        seed: int,
        asked_ids: npt.NDArray[np.int32] | None = None,
    ) -> Answer:
        return await super().score(token_ids, supervised, request_id, seed + 1, asked_ids)


def _fill_disk() -> None:
    """From here on this process can write no Parquet file."""

    def fsync(descriptor: int) -> None:
        if "/staged/" in os.readlink(f"/proc/self/fd/{descriptor}") and os.fstat(descriptor).st_size > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = fsync  # type: ignore[assignment]
