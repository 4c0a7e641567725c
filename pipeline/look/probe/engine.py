"""One engine of a configuration on real prompts, for about as long as it is given."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stillhouse.pipeline import flow
from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.look.probe.trial import Limited, Memory, Trial, numbered_prompts, trial
from stillhouse.schemas.config import Config
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import Capacity, Load, Teacher

SHORT_TOKENS = 32
"""Limit of an answer where batches of several sizes are compared."""
FRACTIONS = (8, 4, 2, 1)
"""Sizes of batches that are tried: `max_num_seqs` divided by these."""
DEFAULT_SEATS = 256
"""Of a teacher that does not say how many answers it writes at once."""
TIMEOUTS = 3
"""A trial gets so many times the probe's seconds before it is given up."""


@dataclass(frozen=True)
class Probed:
    """What one engine did."""

    start_seconds: float
    capacity: Capacity
    trials: list[Trial]
    max_load: Load
    host_bytes: int
    gpu_bytes: list[int]

    @property
    def num_seats(self) -> int:
        """Answers that the engine writes at once (`max_num_seqs`)."""
        return self.capacity.max_num_seqs or DEFAULT_SEATS

    def best(self) -> Trial:
        """The fastest of the short trials."""
        return max((t for t in self.trials if t.limit == self.trials[0].limit), key=lambda t: t.tokens_per_second)


def probe_engine(config: Config, prompts: pa.Table, seconds: float, sizes: tuple[int, ...] = FRACTIONS) -> Probed:
    """Starts the engine, answers `prompts` in batches of growing size with short answers while time is left, then with
    answers as long as the rest of `seconds` allows in the size that was fastest; and ends the engine.

    Raises `TeacherError` when it cannot start, `RunError` when it does not answer in time.
    """
    return asyncio.run(_probe(config, prompts, seconds, sizes))


async def _probe(config: Config, prompts: pa.Table, seconds: float, sizes: tuple[int, ...]) -> Probed:
    limited: list[Limited] = []

    def around(teacher: Teacher) -> Teacher:
        limited.append(Limited(teacher))
        return limited[0]

    loop = asyncio.get_running_loop()
    with Memory() as memory:
        began = loop.time()
        generate = flow.generate(config, around)
        try:
            start_seconds = loop.time() - began
            trials = await run_trials(config, generate, limited[0], prompts, seconds, sizes)
        finally:
            capacity, max_load = limited[0].capacity, limited[0].max_load
            generate.close()
    return Probed(start_seconds, capacity, trials, max_load, memory.host_bytes, memory.gpu_bytes)


async def run_trials(
    config: Config, generate: Generate, teacher: Limited, prompts: pa.Table, seconds: float, sizes: tuple[int, ...]
) -> list[Trial]:
    """What `probe_engine` does with an engine that runs. `sizes` divide `max_num_seqs`; with one alone, nothing longer
    is tried."""
    loop, start = asyncio.get_running_loop(), 0
    num_seats = teacher.capacity.max_num_seqs or DEFAULT_SEATS

    async def next_trial(seats: int, limit: int) -> Trial:
        nonlocal start
        count = -(-2 * seats // config.sampling.n)  # so many that each seat is taken again
        start += count
        taken = numbered_prompts(prompts, start - count, count)
        return await trial(generate, teacher, taken, seats, limit, TIMEOUTS * seconds)

    short = min(SHORT_TOKENS, config.sampling.max_tokens)
    trials: list[Trial] = []
    try:
        await next_trial(1, min(8, short))  # the first steps of an engine compile and allocate
        until = loop.time() + seconds
        for seats in sorted({max(1, num_seats // fraction) for fraction in sizes}):
            if trials and _next_seconds(trials) > (until - loop.time()) / 2:
                break
            trials.append(await next_trial(seats, short))
        best = max(trials, key=lambda t: t.tokens_per_second)
        limit = min(config.sampling.max_tokens, int(short * (until - loop.time()) / max(best.seconds, 1e-3)))
        if limit > short and len(sizes) > 1:
            trials.append(await next_trial(best.num_seats, limit))
    except TimeoutError:
        if not trials:
            raise RunError(
                f"--probe: no answer of {short} tokens in {TIMEOUTS * seconds:.0f} s; raise --probe-seconds"
            ) from None
    return trials


def _next_seconds(trials: list[Trial]) -> float:
    """What a trial with twice as many answers at once takes, from how the last two differed."""
    growth = trials[-1].seconds / max(trials[-2].seconds, 1e-3) if len(trials) > 1 else 2.0
    return trials[-1].seconds * min(2.0, max(1.0, growth))


def facts(probed: Probed) -> dict[str, Any]:
    """The numbers of an engine, for JSON."""
    capacity = probed.capacity
    return {
        "start_seconds": round(probed.start_seconds, 1),
        "max_num_seqs": probed.num_seats,
        "max_num_batched_tokens": capacity.max_num_batched_tokens,
        "cache_tokens": capacity.cache_tokens,
        "max_cache_use": round(probed.max_load.kv_cache_use, 3),
        "host_bytes": probed.host_bytes,
        "gpu_bytes": probed.gpu_bytes,
        "trials": [
            {
                "answers_at_once": t.num_seats,
                "token_limit": t.limit,
                "answers": len(t.ended),
                "cut": sum(ended.is_cut for ended in t.ended),
                "seconds": round(t.seconds, 1),
                "tokens_per_second": round(t.tokens_per_second, 1),
            }
            for t in probed.trials
        ],
    }
