"""The teacher on vLLM: whole distributions, a start that fails in one sentence. Its end is in tests/slow."""

import asyncio
import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from stillhouse.pipeline.look.probe.engine import run_trials
from stillhouse.pipeline.look.probe.trial import Limited, measured_bytes
from stillhouse.schemas import targets
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import Answer, TeacherError
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.engine import VLLMTeacher
from stillhouse.stages.teacher.watchdog import Watchdog
from tests.support.engines import engine_config
from tests.support.prompts import prompts

VOCABULARY = 49152


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One event loop, because an engine belongs to the one of its first request."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def full(loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMTeacher]:
    """A teacher that keeps its whole vocabulary."""
    teacher = VLLMTeacher(engine_config(tmp_path_factory.mktemp("teacher"), VOCABULARY), [2])
    yield teacher
    teacher.shutdown()
    loop.run_until_complete(asyncio.sleep(0))  # lets the engine's cancelled tasks end


@pytest.fixture(scope="module")
def narrow(full: VLLMTeacher) -> VLLMTeacher:
    """The same engine, keeping 64."""
    teacher = copy.copy(full)
    teacher._top_k = 64
    return teacher


@pytest.fixture(scope="module")
def prompt_ids(tokenizer: Any) -> np.ndarray:
    return Chat(tokenizer).prompt_ids([{"role": "user", "content": "Say hello and nothing else."}])


def test_engine_tells_how_full_it_is(
    narrow: VLLMTeacher, loop: asyncio.AbstractEventLoop, prompt_ids: np.ndarray
) -> None:
    async def watched() -> list[float]:
        answer = asyncio.create_task(narrow.answer(prompt_ids, "watched", 1, 8))
        seen = [narrow.load.kv_cache_use]
        while not answer.done():
            await asyncio.sleep(0.01)
            seen.append(narrow.load.kv_cache_use)
        return seen

    seen = loop.run_until_complete(watched())
    assert 0 < max(seen) <= 1
    assert narrow.load.num_waiting == 0


def test_probe_measures_a_real_engine(
    narrow: VLLMTeacher, loop: asyncio.AbstractEventLoop, tokenizer: Any, tmp_path: Path
) -> None:
    config, chat = engine_config(tmp_path, 64), Chat(tokenizer)
    teacher = Limited(Watchdog(narrow, 60.0))
    capacity = teacher.capacity
    assert capacity.max_num_seqs == 8
    # VLLM_CPU_KVCACHE_SPACE is 1 GiB; a token has keys and values of 3 heads of 64 in float32, in 30 layers.
    assert capacity.cache_tokens == pytest.approx(2**30 / (2 * 3 * 64 * 4 * 30), rel=0.05)
    before = teacher.num_tokens
    asked = prompts([[f"Write a sentence about the number {n}."] for n in range(9)])
    trials = loop.run_until_complete(run_trials(config, Generate(config, chat, teacher), teacher, asked, 4.0, (4, 1)))
    assert [(t.num_seats, t.limit, len(t.ended)) for t in trials[:1]] == [(2, 32, 4)]
    written = sum(sum(t.table.column("num_target_tokens").to_pylist()) for t in trials)
    assert written == sum(ended.num_tokens for t in trials for ended in t.ended)
    assert written < teacher.num_tokens - before <= written + 2 * 8  # the first, which warm the engine up, are left out
    for t in trials:
        of_trial = sum(ended.num_tokens for ended in t.ended)
        assert t.tokens_per_second > 0
        assert t.tokens_per_second * t.seconds == pytest.approx(of_trial, rel=0.6)
        rows = sorted(t.table.column("num_target_tokens").to_pylist())
        assert rows == sorted(ended.num_tokens for ended in t.ended)
        assert rows[-1] <= t.limit
    size = measured_bytes([t.table for t in trials])
    assert size is not None
    assert 64 * 2 < size.per_target_token < 64 * 8
    assert teacher.max_load.kv_cache_use > 0


