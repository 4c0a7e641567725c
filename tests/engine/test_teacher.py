"""The teacher on vLLM: arrays from the engine to the answer, a start that fails in one sentence, a traceless end."""

import asyncio
import copy
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from stillhouse.pipeline.watchdog import Watchdog
from stillhouse.schemas import targets
from stillhouse.schemas.config import Config
from stillhouse.stages.chat import Chat
from stillhouse.stages.teacher import Answer, FailureLog, Rows, TeacherError, VLLMTeacher, describe, to_answer
from tests.support.data import ROOT, TEACHER, make_raw_config

VOCABULARY = 49152


def step(ids: Any, logprobs: Any) -> Any:
    """What the engine sends for one request and step, as far as `Rows` reads it."""
    lists = SimpleNamespace(
        logprob_token_ids=np.asarray(ids, dtype=np.int32), logprobs=np.asarray(logprobs, dtype=np.float32)
    )
    return SimpleNamespace(new_logprobs=lists)


def fill(rows: Rows, num_tokens: int, width: int) -> np.ndarray:
    """Gives `rows` that many steps; returns the ids [num_tokens, width]."""
    ids = np.arange(num_tokens * width, dtype=np.int32).reshape(num_tokens, width)
    for row in ids:
        rows.update_from_output(step(row[None], -row[None] / 1000))
    return ids


@pytest.mark.parametrize("num_tokens", [0, 1, Rows.TOKENS_PER_BLOCK, 3 * Rows.TOKENS_PER_BLOCK + 5])
def test_rows_give_back_every_step(num_tokens: int) -> None:
    rows = Rows(4)
    ids = fill(rows, num_tokens, 5)
    assert len(rows) == num_tokens
    ids_SW, logprobs_SW = rows.joined()
    assert ids_SW.dtype == np.int32
    assert logprobs_SW.dtype == np.float32
    np.testing.assert_array_equal(ids_SW, ids)
    np.testing.assert_array_equal(logprobs_SW, (-ids / 1000).astype(np.float32))


def test_rows_copy_what_the_engine_may_reuse_and_cut_what_others_asked_for() -> None:
    ids, logprobs = np.array([[7, 1, 2, 3, 4]], dtype=np.int32), np.zeros((1, 5), dtype=np.float32)
    rows = Rows(2)  # another request of the step asked for 4
    rows.update_from_output(step(ids, logprobs))
    rows.update_from_output(SimpleNamespace(new_logprobs=None))
    rows.update_from_output(step([[8, 0, 0], [9, 0, 0]], np.zeros((2, 3))))  # two positions: speculative decoding
    assert rows.joined()[0][:, 0].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("token_ids", "width", "num_steps"),
    [([0, 5], 5, 3), ([0, 5, 10], 4, 3), ([1, 5, 10], 5, 3), ([0], 5, 0)],
    ids=["more rows than tokens", "too narrow", "another token first", "nothing"],
)
def test_another_layout_is_refused(token_ids: list[int], width: int, num_steps: int) -> None:
    rows = Rows(4)
    fill(rows, num_steps, width)
    with pytest.raises(RuntimeError, match=r"vLLM returned \d+ log-probabilities for \d tokens at top_k 4"):
        to_answer(token_ids, rows, 4, "length")


