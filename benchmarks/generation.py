"""How much keeping the teacher's distribution costs: speed and memory of generation, side by side. Not a test.

    python benchmarks/generation.py speed     tokens/s: plain vLLM, this pipeline at K = 64 and 256, ray.data.llm
    python benchmarks/generation.py lists     what a token costs the front end: Rows, FlatLogprobs, dicts; no engine
    python benchmarks/generation.py memory    front end's memory: this pipeline, vLLM's lists and dicts; no engine

Results are JSON on stdout; docs/generation.md holds and reads them. Prompts are the first user turns of the quick
start's conversations, the teacher is the quick start's (`make data`).
"""

import argparse
import asyncio
import contextlib
import copy
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"  # vLLM's processes import stages

from stillhouse.schemas import tables  # noqa: E402
from stillhouse.schemas.config import Config  # noqa: E402

DATA = ROOT / "data/quickstart"
MODEL = str(DATA / "SmolLM2-135M-Instruct")
NUM_SEQS = 64
ENGINE = {"enforce_eager": True, "max_num_seqs": NUM_SEQS, "enable_prefix_caching": False}


def make_config(top_k: int, max_tokens: int, max_model_len: int, method: str = "top_k") -> Config:
    return Config.model_validate(
        {
            "run_dir": "unused",
            "source": {"path": str(DATA / "conversations.parquet")},
            "screen": {"classifiers": []},
            "teacher": {
                "model": MODEL,
                "max_model_len": max_model_len,
                "engine": ENGINE,
                "env": {"VLLM_CPU_KVCACHE_SPACE": "2"},
            },
            "sampling": {"max_tokens": max_tokens, "temperature": 1.0, "seed": 7},
            "targets": {"method": method, "top_k": top_k, "num_draws": 256, "probe_fraction": 0.0},
        }
    )


def first_turns(chat: Any, count: int, max_prompt_tokens: int) -> list[str]:
    """First user turns of 8 to `max_prompt_tokens` tokens, in the order of the file."""
    from stillhouse.stages.teacher import TemplateError

    texts: list[str] = []
    for conversation in pq.read_table(DATA / "conversations.parquet", columns=["conversation"])["conversation"]:
        text = conversation[0]["content"].as_py() if len(conversation) else ""
        if len(text) > 4 * max_prompt_tokens:
            continue
        try:
            num_tokens = len(chat.prompt_ids([{"role": "user", "content": text}]))
        except TemplateError:
            continue
        if 8 <= num_tokens <= max_prompt_tokens:
            texts.append(text)
        if len(texts) == count:
            return texts
    raise SystemExit(f"benchmarks/generation: only {len(texts)} of {count} prompts; raise the limit on their length")


def prompts_table(texts: list[str]) -> pa.Table:
    n = len(texts)
    filled = {
        "prompt_id": pa.array([f"p{i}" for i in range(n)]),
        "user_turns": pa.array([[text] for text in texts]),
        "source_row": pa.array(range(n), pa.int64()),
    }
    return pa.table(
        [filled.get(f.name, pa.nulls(n, f.type)).cast(f.type) for f in tables.DEDUPED], schema=tables.DEDUPED
    )


def write_exactly(max_tokens: int) -> None:
    """Makes the teacher ignore its end of turn, so that every way does the same work."""
    from stillhouse.stages.teacher import engine

    ours = engine.sampling_params

    def ignoring_eos(*arguments: Any) -> Any:
        params = ours(*arguments)
        params.ignore_eos, params.stop_token_ids, params.max_tokens = True, [], max_tokens
        return params

    engine.sampling_params = ignoring_eos  # type: ignore[assignment]


def keeping(config: Config, chat: Any, teacher: Any, **targets: Any) -> Any:
    """The stage with other `targets`, by `teacher`'s engine."""
    from stillhouse.stages.generate import Generate
    from stillhouse.stages.teacher.draws import num_engine_draws, num_top_k

    config = config.model_copy(update={"targets": config.targets.model_copy(update=targets)})
    other = copy.copy(teacher)
    other._top_k, other._num_draws = num_top_k(config.targets), num_engine_draws(config.targets)
    other._probe_fraction = config.targets.probe_fraction
    return Generate(config, chat, other)


def worker_seconds() -> float:
    """CPU seconds that vLLM's workers, which compute, have used so far."""
    import psutil

    found = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "VLLM::Worker" in " ".join(process.cmdline()):
                found += sum(process.cpu_times()[:2])
    return found


