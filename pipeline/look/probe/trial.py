"""Some answers of one engine, watched: how fast, how long, how many bytes. Through generate, as a run asks it."""

import asyncio
import contextlib
import os
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline.folder import shard as shards
from stillhouse.schemas.config import Config
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import Answer, Capacity, Load, Teacher

MEMORY_EVERY_S = 1.0


def _now() -> float:
    return asyncio.get_running_loop().time()


class Limited:
    """`teacher` with answers of at most `limit` tokens, `num_seats` at a time; remembers when which ended."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.vocab_size = teacher.vocab_size
        self.limit, self.max_load = 1, Load()
        self.seats = asyncio.Semaphore(1)
        self.ended: list[Ended] = []

    @property
    def broken(self) -> bool:
        return self._teacher.broken

    @property
    def last_token_at(self) -> float:
        return self._teacher.last_token_at

    @property
    def num_tokens(self) -> int:
        """Of all answers, those under way included where the teacher tells; else of those that ended."""
        return int(getattr(self._teacher, "num_tokens", sum(ended.num_tokens for ended in self.ended)))

    @property
    def capacity(self) -> Capacity:
        capacity: Capacity = getattr(self._teacher, "capacity", Capacity())
        return capacity

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        """As `Teacher.answer`."""
        async with self.seats:
            limit = min(max_tokens, self.limit)
            answer = await self._teacher.answer(prompt_ids, request_id, seed, limit)
            is_cut = answer.finish_reason == "length" and limit < max_tokens
            self.ended.append(Ended(len(answer.token_ids), is_cut))
            self.ended[-1].at, self.ended[-1].all_tokens = _now(), self.num_tokens
            load: Load = getattr(self._teacher, "load", Load())
            most = self.max_load
            self.max_load = Load(max(most[0], load[0]), max(most[1], load[1]))
            return answer

    def shutdown(self) -> None:
        self._teacher.shutdown()


@dataclass
class Ended:
    """An answer that ended."""

    num_tokens: int
    is_cut: bool
    """By the trial's limit, which is lower than `sampling.max_tokens`."""
    at: float = 0.0
    """By the event loop's clock."""
    all_tokens: int = 0
    """`Limited.num_tokens` at that moment."""


@dataclass(frozen=True)
class Trial:
    """`num_seats` answers at once, each of at most `limit` tokens."""

    num_seats: int
    limit: int
    seconds: float
    tokens_per_second: float
    """While all seats were taken, prompts included: until the first seat that stayed free."""
    ended: list[Ended] = field(repr=False)
    table: pa.Table = field(repr=False)
    """What generate returned."""


async def trial(
    generate: Generate, teacher: Limited, prompts: pa.Table, num_seats: int, limit: int, timeout_s: float
) -> Trial:
    """Answers `prompts`. Raises TimeoutError after `timeout_s`."""
    teacher.limit, teacher.seats, teacher.ended = limit, asyncio.Semaphore(num_seats), []
    began, tokens = _now(), teacher.num_tokens
    table = await asyncio.wait_for(generate(prompts), timeout_s)
    ended = teacher.ended
    seconds, speed = _now() - began, 0.0
    if ended:
        last = ended[max(0, len(ended) - num_seats)]
        speed = (last.all_tokens - tokens) / max(last.at - began, 1e-9)
    return Trial(num_seats, limit, seconds, speed, ended, table)


@dataclass(frozen=True)
class Bytes:
    """What the dataset's files take on disk."""

    per_target_token: float
    """Of the columns with an entry for each token written: distributions, draws, log-probabilities."""
    per_token: float
    """Of all other columns, for each token of a conversation, prompts included."""


def measured_bytes(tables: list[pa.Table]) -> Bytes | None:
    """Of answers, encoded as a run's files are, in memory; None where there are none."""
    table = pa.concat_tables([table.filter(pc.is_null(table.column("drop_reason"))) for table in tables])
    table = table.drop_columns(["drop_reason"])
    num_targets = shards.num_target_tokens(table)
    if not num_targets:
        return None
    of_targets = [name for name in table.column_names if name.startswith(("target_", "draw_", "token_"))]
    whole, narrow = len(shards.encode(table)), len(shards.encode(table.select(of_targets)))
    return Bytes(narrow / num_targets, (whole - narrow) / pc.sum(table.column("num_input_tokens")).as_py())


class Memory:
    """The most memory that this process and those it started took at once, looked at every `MEMORY_EVERY_S`."""

    def __init__(self) -> None:
        self.host_bytes, self.gpu_bytes = 0, list[int]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.host_bytes = max(self.host_bytes, _host_bytes())
            self.gpu_bytes = (
                [max(pair) for pair in zip(found, self.gpu_bytes or found, strict=True)]
                if (found := _gpu_bytes())
                else self.gpu_bytes
            )
            if self._ended.wait(MEMORY_EVERY_S):
                return


def _host_bytes() -> int:
    """Of this process and all below it; pages that they share count once (PSS)."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error, AttributeError):
                total += process.memory_full_info().pss
    return total


def _gpu_bytes() -> list[int]:
    """Taken of each GPU that this process may use, by anybody; empty where there is none or NVIDIA's library is not."""
    with contextlib.suppress(Exception):  # of any kind: an estimate does without
        import pynvml

        pynvml.nvmlInit()
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        numbers = range(pynvml.nvmlDeviceGetCount()) if named is None else map(int, filter(None, named.split(",")))
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in numbers]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles]
    return []


def numbered_prompts(prompts: pa.Table, start: int, count: int) -> pa.Table:
    """`count` prompts from `start` on, round and round; those of a later round have other ids, and so other seeds."""
    numbers = np.arange(start, start + count)
    table = prompts.take(pa.array(numbers % prompts.num_rows))
    ids = [
        name if number < prompts.num_rows else f"{name}~{number // prompts.num_rows}"
        for name, number in zip(table.column("prompt_id").to_pylist(), numbers.tolist(), strict=True)
    ]
    return table.set_column(table.schema.get_field_index("prompt_id"), "prompt_id", pa.array(ids, pa.string()))


def as_screened(prompts: pa.Table, config: Config) -> pa.Table:
    """Prompts as ingest leaves them, with the columns that dedupe adds: each a cluster of its own."""
    kept = prompts.filter(pc.is_null(prompts.column("drop_reason"))).drop_columns(["drop_reason"])
    ones: dict[str, Any] = {"cluster_id": kept.column("prompt_id"), "cluster_size": [1] * kept.num_rows}
    return kept.append_column("cluster_id", ones["cluster_id"]).append_column(
        "cluster_size", pa.array(ones["cluster_size"], pa.int32())
    )
