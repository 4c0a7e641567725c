"""What keeping distributions costs on a GPU: tokens/s and memory at a real model's size. Not a test.

    python benchmarks/gpu.py qwen-7b gemma-4b [--sequences 256] [--max-tokens 256] [--repeats 1] [--eager] [--tiny]

Weights are random (vLLM's `load_format: dummy`): what counts is their shape. Tokenizer and prompts are the quick
start's. Results are JSON on stdout, one object a model.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import generation  # noqa: E402
from stillhouse.schemas.config import Config  # noqa: E402

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SHAPES: dict[str, dict[str, Any]] = {
    "qwen-7b": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    },
    "gemma-4b": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 2560,
        "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "vocab_size": 262144, "rms_norm_eps": 1e-6, "sliding_window": 1024,
        "sliding_window_pattern": 6, "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "hidden_act": "silu", "tie_word_embeddings": True,
    },
}  # fmt: skip


def write_model(name: str, folder: Path) -> None:
    """A folder that vLLM takes for a model: everything but weights."""
    config = {"torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(config | SHAPES[name]))
    for file in TOKENIZER_FILES:
        shutil.copy(Path(generation.MODEL) / file, folder)


def memory_mib(pid: int) -> dict[str, float]:
    """Resident memory of a process and its children, and the device's memory in use."""
    import psutil

    process = psutil.Process(pid)
    found = {"front_end": process.memory_info().rss / 2**20}
    found["engine"] = sum(child.memory_info().rss for child in process.children(recursive=True)) / 2**20
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if shutil.which("nvidia-smi"):
        found["device"] = float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
    return {name: round(value) for name, value in found.items()}


def cpu_seconds(pid: int) -> dict[str, float]:
    """CPU time of the front end and of the engine's processes so far."""
    import psutil

    process = psutil.Process(pid)
    engine = sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))
    return {"front_end_s": sum(process.cpu_times()[:2]), "engine_s": engine}


async def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from stillhouse.stages.teacher import load_teacher
    from stillhouse.stages.teacher.chat import load_chat

    write_model(name, folder)
    raw = generation.make_config(256, options.max_tokens, options.max_tokens + 256, "both").model_dump()
    raw["teacher"] |= {
        "model": str(folder),
        "dtype": "bfloat16",
        "engine": {
            "load_format": "dummy",
            "max_num_seqs": options.sequences,
            "enable_prefix_caching": False,
            "enforce_eager": options.eager,
            **({} if options.tiny else {"gpu_memory_utilization": 0.85}),
        },
        "env": {"VLLM_CPU_KVCACHE_SPACE": "2"},
    }
    config = Config.model_validate(raw)
    chat = load_chat(config)
    texts = generation.first_turns(chat, options.sequences, 64)
    generation.write_exactly(options.max_tokens)
    began = time.perf_counter()
    teacher: Any = load_teacher(config, chat.end_of_turn_ids())
    found: dict[str, Any] = {"start_s": round(time.perf_counter() - began, 1)}
    found["runner"] = "V2" if teacher.engine.vllm_config.use_v2_model_runner else "V1"
    kept = {
        "top_k 64": {"method": "top_k", "top_k": 64},
        "draws 64": {"method": "sampled", "num_draws": 64},
        "both 64": {"method": "both", "top_k": 64, "num_draws": 64},
    }
    ways: dict[str, Callable[[list[str], str], Any]] = {
        "plain": lambda texts, run: generation.plain(teacher.engine, chat, texts, options.max_tokens, run),
        "vLLM top 64": lambda texts, run: generation.plain(
            teacher.engine, chat, texts, options.max_tokens, run, top_k=64
        ),
    } | {
        f"stage {way}": partial(
            generation.in_stage, generation.keeping(config, chat, teacher, **{"probe_fraction": 0.0, **targets})
        )
        for way, targets in kept.items()
    }
    try:
        for way, ask in ways.items():
            await ask(texts[:16], f"warm/{way}")
            seconds, used = [], cpu_seconds(os.getpid())
            for repeat in range(options.repeats):
                began = time.perf_counter()
                num_tokens = await ask(texts, f"{way}/{repeat}")
                seconds.append(time.perf_counter() - began)
            spent = {key: round(value - used[key], 2) for key, value in cpu_seconds(os.getpid()).items()}
            found[way] = {"tokens_per_s": round(num_tokens / min(seconds)), "seconds": [round(s, 2) for s in seconds]}
            found[way] |= {"cpu_" + key: value for key, value in spent.items()}
            found[way]["memory_mib"] = memory_mib(os.getpid())
            print(f"{name}, {way}: {found[way]}", file=sys.stderr, flush=True)
    except Exception:
        found["error"] = traceback.format_exc()[-3000:]
        print(found["error"], file=sys.stderr, flush=True)
    finally:
        teacher.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=SHAPES)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="no compiling and no CUDA graphs")
    parser.add_argument("--tiny", action="store_true", help="leave the device's memory alone: for a dry run on a CPU")
    options = parser.parse_args()
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({name: asyncio.run(measure(name, options, Path(folder)))}), flush=True)


if __name__ == "__main__":
    main()