async def plain(
    engine: Any, chat: Any, texts: list[str], max_tokens: int, run: str, seeded: bool = True, top_k: int | None = None
) -> int:
    """vLLM alone: ids in, ids out, no text, nothing kept; log-probabilities only with `top_k`. Tokens written."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    async def one(number: int, text: str) -> int:
        params = SamplingParams(
            temperature=1.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            seed=number if seeded else None,
            logprobs=top_k,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        ids = chat.prompt_ids([{"role": "user", "content": text}]).tolist()
        async for output in engine.generate(TokensPrompt(prompt_token_ids=ids), params, f"{run}/{number}"):
            final = output
        return len(final.outputs[0].token_ids)

    return sum(await asyncio.gather(*(one(number, text) for number, text in enumerate(texts))))


async def in_stage(generate: Any, texts: list[str], run: str) -> int:
    """This pipeline: from the prompts table to the bytes of a shard. Tokens written."""
    from stillhouse.pipeline.folder import shard

    table = await generate(prompts_table(texts))
    assert table["drop_reason"].null_count == table.num_rows
    data = await asyncio.to_thread(shard.encode, table)
    assert len(data) > 0
    return int(sum(table["num_target_tokens"].to_pylist()))


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Medians over `repeats` rounds; in a round each way runs once on the same warm engine, in turns.

    Also by CPU seconds of the engine's worker, which other work on the machine disturbs less than the clock.
    """
    from stillhouse.stages.teacher.chat import load_chat
    from stillhouse.stages.teacher.engine import VLLMTeacher

    config = make_config(256, options.max_tokens, 1024, "both")  # so that the engine has what it needs for any way
    chat = load_chat(config)
    texts = first_turns(chat, NUM_SEQS, options.max_prompt_tokens)
    write_exactly(options.max_tokens)

    async def rounds() -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        teacher = VLLMTeacher(config, chat.end_of_turn_ids())
        kept = {
            "stage K=64": {"top_k": 64},
            "stage K=256": {"top_k": 256},
            "stage D=64": {"method": "sampled", "num_draws": 64},
            "stage D=256": {"method": "sampled", "num_draws": 256},
            "stage probes": {"top_k": 64, "probe_fraction": 0.1},
        }
        stages = {
            name: keeping(config, chat, teacher, **{"method": "top_k", "probe_fraction": 0.0, **targets})
            for name, targets in kept.items()
        }
        ways: dict[str, Callable[[str], Any]] = {
            "plain": lambda run: plain(teacher.engine, chat, texts, options.max_tokens, run),
            **{name: partial(in_stage, stages[name], texts) for name in stages},
            # What of the difference is the engine's: softmax, top K, and their way to this process.
            "engine K=64": lambda run: plain(teacher.engine, chat, texts, options.max_tokens, run, top_k=64),
            "engine K=256": lambda run: plain(teacher.engine, chat, texts, options.max_tokens, run, top_k=256),
            "plain, no seeds": lambda run: plain(teacher.engine, chat, texts, options.max_tokens, run, False),
        }
        ways = {name: way for name, way in ways.items() if name.startswith(tuple(options.ways.split(",")))}
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        by_worker: dict[str, list[float]] = {name: [] for name in ways}
        try:
            for repeat in range(options.repeats + 1):
                # Rotated, so that no way always follows the same one.
                names = list(ways)[repeat % len(ways) :] + list(ways)[: repeat % len(ways)]
                for name in names:
                    started, used = time.perf_counter(), worker_seconds()
                    num_tokens = await ways[name](f"{name}/{repeat}")
                    seconds = time.perf_counter() - started
                    if repeat:  # the first round warms up
                        speeds[name].append(num_tokens / seconds)
                        by_worker[name].append(num_tokens / (worker_seconds() - used))
                    print(
                        f"{repeat} {name}: {num_tokens / seconds:.0f} tokens/s, load {os.getloadavg()[0]:.1f}",
                        file=sys.stderr,
                    )
        finally:
            teacher.shutdown()
        return speeds, by_worker

    # It has an engine of its own and cannot take turns batch by batch: half of its batches run before the others'.
    before = [] if options.without_ray else ray_llm(texts, options)
    speeds, by_worker = asyncio.run(rounds())
    if not options.without_ray:
        speeds["ray.data.llm K=64"] = before + ray_llm(texts, options)
    return {
        "sequences": NUM_SEQS,
        "max_tokens": options.max_tokens,
        "by_the_clock": compared(speeds),
        "by_worker_seconds": compared(by_worker),
    }


