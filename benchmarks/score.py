"""How fast given answers are scored, beside writing them on the same engine: docs/scoring.md has the figures.

    python benchmarks/score.py --answers 2,8,32 --tokens 64 --rounds 3
    python benchmarks/score.py --answers 64 --tokens 64 --rounds 1 --profile    # and where scoring takes its time

One engine, warm, by turns: *generate* writes answers to real prompts, *score* reads the very same conversations. *read*
is the forward pass alone, *prompt_logprobs* vLLM's own way in flat form. Speeds are of supervised tokens, by the clock
and by the CPU seconds of the engine's processes, which other work on the machine disturbs less. With --draws targets
are draws instead of the most probable tokens.
"""

import argparse
import asyncio
import gzip
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"  # vLLM's processes import stages

from stillhouse.schemas.config import Config  # noqa: E402
from stillhouse.stages.teacher.chat import Chat, load_chat  # noqa: E402
from stillhouse.stages.teacher.engine import VLLMTeacher  # noqa: E402

DATA = ROOT / "data/quickstart"
Ids = npt.NDArray[np.int32]
PROFILER = {
    "profiler": "torch",
    "torch_profiler_with_stack": False,
    "torch_profiler_record_shapes": True,
    "ignore_frontend": True,
}
PARTS = {
    "top K": ("topk", "sort"),
    "softmax": ("log_softmax", "_log_softmax"),
    "draws": ("searchsorted", "cumsum", "exp_", "nextafter", "bitwise", "__rshift__"),
    "attention": ("attention", "reshape_and_cache"),
}
"""Operations whose names hold one of these; products with a matrix are told apart by their shapes."""


def config_of(arguments: argparse.Namespace, traces: str) -> Config:
    targets: dict[str, Any] = {"top_k": arguments.top_k, "probe_fraction": 0.0}
    if arguments.draws:
        targets |= {"method": "sampled", "num_draws": arguments.draws}
    return Config.model_validate(
        {
            "task": "score",
            "run_dir": "unused",
            "source": {"path": "unused"},
            "ingest": {"rows_per_shard": 100},
            "teacher": {
                "model": arguments.model,
                "max_model_len": 1024,
                "dtype": arguments.dtype,
                "engine": {
                    "enforce_eager": arguments.eager,
                    "max_num_seqs": max(counts(arguments)),
                    "enable_prefix_caching": False,  # or the second round would read nothing
                    # Seeds, which generating needs, and split prompts exclude each other on a CPU.
                    "enable_chunked_prefill": False,
                    "max_num_batched_tokens": arguments.batch_tokens,
                    **({"profiler_config": {**PROFILER, "torch_profiler_dir": traces}} if arguments.profile else {}),
                },
                "env": {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"},
            },
            "targets": targets,
        }
    )


def prompts_of(chat: Chat, count: int) -> list[Ids]:
    rows = pq.read_table(DATA / "conversations.parquet", columns=["conversation"]).column(0)[:2000].to_pylist()
    texts = [m[0]["content"] for m in rows if m and m[0]["role"] == "user" and 50 < len(m[0]["content"]) < 400]
    return [chat.prompt_ids([{"role": "user", "content": text}]) for text in texts[:count]]


class Ways:
    """What is measured: each returns how many supervised tokens it was about."""

    def __init__(self, teacher: VLLMTeacher, prompts: list[Ids], num_tokens: int, top_k: int) -> None:
        self._teacher, self.prompts, self._num_tokens, self._top_k = teacher, prompts, num_tokens, top_k
        self._conversations: list[tuple[Ids, npt.NDArray[np.bool_]]] = []

    async def generate(self, tag: str) -> int:
        """Answers of exactly so many tokens."""
        self._teacher._stop_token_ids = []
        asked = enumerate(self.prompts)
        answers = await asyncio.gather(
            *(self._teacher.answer(ids, f"{tag}/{i}", i, self._num_tokens) for i, ids in asked)
        )
        self._conversations = [
            (np.concatenate([ids, answer.token_ids]), np.arange(len(ids) + len(answer.token_ids)) >= len(ids))
            for ids, answer in zip(self.prompts, answers, strict=True)
        ]
        return sum(len(answer.token_ids) for answer in answers)

    async def score(self, tag: str) -> int:
        conversations = enumerate(self._conversations)
        answers = await asyncio.gather(
            *(self._teacher.score(ids, ours, f"{tag}/{i}", i) for i, (ids, ours) in conversations)
        )
        return sum(len(answer.token_ids) for answer in answers)

    async def read(self, tag: str) -> int:
        return await self._plain(tag)

    async def prompt_logprobs(self, tag: str) -> int:
        return await self._plain(tag, prompt_logprobs=self._top_k, flat_logprobs=True)

    async def _plain(self, tag: str, **asked: Any) -> int:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        async def one(i: int, ids: Ids) -> None:
            kind = RequestOutputKind.FINAL_ONLY
            params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, output_kind=kind, **asked)
            prompt = TokensPrompt(prompt_token_ids=ids.tolist())
            async for _ in self._teacher.engine.generate(prompt, params, f"{tag}/{i}"):
                pass

        await asyncio.gather(*(one(i, ids) for i, (ids, _) in enumerate(self._conversations)))
        return sum(int(ours.sum()) for _, ours in self._conversations)


