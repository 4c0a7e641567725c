"""A teacher that takes time and no CPU, and writes down when it works: for how well a pool's workers are used."""

import asyncio
import os
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer

NUM_SEATS = 8
"""Answers that an engine writes at once; others wait, as in a real one."""


class TimedTeacher:
    """An answer takes `TIMED_TEACHER_S` seconds; with `TIMED_TEACHER_UNKNOWN`, up to ten times as long, by where in the
    source its prompt is (so by shard), which nobody knows before. With `TIMED_TEACHER_WAITS_FOR`, none begins before so
    many workers have started."""

    broken = False
    last_token_at = 0.0
    vocab_size = 49152

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        self._seats = asyncio.Semaphore(NUM_SEATS)
        self._seconds = float(os.environ["TIMED_TEACHER_S"])
        self._is_unknown = bool(os.environ.get("TIMED_TEACHER_UNKNOWN"))
        self._rows_per_shard = config.ingest.rows_per_shard
        self._waits_for = int(os.environ.get("TIMED_TEACHER_WAITS_FOR", "0"))
        self._folder = Path(os.environ["TIMED_TEACHER_LOG"])
        self._log = Path(self._folder, f"{os.getpid()}.txt").open("a", buffering=1)  # noqa: SIM115
        self._top_k, self._stop = config.targets.top_k, stop_token_ids[0]

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        while len(os.listdir(self._folder)) < self._waits_for:
            await asyncio.sleep(0.1)
        self._waits_for = 0
        seconds = self._seconds
        if self._is_unknown:
            shard = int(request_id.split("-")[1].split("/")[0]) // self._rows_per_shard
            seconds *= 1 + blake2b(str(shard).encode(), digest_size=1).digest()[0] / 256 * 9
        async with self._seats:
            began = time.time()
            await asyncio.sleep(seconds)
            self._log.write(f"{began} {time.time()}\n")
        ids_SK = np.arange(self._top_k, dtype=np.int32)[None]
        logprobs_SK = np.full((1, self._top_k), -20.0, dtype=np.float32)
        return Answer(np.array([self._stop], np.int32), ids_SK, logprobs_SK, logprobs_SK[:, 0], "stop")

    def shutdown(self) -> None:
        self._log.close()


def spans_of(log: Path) -> list[npt.NDArray[np.float64]]:
    """When each worker's answers began and ended: [answers, 2] seconds of Unix time."""
    return [np.loadtxt(file, ndmin=2) for file in log.iterdir()]


def idle(spans: list[npt.NDArray[np.float64]], since: float, until: float) -> float:
    """Share of the time between two moments in which fewer than half of the workers answer."""
    grid = np.linspace(since, until, 4001)
    busy = sum(((span[:, :1] <= grid) & (grid <= span[:, 1:])).any(axis=0).astype(int) for span in spans)
    return float(np.mean(np.less(busy, len(spans) / 2)))
