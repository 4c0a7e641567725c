"""Configurations of real engines, and front ends of one that are scripts of their own."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from stillhouse.schemas.config import Config
from tests.support.data import ROOT, TEACHER, make_raw_config

NUM_DRAWS = 64


def engine_config(folder: Path, top_k: int, **teacher: Any) -> Config:
    """For answers of up to 64 tokens. In float32, because a CPU without AVX-512 multiplies bfloat16 several times
    slower."""
    raw = make_raw_config(folder)
    raw["teacher"] = {
        "model": str(TEACHER),
        "dtype": "float32",
        "max_model_len": 256,
        "engine": {"enforce_eager": True, "max_num_seqs": 8},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        **teacher,
    }
    raw["ingest"]["max_prompt_tokens"] = 128
    raw["targets"] = {"top_k": top_k}
    raw["sampling"] = {"max_tokens": 64, "temperature": 0.7}
    return Config.model_validate(raw)


def sampled_config(folder: Path, **changes: Any) -> Config:
    """For conversations of two turns with draws, on an engine that has to preempt."""
    raw = make_raw_config(folder)
    raw["teacher"] = {
        "model": str(TEACHER),
        "dtype": "float32",
        "max_model_len": 512,
        # Ten blocks for eight sequences: as soon as more than two pass their first block, one is preempted.
        "engine": {"enforce_eager": True, "max_num_seqs": 8, "num_gpu_blocks_override": 10, "block_size": 128},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    raw["ingest"] |= {"turns": "all", "max_prompt_tokens": 128}
    raw["sampling"] = {"max_tokens": 96, "temperature": 1.0, "seed": 11}
    raw["targets"] = {"method": "both", "top_k": 256, "num_draws": NUM_DRAWS, "probe_fraction": 0.5, "entropy": True}
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value}
    return Config.model_validate(raw)


KILLED = """
import asyncio, sys
from pathlib import Path
import numpy as np
from stillhouse.stages.teacher.engine import VLLMTeacher
from tests.support.engines import engine_config

if __name__ == "__main__":
    teacher = VLLMTeacher(engine_config(Path(sys.argv[1]), 8), [2])
    print("started", flush=True)

    async def answers():
        for n in range(1000):
            await asyncio.gather(*(teacher.answer(np.array([1, 2, 3], np.int32), f"{n}/{i}", i, 200) for i in range(8)))

    asyncio.run(answers())
"""


def left_by_killed_front_end(folder: Path, awaited: str, works: bool) -> list[list[str]]:
    """Start a front end, kill it once a process named `awaited` runs below it (`works`: once answers are under way
    too), and return the command lines of its processes that are still there after 30 s."""
    script = folder / "killed.py"
    script.write_text(KILLED)
    front_end = psutil.Popen(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    children: list[psutil.Process] = []
    while not any(awaited in " ".join(command_line(child)) for child in children):
        assert front_end.poll() is None
        time.sleep(0.2)
        children = front_end.children(recursive=True)
    if works:
        assert front_end.stdout.readline() == b"started\n"
        time.sleep(1)
    front_end.kill()
    front_end.wait()
    front_end.stdout.close()
    _, left = psutil.wait_procs(children, timeout=30)
    return [command_line(process) for process in left]


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