def test_vllms_own_lists_give_the_same_answer() -> None:
    rows = Rows(4)
    ids = fill(rows, 3, 5)
    flat = SimpleNamespace(token_ids=ids.ravel().tolist(), logprobs=(-ids / 1000).ravel().tolist())
    token_ids = ids[:, 0].tolist()
    ours, theirs = to_answer(token_ids, rows, 4, "stop"), to_answer(token_ids, flat, 4, "stop")
    for name in ("token_ids", "target_ids", "target_logprobs", "token_logprobs"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_failure_is_noted_in_one_line(tmp_path: Path) -> None:
    import logging

    path = tmp_path / "failures.jsonl"
    log = logging.Logger("engine")
    log.addHandler(FailureLog(str(path)))
    log.error("no exception")
    try:
        raise ValueError("no room\n  for the cache.")
    except ValueError:
        log.exception("EngineCore failed to start.")
    assert path.read_text() == '"ValueError: no room for the cache"\n'
    assert len(describe(ValueError("x" * 10_000))) < 600


def test_a_folder_that_is_not_there_is_said_at_once(raw_config: dict[str, Any]) -> None:
    raw_config["teacher"]["model"] = "./no/such/folder"
    with pytest.raises(TeacherError, match=r"there is no folder '\./no/such/folder'; write"):
        VLLMTeacher(Config.model_validate(raw_config), [2])


# With an engine


def engine_config(folder: Path, top_k: int, **teacher: Any) -> Config:
    raw = make_raw_config(folder)
    raw["teacher"] = {
        "model": str(TEACHER),
        "max_model_len": 256,
        "engine": {"enforce_eager": True, "max_num_seqs": 8},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        **teacher,
    }
    raw["ingest"]["max_prompt_tokens"] = 128
    raw["targets"] = {"top_k": top_k}
    raw["sampling"] = {"max_tokens": 64, "temperature": 0.7}
    return Config.model_validate(raw)


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


@pytest.mark.engine
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
    np.testing.assert_allclose(mass, 1, atol=3e-5)  # 1e-5 was seen: float32 sums over 49,152 logits
    np.testing.assert_allclose(few.target_logprobs, wide.target_logprobs[:, :64], atol=1e-5)
    np.testing.assert_allclose(few.token_logprobs, wide.token_logprobs, atol=1e-5)
    written = np.take_along_axis(
        wide.target_logprobs, np.argmax(wide.target_ids == wide.token_ids[:, None], 1)[:, None], 1
    )
    np.testing.assert_array_equal(written[:, 0], wide.token_logprobs)
    encoded = targets.encode_top_k(wide.target_ids, wide.target_logprobs)
    assert np.exp(encoded.tail.astype(np.float64)).max() < 3e-5
    left_out = 1 - np.exp(few.target_logprobs.astype(np.float64)).sum(axis=1)
    tail = np.exp(targets.encode_top_k(few.target_ids, few.target_logprobs).tail.astype(np.float64))
    np.testing.assert_allclose(tail, left_out, rtol=0.01)  # float16 holds a logarithm of 8 to 0.004


@pytest.mark.engine
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


@pytest.mark.engine
def test_the_stop_token_is_the_last_token_and_has_a_distribution(
    narrow: VLLMTeacher, loop: asyncio.AbstractEventLoop, prompt_ids: np.ndarray
) -> None:
    async def answers() -> list[Answer]:
        return await asyncio.gather(*(narrow.answer(prompt_ids, f"stop/{seed}", seed, 64) for seed in range(8)))

    stopped = [answer for answer in loop.run_until_complete(answers()) if answer.finish_reason == "stop"]
    assert stopped
    for answer in stopped:
        assert answer.token_ids[-1] == 2  # <|im_end|>
        assert 2 not in answer.token_ids[:-1]
        assert len(answer.target_ids) == len(answer.token_logprobs) == len(answer.token_ids)
        assert 2 in answer.target_ids[-1]


@pytest.mark.engine
def test_a_prompt_beyond_the_context_costs_itself(narrow: VLLMTeacher, loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(TeacherError, match="refuses a prompt of 400 tokens"):
        loop.run_until_complete(narrow.answer(np.full(400, 28, dtype=np.int32), "long", 1, 4))


@pytest.mark.engine
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
        last_token_at = property(lambda self: 0.0, lambda self, value: None)  # type: ignore[assignment]

    one = np.zeros(1, np.int32)
    assert asyncio.run(Watchdog(Slow(), 0.2).answer(one, "a", 1, 9)) == "an answer"  # type: ignore[comparison-overlap]
    with pytest.raises(RuntimeError, match=r"no token came in 0\.2 s"):
        asyncio.run(Watchdog(Silent(), 0.2).answer(one, "a", 1, 9))


@pytest.mark.engine
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


LIFE = """
import os, sys
from pathlib import Path
from stillhouse.stages.teacher import TeacherError, VLLMTeacher
from tests.engine.test_teacher import engine_config

if __name__ == "__main__":
    end, folder = sys.argv[1:]
    env = {"VLLM_CPU_KVCACHE_SPACE": "100000"} if end == "no memory" else {"VLLM_CPU_KVCACHE_SPACE": "1"}
    try:
        teacher = VLLMTeacher(engine_config(Path(folder), 8, env=env), [2])
    except TeacherError as error:
        print("TeacherError:", error)
    else:
        if end == "shutdown":
            teacher.shutdown()
        print("started")
"""


@pytest.mark.engine
@pytest.mark.parametrize(
    "end", ["shutdown", pytest.param("exit", marks=pytest.mark.slow), pytest.param("no memory", marks=pytest.mark.slow)]
)
def test_nothing_is_left_behind(tmp_path: Path, end: str) -> None:
    script = tmp_path / "life.py"
    script.write_text(LIFE)
    mark = f"{tmp_path.name}-{end}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STILLHOUSE_TEST_MARK": mark}
    finished = subprocess.run(
        [sys.executable, str(script), end, str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    if end == "no memory":
        # The reason comes from another process than the one that failed in front of us.
        assert re.fullmatch(r"TeacherError: teacher: vLLM cannot start .*KVCACHE_SPACE.*; change .*", lines[-1])
    else:
        assert lines == ["started"]
        for noise in ("Traceback", "Exception ignored", "ERROR", "INFO", "DEBUG", "force killing", "it/s]"):
            assert noise not in finished.stderr, finished.stderr
    assert not processes_with(mark)


KILLED = """
import asyncio, sys
from pathlib import Path
import numpy as np
from stillhouse.stages.teacher import VLLMTeacher
from tests.engine.test_teacher import engine_config

if __name__ == "__main__":
    teacher = VLLMTeacher(engine_config(Path(sys.argv[1]), 8), [2])
    print("started", flush=True)

    async def answers():
        for n in range(1000):
            await asyncio.gather(*(teacher.answer(np.array([1, 2, 3], np.int32), f"{n}/{i}", i, 200) for i in range(8)))

    asyncio.run(answers())
"""


@pytest.mark.engine
@pytest.mark.parametrize(
    "when",
    [
        pytest.param("the engine starts", marks=pytest.mark.slow),
        pytest.param("its worker starts", marks=pytest.mark.slow),
        "it works",
    ],
)
def test_a_killed_front_end_takes_its_engine_along(tmp_path: Path, when: str) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    front_end = psutil.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    awaited = {"the engine starts": "EngineCore", "its worker starts": "VLLM::Worker", "it works": "VLLM::Worker"}[when]
    children: list[psutil.Process] = []
    while not any(awaited in " ".join(command_line(child)) for child in children):
        assert front_end.poll() is None
        time.sleep(0.2)
        children = front_end.children(recursive=True)
    if when == "it works":
        assert front_end.stdout.readline() == b"started\n"
        time.sleep(1)
    front_end.kill()
    front_end.wait()
    front_end.stdout.close()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not [command_line(process) for process in left]


def command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def processes_with(mark: str) -> list[str]:
    """Command lines of the processes that inherited `mark` in their environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
