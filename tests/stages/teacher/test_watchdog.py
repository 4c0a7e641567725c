"""The watchdog: slow is not hung, and what it does not know it passes on."""

import asyncio
import time
from typing import Any, cast

import numpy as np
import pytest

from stillhouse.stages.teacher import Load, Teacher
from stillhouse.stages.teacher.watchdog import Watchdog


def test_an_engine_that_is_slow_is_not_taken_to_hang() -> None:
    class Slow:
        """No answer ends for six times the limit, but tokens come."""

        vocab_size, broken, last_token_at = 1, False, 0.0

        async def answer(self, *arguments: Any) -> str:
            for _ in range(12):
                await asyncio.sleep(0.1)
                self.last_token_at = time.monotonic()
            return "an answer"

        def shutdown(self) -> None:
            pass

    class Silent(Slow):
        last_token_at = property(lambda self: 0.0, lambda self, value: None)

    one, slow, silent = np.zeros(1, np.int32), cast(Teacher, Slow()), cast(Teacher, Silent())
    assert asyncio.run(Watchdog(slow, 0.2).answer(one, "a", 1, 9)) == "an answer"  # type: ignore[comparison-overlap]
    with pytest.raises(RuntimeError, match=r"no token came in 0\.2 s"):
        asyncio.run(Watchdog(silent, 0.2).answer(one, "a", 1, 9))


def test_the_count_of_tokens_is_the_teachers() -> None:
    class Counting:
        vocab_size, broken, last_token_at, num_tokens = 1, False, 0.0, 5

    class Silent:
        vocab_size, broken, last_token_at = 1, False, 0.0

    assert Watchdog(Counting(), 1.0).num_tokens == 5  # type: ignore[arg-type]
    assert not hasattr(Watchdog(Silent(), 1.0), "num_tokens")  # type: ignore[arg-type]


def test_the_load_is_the_teachers() -> None:
    class Full:
        vocab_size, broken, last_token_at, load = 1, False, 0.0, Load(3, 0.5)

    class Silent:
        vocab_size, broken, last_token_at = 1, False, 0.0

    assert Watchdog(Full(), 1.0).load == (3, 0.5)  # type: ignore[arg-type]
    assert Watchdog(Silent(), 1.0).load == (0, 0.0)  # type: ignore[arg-type]