def test_whole_vocabulary_agrees_with_the_top_64(
    full: VLLMTeacher, narrow: VLLMTeacher, loop: asyncio.AbstractEventLoop, prompt_ids: np.ndarray
) -> None:
    assert full.vocab_size == VOCABULARY
    wide = loop.run_until_complete(full.answer(prompt_ids, "wide", 1, 4))
    few = loop.run_until_complete(narrow.answer(prompt_ids, "few", 1, 4))
    S = len(wide.token_ids)
    assert wide.target_ids.shape == (S, VOCABULARY)
    assert few.target_ids.shape == (S, 64)
    np.testing.assert_array_equal(wide.token_ids, few.token_ids)
    for row in wide.target_ids:
        assert np.array_equal(np.sort(row), np.arange(VOCABULARY))
    mass = np.exp(wide.target_logprobs.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(mass, 1, atol=3e-5)  # 2e-5 was seen: float32 sums over 49,152 logits
    np.testing.assert_allclose(few.target_logprobs, wide.target_logprobs[:, :64], rtol=0, atol=1e-6)
    np.testing.assert_allclose(few.token_logprobs, wide.token_logprobs, rtol=0, atol=1e-6)
    written = np.take_along_axis(
        wide.target_logprobs, np.argmax(wide.target_ids == wide.token_ids[:, None], 1)[:, None], 1
    )
    np.testing.assert_array_equal(written[:, 0], wide.token_logprobs)
    encoded = targets.encode_top_k(wide.target_ids, wide.target_logprobs)
    assert np.exp(encoded.tail.astype(np.float64)).max() < 3e-5
    left_out = 1 - np.exp(few.target_logprobs.astype(np.float64)).sum(axis=1)
    tail = np.exp(targets.encode_top_k(few.target_ids, few.target_logprobs).tail.astype(np.float64))
    np.testing.assert_allclose(tail, left_out, rtol=0.003)  # float16 holds a logarithm between 4 and 8 to 0.002


def test_seeds_reproduce_and_requests_of_a_step_keep_apart(
    full: VLLMTeacher, narrow: VLLMTeacher, loop: asyncio.AbstractEventLoop, prompt_ids: np.ndarray
) -> None:
    async def answers(run: str) -> list[Answer]:
        return await asyncio.gather(*(narrow.answer(prompt_ids, f"{run}/{seed}", seed, 12) for seed in (1, 2, 3)))

    first, again = loop.run_until_complete(answers("first")), loop.run_until_complete(answers("again"))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.target_ids, other.target_ids)
        np.testing.assert_array_equal(one.target_logprobs, other.target_logprobs)
    assert len({tuple(answer.token_ids.tolist()) for answer in first}) > 1

    async def mixed() -> tuple[Answer, Answer]:
        return await asyncio.gather(
            full.answer(prompt_ids, "mixed/full", 1, 3), narrow.answer(prompt_ids, "mixed/narrow", 2, 3)
        )

    wide, few = loop.run_until_complete(mixed())
    assert wide.target_ids.shape[1] == VOCABULARY
    assert few.target_ids.shape[1] == 64
    assert (np.diff(few.target_logprobs, axis=1) <= 0).all()


def test_the_stop_token_is_the_last_token_and_has_a_distribution(
    narrow: VLLMTeacher, loop: asyncio.AbstractEventLoop, prompt_ids: np.ndarray
) -> None:
    async def answers() -> list[Answer]:
        return await asyncio.gather(*(narrow.answer(prompt_ids, f"stop/{seed}", seed, 64) for seed in range(8)))

    before = narrow.num_tokens
    answered = loop.run_until_complete(answers())
    assert narrow.num_tokens - before == sum(len(answer.token_ids) for answer in answered)
    stopped = [answer for answer in answered if answer.finish_reason == "stop"]
    assert stopped
    for answer in stopped:
        assert answer.token_ids[-1] == 2  # <|im_end|>
        assert 2 not in answer.token_ids[:-1]
        assert len(answer.target_ids) == len(answer.token_logprobs) == len(answer.token_ids)
        assert 2 in answer.target_ids[-1]


def test_a_prompt_beyond_the_context_costs_itself(narrow: VLLMTeacher, loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(TeacherError, match="refuses a prompt of 400 tokens"):
        loop.run_until_complete(narrow.answer(np.full(400, 28, dtype=np.int32), "long", 1, 4))


def test_an_engine_that_hangs_is_noticed(
    narrow: VLLMTeacher, loop: asyncio.AbstractEventLoop, prompt_ids: np.ndarray
) -> None:
    """The worker's process is stopped amid its work, and goes on afterwards."""
    watched = Watchdog(narrow, timeout_s=5.0)

    async def answers() -> list[Any]:
        asked = [watched.answer(prompt_ids, f"hang/{seed}", seed, 200) for seed in range(8)]
        running = asyncio.gather(*asked, return_exceptions=True)
        before = time.monotonic()
        while narrow.last_token_at < before:
            await asyncio.sleep(0.05)
        workers = [p for p in psutil.Process().children(recursive=True) if "VLLM::Worker" in " ".join(p.cmdline())]
        assert workers
        for worker in workers:
            worker.suspend()
        try:
            return await running
        finally:
            for worker in workers:
                worker.resume()

    hung = [str(answer) for answer in loop.run_until_complete(answers()) if isinstance(answer, Exception)]
    assert hung
    assert set(hung) == {"teacher: no token came in 5 s; its engine hangs"}
    assert watched.broken
    assert not narrow.broken


@pytest.mark.parametrize(
    ("top_k", "teacher", "reason"),
    [
        (8, {"max_model_len": 100_000}, r"max_model_len \(100000\) is greater"),
        (8, {"engine": {"nonsense": 1}}, "nonsense"),
        (VOCABULARY + 1, {}, "top_k: 49153 exceeds the teacher's vocabulary of 49152; lower it"),
    ],
)
def test_a_start_that_vllm_refuses_is_one_sentence(
    tmp_path: Path, top_k: int, teacher: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TeacherError, match=reason) as caught:
        VLLMTeacher(engine_config(tmp_path, top_k, **teacher), [2])
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("; ") == 1
