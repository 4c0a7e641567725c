"""How fast given answers are scored, beside writing them on the same engine: docs/scoring.md has the figures.

    python benchmarks/score.py --answers 64 --tokens 64 --rounds 3

One engine, warm, by turns: *generate* writes answers to real prompts, *score* reads the very same conversations. *read*
is the forward pass alone, *prompt_logprobs* vLLM's own way in flat form. Speeds are of supervised tokens, by the clock
and by the CPU seconds of the engine's processes, which other work on the machine disturbs less.
"""

import argparse
import asyncio
import json
import os
import sys
import time
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


def config_of(arguments: argparse.Namespace) -> Config:
    targets: dict[str, Any] = {"top_k": arguments.top_k, "probe_fraction": 0.0}
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
                    "max_num_seqs": arguments.answers,
                    "enable_prefix_caching": False,  # or the second round would read nothing
                    # Seeds, which generating needs, and split prompts exclude each other on a CPU.
                    "enable_chunked_prefill": False,
                    "max_num_batched_tokens": 4096,
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
        self._teacher, self._prompts, self._num_tokens, self._top_k = teacher, prompts, num_tokens, top_k
        self._conversations: list[tuple[Ids, npt.NDArray[np.bool_]]] = []

    async def generate(self, tag: str) -> int:
        """Answers of exactly so many tokens."""
        self._teacher._stop_token_ids = []
        asked = enumerate(self._prompts)
        answers = await asyncio.gather(
            *(self._teacher.answer(ids, f"{tag}/{i}", i, self._num_tokens) for i, ids in asked)
        )
        self._conversations = [
            (np.concatenate([ids, answer.token_ids]), np.arange(len(ids) + len(answer.token_ids)) >= len(ids))
            for ids, answer in zip(self._prompts, answers, strict=True)
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


async def rounds(ways: Ways, names: list[str], count: int) -> list[dict[str, Any]]:
    found = []
    for number in range(count + 1):
        order = ["generate", *(name for name in names if name != "generate")] if number == 0 else names
        for name in order[number % len(order) :] + order[: number % len(order)] if number else order:
            result = await measured(name, getattr(ways, name), f"{number}/{name}")
            if number:  # the first round warms up
                found.append(result)
                print(json.dumps(result), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=str(DATA / "SmolLM2-135M-Instruct"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="generate,score,read,prompt_logprobs")
    parser.add_argument("--eager", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    config = config_of(arguments)
    chat = load_chat(config)
    teacher = VLLMTeacher(config, [])
    ways = Ways(teacher, prompts_of(chat, arguments.answers), arguments.tokens, arguments.top_k)
    try:
        found = asyncio.run(rounds(ways, arguments.ways.split(","), arguments.rounds))
    finally:
        teacher.shutdown()
    summary = {}
    for name in arguments.ways.split(","):
        mine = [result for result in found if result["way"] == name]
        summary[name] = {
            "tokens/s": round(float(np.median([r["tokens"] / r["seconds"] for r in mine])), 1),
            "CPU ms/token": round(float(np.median([1e3 * r["cpu_seconds"] / r["tokens"] for r in mine])), 3),
        }
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
