"""A watchdog over a teacher: an engine that hangs looks like one that works, so what counts is that tokens come."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from stillhouse.stages.teacher import Answer, Capacity, Load, Scorer, Teacher


class Watchdog:
    """`teacher`, but `broken` once no token has come for `timeout_s` while answers were under way. For a teacher that
    does not report tokens, once no answer has ended for that long.

    All answers under way then fail with RuntimeError; the engine that hangs is not waited for.
    """

    def __init__(self, teacher: Teacher, timeout_s: float) -> None:
        self.vocab_size = teacher.vocab_size
        self._teacher = teacher
        self._timeout_s = timeout_s
        self._num_under_way = 0
        self._last_end_s = 0.0  # of an answer, or the start of the first one
        self._hangs = False

    @property
    def broken(self) -> bool:
        return self._hangs or self._teacher.broken

    @property
    def last_token_at(self) -> float:
        return self._teacher.last_token_at

    @property
    def num_tokens(self) -> int:
        return int(self._teacher.num_tokens)  # type: ignore[attr-defined]  # AttributeError: it cannot tell

    @property
    def load(self) -> Load:
        load: Load = getattr(self._teacher, "load", Load())
        return load

    @property
    def capacity(self) -> Capacity:
        capacity: Capacity = getattr(self._teacher, "capacity", Capacity())
        return capacity

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        """As `Teacher.answer`."""
        return await self._watched(self._teacher.answer(prompt_ids, request_id, seed, max_tokens))

    async def score(
        self,
        token_ids: npt.NDArray[np.int32],
        supervised: npt.NDArray[np.bool_],
        request_id: str,
        seed: int,
        asked_ids: npt.NDArray[np.int32] | None = None,
    ) -> Answer:
        """As `Scorer.score`."""
        scorer = cast(Scorer, self._teacher)
        return await self._watched(scorer.score(token_ids, supervised, request_id, seed, asked_ids))

    async def _watched(self, answer: Coroutine[Any, Any, Answer]) -> Answer:
        if not self._num_under_way:
            self._last_end_s = time.monotonic()
        self._num_under_way += 1
        asked = asyncio.ensure_future(answer)
        try:
            while not (await asyncio.wait([asked], timeout=self._left_s()))[0]:
                if self._left_s() <= 0:
                    self._hangs = True
                    raise RuntimeError(f"teacher: no token came in {self._timeout_s:g} s; its engine hangs")
            self._last_end_s = time.monotonic()
            return asked.result()
        finally:
            asked.cancel()
            self._num_under_way -= 1

    def _left_s(self) -> float:
        return max(self._last_end_s, self._teacher.last_token_at) + self._timeout_s - time.monotonic()

    def shutdown(self) -> None:
        """End the teacher."""
        self._teacher.shutdown()
