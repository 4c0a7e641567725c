"""What each `targets` setting costs, in bytes per token on disk and in nats, on real targets of two teachers. Not a test.

    make data/gemma/.prepared                       # Gemma 3 270M, vocabulary 262,144; SmolLM2's is 49,152
    python benchmarks/storage.py collect            # generates and scores; minutes, once (data/storage)
    python benchmarks/storage.py sizes              # JSON on stdout; docs/targets.md holds and reads it
    python benchmarks/storage.py gradient           # how far a student's gradient points from the full one's

Beside them DistillKit's raw and quantised layouts of the same distributions; the quantised ones by its own code, when a
checkout of it (https://github.com/arcee-ai/DistillKit, a61c2e7d) is on PYTHONPATH.

Shape legend: S tokens, V vocabulary, K targets per token, D draws per token.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"

from schemas import tables, targets  # noqa: E402
from schemas.config import Config  # noqa: E402
from schemas.targets import Draws, TopK  # noqa: E402

STORAGE = ROOT / "data/storage"
TEACHERS = {
    "SmolLM2-135M-Instruct": ROOT / "data/quickstart/SmolLM2-135M-Instruct",
    "gemma-3-270m": ROOT / "data/gemma/gemma-3-270m",
}
GEMMA_TEMPLATE = """{{ bos_token }}{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"""  # a base model
K_MOST, D_MOST = 256, 256


def collect(name: str, num_prompts: int, max_tokens: int) -> None:
    """Answers at temperature 1 with the top 256 and 256 draws of every token, and their full distributions by
    transformers; float32 throughout, so that what is measured is storage and not arithmetic."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.generation import first_turns
    from stages.chat import Chat
    from stages.teacher import VLLMTeacher

    folder = TEACHERS[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = Chat(tokenizer, None if tokenizer.chat_template else GEMMA_TEMPLATE)
    texts = first_turns(chat, num_prompts, 128)
    config = Config.model_validate(
        {
            "run_dir": "unused",
            "source": {"path": "unused"},
            "teacher": {
                "model": str(folder),
                "dtype": "float32",
                "max_model_len": 512,
                "engine": {"enforce_eager": True, "max_num_seqs": 32},
                "env": {"VLLM_CPU_KVCACHE_SPACE": "2"},
            },
            "sampling": {"max_tokens": max_tokens, "temperature": 1.0},
            "targets": {"method": "both", "top_k": K_MOST, "num_draws": D_MOST, "probe_fraction": 0.0},
        }
    )
    teacher = VLLMTeacher(config, [tokenizer.eos_token_id])
    prompts = [chat.prompt_ids([{"role": "user", "content": text}]) for text in texts]

    async def answers() -> list[Any]:
        return await asyncio.gather(*(teacher.answer(p, str(i), 1000 + i, max_tokens) for i, p in enumerate(prompts)))

    try:
        answered = asyncio.run(answers())
    finally:
        teacher.shutdown()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    out = STORAGE / name
    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, list[Any]] = {"ids": [], "logprobs": [], "draws": [], "tokens": []}
    full = np.lib.format.open_memmap(
        out / "full.npy", "w+", np.float16, (sum(len(a.token_ids) for a in answered), teacher.vocab_size)
    )
    done = 0
    for prompt, a in zip(prompts, answered, strict=True):
        ids = torch.tensor(np.concatenate([prompt, a.token_ids])[None].astype(np.int64))
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
        S = len(a.token_ids)
        full[done : done + S] = torch.log_softmax(logits, -1).numpy()[:, : teacher.vocab_size]
        done += S
        for key, value in (("ids", a.target_ids), ("logprobs", a.target_logprobs), ("draws", a.draws), ("tokens", a.token_ids)):
            arrays[key].append(value)
    full.flush()
    np.savez(
        out / "targets.npz",
        lengths=[len(a.token_ids) for a in answered],
        prompt_lengths=[len(p) for p in prompts],
        prompts=np.concatenate(prompts),
        **{key: np.concatenate(value) for key, value in arrays.items()},
    )
    print(f"{name}: {done} tokens of {len(answered)} answers", file=sys.stderr)


if __name__ == "__main__":
    for teacher_name in TEACHERS:
        collect(teacher_name, 64, 64)