def compared(speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Tokens per second of each way, and to plain vLLM: within a round, which the machine's load disturbs least, and of
    the medians."""
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rounds = {name: values for name, values in speeds.items() if not name.startswith("ray")}
    return {
        "tokens_per_s": {name: [round(v, 1) for v in values] for name, values in speeds.items()},
        "median": {name: round(v, 1) for name, v in medians.items()},
        "median_ratio_to_plain": {
            name: round(statistics.median(v / base for v, base in zip(values, speeds["plain"], strict=True)), 3)
            for name, values in rounds.items()
        },
        "ratio_of_medians": {name: round(value / medians["plain"], 3) for name, value in medians.items()},
    }


def ray_llm(texts: list[str], options: argparse.Namespace) -> list[float]:
    """tokens/s of each batch after the first of Ray Data's vLLM processor, which starts an engine of its own.

    It stops where its rows are in the object store: dicts of log-probabilities, not a table.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    # Logical CPUs: each of its five actors and tasks claims one, and with fewer it waits for ever.
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", num_cpus=16)
    ray.data.DataContext.get_current().enable_progress_bars = False
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=MODEL,
            engine_kwargs={
                **ENGINE,
                "dtype": "bfloat16",
                "max_model_len": 1024,
                "max_logprobs": 256,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": 2048,
            },
            runtime_env={"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}},
            batch_size=NUM_SEQS,
            concurrency=1,
            max_concurrent_batches=1,
            placement_group_config={"bundles": [{"CPU": 1}]},
            log_engine_metrics=False,
        ),
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": row["text"]}],
            "sampling_params": {
                "temperature": 1.0,
                "max_tokens": options.max_tokens,
                "ignore_eos": True,
                "seed": int(row["seed"]),
                "logprobs": 64,
            },
        },
        postprocess=lambda row: {**row, "ended": time.time()},
    )
    batches = options.repeats + 1
    rows = [{"text": text, "seed": seed} for _ in range(batches) for seed, text in enumerate(texts)]
    ended, num_tokens = [], []
    dataset = processor(ray.data.from_items(rows, override_num_blocks=batches))
    for batch in dataset.iter_batches(batch_size=NUM_SEQS, batch_format="pyarrow", prefetch_batches=0):
        ended.append(max(batch["ended"].to_pylist()))
        num_tokens.append(sum(batch["num_generated_tokens"].to_pylist()))
        print(f"ray.data.llm: batch of {num_tokens[-1]} tokens, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    ray.shutdown()
    order = np.argsort(ended)
    return [num_tokens[now] / (ended[now] - ended[before]) for before, now in pairwise(order)]


def lists(options: argparse.Namespace) -> dict[str, Any]:
    """Microseconds a token of turning the engine's arrays of one answer of 1,000 tokens into what the front end keeps
    (and, for FlatLogprobs, back into arrays): the best of `repeats`, one thread."""
    from vllm.logprobs import create_sample_logprobs
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists

    from stillhouse.stages.teacher.arrays import Rows

    found: dict[str, Any] = {}
    for K in (64, 256, 1024):
        random = np.random.default_rng(0)
        steps = [
            SimpleNamespace(
                new_logprobs=LogprobsLists(
                    random.integers(0, 50_000, (1, K + 1)).astype(np.int32),
                    random.normal(size=(1, K + 1)).astype(np.float32),
                    np.ones(1, dtype=np.int64),
                ),
                new_prompt_logprobs_tensors=None,
                prompt_token_id_logprobs=None,
            )
            for _ in range(1000)
        ]

        def rows(K: int = K, steps: list[Any] = steps) -> None:
            kept = Rows(K)
            for step in steps:
                kept.update_from_output(step)
            kept.joined()

        def vllms(flat: bool, K: int = K, steps: list[Any] = steps) -> None:
            kept = LogprobsProcessor(None, create_sample_logprobs(flat), None, 0.0, K, None)
            for step in steps:
                kept.update_from_output(step)
            if flat:
                np.array(kept.logprobs.token_ids, dtype=np.int32)
                np.array(kept.logprobs.logprobs, dtype=np.float32)

        ways: dict[str, Callable[[], None]] = {
            "rows": rows,
            "flat": lambda: vllms(True),
            "dicts": lambda: vllms(False),
        }
        for name, way in ways.items():
            seconds = []
            for _ in range(options.repeats):
                gc.collect()
                started = time.perf_counter()
                way()
                seconds.append(time.perf_counter() - started)
            us = min(seconds) * 1e6 / len(steps)
            found[f"{name} K={K}"] = {"us_per_token": round(us, 2), "cap_tokens_per_s": round(1e6 / us)}
    return found


class Peak:
    """Highest resident memory of this process, polled; bytes above where it began."""

    def __init__(self) -> None:
        gc.collect()
        # What was freed but not given back would hide as much growth.
        pa.default_memory_pool().release_unused()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._start = self.highest = self._resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _resident(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * self._page

    def _poll(self) -> None:
        while not self._done.wait(0.02):
            self.highest = max(self.highest, self._resident())

    def growth(self) -> int:
        return max(self.highest, self._resident()) - self._start

    def end(self) -> int:
        self._done.set()
        self._thread.join()
        return self.growth()


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Each way in a process of its own: this pipeline up to the bytes of a shard; what vLLM's front end would hold in
    flat lists and in dicts before anyone has done anything with it. Steps are replayed, see `Replayed`."""
    found = {}
    for way in ("stage", "flat", "dicts"):
        command = [sys.executable, __file__, "memory", "--way", way, "--max-tokens", str(options.max_tokens)]
        found[way] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    found["ratio stage to dicts"] = round(found["stage"]["peak_mib"] / found["dicts"]["peak_mib"], 3)
    return found


class Replayed:
    """A teacher whose engine is noise of the right shape: what reaches the front end of vLLM step by step, at all
    sequences in turn, and from there on the real thing. `keep` makes what holds one answer."""

    vocab_size = 49152
    broken = False
    last_token_at = 0.0

    def __init__(self, top_k: int, keep: Callable[[], Any]) -> None:
        self._top_k, self._keep = top_k, keep
        self._random = np.random.default_rng(0)

    def _step(self) -> Any:
        from vllm.v1.outputs import LogprobsLists

        ids = self._random.integers(0, self.vocab_size, (1, self._top_k + 1), dtype=np.int32)
        # Sums to less than 1, and compresses as badly as the real ones.
        logprobs = (-7 - 3 * self._random.random((1, self._top_k + 1))).astype(np.float32)
        return SimpleNamespace(
            new_logprobs=LogprobsLists(ids, logprobs, np.ones(1, dtype=np.int64)),
            new_prompt_logprobs_tensors=None,
            prompt_token_id_logprobs=None,
        )

    async def held(self, max_tokens: int) -> tuple[list[int], Any]:
        """Token ids and what holds their distributions, after `max_tokens` steps."""
        kept, token_ids = self._keep(), []
        for _ in range(max_tokens):
            output = self._step()
            kept.update_from_output(output)
            token_ids.append(int(output.new_logprobs.logprob_token_ids[0, 0]))
            await asyncio.sleep(0)  # the next sequence's turn
        return token_ids, kept

    async def answer(self, prompt_ids: Any, request_id: str, seed: int, max_tokens: int) -> Any:
        from stillhouse.stages.teacher.arrays import to_answer

        token_ids, rows = await self.held(max_tokens)
        return to_answer(token_ids, rows, self._top_k, "length")

    def shutdown(self) -> None:
        pass


def memory_of(way: str, max_tokens: int) -> dict[str, Any]:
    """Growth of this process, which has no engine beside it, at K = 256."""
    from vllm.logprobs import create_sample_logprobs
    from vllm.v1.engine.logprobs import LogprobsProcessor

    from stillhouse.pipeline.folder import shard
    from stillhouse.stages.generate import Generate
    from stillhouse.stages.teacher.arrays import Rows
    from stillhouse.stages.teacher.chat import load_chat

    K = 256
    config = make_config(K, max_tokens, max_tokens + 256)
    chat = load_chat(config)
    texts = first_turns(chat, NUM_SEQS, 64)
    found: dict[str, Any] = {"tokens": NUM_SEQS * max_tokens, "top_k": K}

    async def measure() -> None:
        if way == "stage":
            generate = Generate(config, chat, Replayed(K, lambda: Rows(K)))
            shard.encode(await generate(prompts_table(texts[:1])))  # warms up
            peak = Peak()
            table = await generate(prompts_table(texts))
            found["up_to_table_mib"] = round(peak.growth() / 2**20, 1)
            found["table_mib"] = round(table.nbytes / 2**20, 1)
            found["shard_mib"] = round(len(shard.encode(table)) / 2**20, 1)
        else:
            replayed = Replayed(
                K, lambda: LogprobsProcessor(None, create_sample_logprobs(way == "flat"), None, 0.0, K, None)
            )
            await replayed.held(8)
            peak = Peak()
            kept = await asyncio.gather(*(replayed.held(max_tokens) for _ in range(NUM_SEQS)))
            assert len(kept) == NUM_SEQS
        found["peak_mib"] = round(peak.end() / 2**20, 1)

    asyncio.run(measure())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "lists", "memory"])
    parser.add_argument("--max-tokens", type=int, help="tokens of every answer; speed 128, memory 1000")
    parser.add_argument("--max-prompt-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-ray", action="store_true", help="speed without ray.data.llm")
    parser.add_argument("--ways", default="plain,stage,engine", help="speed of these only, by how their names begin")
    parser.add_argument("--way", choices=["stage", "flat", "dicts"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.max_tokens = options.max_tokens or {"speed": 128, "memory": 1000}.get(options.what)
    if options.what == "memory" and options.way:
        found = memory_of(options.way, options.max_tokens)
    else:
        found = {"speed": speed, "lists": lists, "memory": memory}[options.what](options)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