def engine_seconds() -> float:
    """CPU seconds of the engine's processes so far."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(found.user + found.system for found in times)


async def measured(name: str, way: Callable[[str], Awaitable[int]], tag: str) -> dict[str, Any]:
    cpu, started = engine_seconds(), time.monotonic()
    tokens = await way(tag)
    seconds, cpu = time.monotonic() - started, engine_seconds() - cpu
    return {"way": name, "tokens": tokens, "seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)}


def shares(trace: Path, vocab_size: int) -> dict[str, float]:
    """Seconds of the worker's thread in each part of the work, from a trace of torch's profiler; what is not inside of
    any operation is `outside`."""
    with gzip.open(trace) as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("cat") == "cpu_op"]
    threads: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        threads[event["tid"]].append(event)
    of_worker = max(threads.values(), key=lambda found: sum(event["dur"] for event in found))
    of_worker.sort(key=lambda event: (event["ts"], -event["dur"]))
    found: dict[str, float] = defaultdict(float)
    stack: list[tuple[float, str]] = []  # ends of what an operation is in, and the part that it is
    begin, last = of_worker[0]["ts"], 0.0
    for event in of_worker:
        while stack and stack[-1][0] <= event["ts"]:
            stack.pop()
        part = part_of(event, vocab_size)
        if stack and (part == "other" or stack[-1][1] == "output layer"):
            part = stack[-1][1]
        found[part] += event["dur"]
        if stack:
            found[stack[-1][1]] -= event["dur"]
        stack.append((event["ts"] + event["dur"], part))
        last = max(last, event["ts"] + event["dur"])
    found["outside"] = last - begin - sum(found.values())
    return {part: round(seconds / 1e6, 3) for part, seconds in sorted(found.items(), key=lambda item: -item[1])}


def part_of(event: dict[str, Any], vocab_size: int) -> str:
    name, shapes = event["name"], str(event.get("args", {}).get("Input Dims", ""))
    if any(word in name for word in ("linear", "mm", "gemm", "matmul")):
        return "output layer" if str(vocab_size) in shapes else "other layers"
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), "other")


async def profiled(teacher: VLLMTeacher, ways: Ways, traces: str) -> dict[str, float]:
    """`shares` of a round of *score*, whose clock runs slower for the profiler."""
    await teacher.engine.start_profile()
    await ways.score("profiled")
    await teacher.engine.stop_profile()
    (trace,) = Path(traces).glob("*.pt.trace.json.gz")
    return shares(trace, teacher.vocab_size)


async def rounds(ways: Ways, names: list[str], count: int, tag: str, *, warms_up: bool) -> list[dict[str, Any]]:
    """`count` of them, after one that nobody counts where the engine is cold. The first one generates first, what the
    others read."""
    found = []
    numbers = [*range(0 if warms_up else 1, count + 1)]
    for number in numbers:
        shift = number % len(names) if number > numbers[0] else 0
        for name in names[shift:] + names[:shift]:
            result = await measured(name, getattr(ways, name), f"{tag}/{number}/{name}")
            if number:
                found.append(result)
                print(json.dumps(result), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=str(DATA / "SmolLM2-135M-Instruct"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--answers", default="64", help="at once; several numbers: one after the other")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="score,read,prompt_logprobs", help="beside generate")
    parser.add_argument("--eager", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as traces:
        print(json.dumps(figures(arguments, traces), indent=1))


def figures(arguments: argparse.Namespace, traces: str) -> dict[str, Any]:
    """By how many answers there are at once."""
    config = config_of(arguments, traces)
    chat = load_chat(config)
    names = ["generate", *(name for name in arguments.ways.split(",") if name != "generate")]
    teacher = VLLMTeacher(config, [])

    async def every() -> dict[str, Any]:
        told = {}
        for count in counts(arguments):
            ways = Ways(teacher, prompts_of(chat, count), arguments.tokens, arguments.top_k)
            found = await rounds(ways, names, arguments.rounds, f"{count}", warms_up=not told)
            told[f"{count} answers"] = summary(ways, names, found)
        if arguments.profile:
            told["seconds of the worker"] = await profiled(teacher, ways, traces)
        return told

    try:
        return asyncio.run(every())
    finally:
        teacher.shutdown()


def counts(arguments: argparse.Namespace) -> list[int]:
    return [int(count) for count in arguments.answers.split(",")]


def summary(ways: Ways, names: list[str], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds; and how much faster than generating the others are, by the clock and by CPU seconds."""
    told: dict[str, Any] = {"prompt tokens": round(float(np.mean([len(ids) for ids in ways.prompts])), 1)}
    for name in names:
        mine = [result for result in found if result["way"] == name]
        told[name] = {
            "tokens/s": round(float(np.median([r["tokens"] / r["seconds"] for r in mine])), 1),
            "CPU ms/token": round(float(np.median([1e3 * r["cpu_seconds"] / r["tokens"] for r in mine])), 3),
        }
    for name in names:
        told[name]["times as fast"] = round(told[name]["tokens/s"] / told["generate"]["tokens/s"], 2)
        told[name]["times less CPU"] = round(told["generate"]["CPU ms/token"] / told[name]["CPU ms/token"], 2)
    return told


if __name__ == "__main__":
    main()
