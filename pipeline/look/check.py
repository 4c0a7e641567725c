"""What a run would meet and cost, before any of it is paid for: reads the first rows of the source for real."""

import importlib.util
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.pipeline import flow
from stillhouse.pipeline.console import message
from stillhouse.pipeline.folder.identity import compare_with_folder
from stillhouse.schemas.config import Config, TargetsConfig


def bytes_per_token(settings: TargetsConfig) -> float:
    """On disk, all columns: what flat distributions cost, SmolLM2's and Gemma 3 270M's at temperature 1
    (docs/targets.md). Distinct draws grow as a power of their number."""
    total = 15.0
    if settings.method != "sampled":
        total += settings.top_k * (2.4 if settings.precision else 3.1)
    if settings.method != "top_k":
        total += 2.3 * settings.num_draws**0.73
    return total


def check(config: Config, rows: int, tokens_per_second: float) -> dict[str, Any]:
    """Ingests the first `rows` source rows without writing, and extrapolates.

    Raises `ConfigError` when the run folder belongs to another configuration, and what reading the source or the
    teacher's tokenizer raises. Tokens, bytes and GPU hours are upper bounds: before dedupe and screen, every answer
    as long as `sampling.max_tokens`.
    """
    compare_with_folder(config)
    from stillhouse.stages.ingest import Ingest
    from stillhouse.stages.sources import count_rows, read_rows

    num_prompt_tokens = flow.prompt_counter(config)
    total = count_rows(config.source)
    looked = min(filter(None, (rows, config.source.limit)))
    sample = config.model_copy(update={"source": config.source.model_copy(update={"limit": looked})})
    table = pa.concat_tables(Ingest(sample, num_prompt_tokens)(read_rows(sample.source)))
    reasons = table.column("drop_reason")
    kept = table.filter(pc.is_null(reasons))
    counts = {item["values"]: item["counts"] for item in pc.value_counts(reasons.drop_null()).to_pylist()}
    result: dict[str, Any] = {
        "rows_looked_at": table.num_rows,
        "rows_accepted": kept.num_rows,
        "refused": dict(sorted(counts.items())),
        "source_rows": total,
        "notes": [note for note in [slow_dtype(config.teacher.dtype)] if note is not None],
    }
    if kept.num_rows:
        turns = pc.sum(pc.list_value_length(kept.column("user_turns"))).as_py()
        result["mean_prompt_tokens"] = round(pc.mean(kept.column("num_prompt_tokens")).as_py(), 1)
        result["mean_turns"] = round(turns / kept.num_rows, 2)
    if total is not None and table.num_rows:
        prompts = round(total * kept.num_rows / table.num_rows)
        tokens = round(prompts * config.sampling.n * config.sampling.max_tokens * result.get("mean_turns", 0))
        engine = config.teacher.engine
        gpus = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
        result["estimate"] = {
            "prompts": prompts,
            "max_answer_tokens": tokens,
            "max_bytes": round(tokens * bytes_per_token(config.targets)),
            "max_gpu_hours": round(tokens / tokens_per_second / 3600 * gpus, 1),
            "tokens_per_second_per_replica": tokens_per_second,
        }
    return result


def slow_dtype(dtype: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """What to know where this machine would run the teacher on a CPU that is slow with `dtype`; None otherwise.

    torch 2.13 on an AMD EPYC with AVX2, one thread, [32, 576] x [576, 1536]: float32 66 GFLOP/s, bfloat16 9.
    """
    if dtype == "float32" or glob("/dev/nvidia[0-9]*") or importlib.util.find_spec("vllm") is None:
        return None
    try:
        has_avx512 = " avx512f" in cpuinfo.read_text()
    except OSError:  # not Linux
        return None
    if has_avx512:
        return None
    return (
        f"teacher.dtype: this machine has no GPU, and its CPU no AVX-512; {dtype} is then about 7 times slower "
        "than float32; set float32 for a run here"
    )


def show(result: dict[str, Any]) -> None:
    """`check` for people, on standard error."""
    refused = ", ".join(f"{reason} {count:,}" for reason, count in result["refused"].items()) or "none"
    message("configuration: valid")
    message(
        f"source: {result['rows_looked_at']:,} rows looked at, {result['rows_accepted']:,} accepted; refused: {refused}"
    )
    if "mean_turns" in result:
        message(f"prompts: {result['mean_prompt_tokens']} tokens and {result['mean_turns']} turns on average")
    if "estimate" in result:
        e = result["estimate"]
        message(
            f"estimate (upper bounds, before dedupe and screen): {e['prompts']:,} prompts, {e['max_answer_tokens']:,} "
            f"answer tokens, {e['max_bytes'] / 1e9:,.2f} GB, {e['max_gpu_hours']:,} GPU hours at "
            f"{e['tokens_per_second_per_replica']:,.0f} tokens/s per replica (--tokens-per-second)"
        )
    else:
        message("estimate: the source does not say how many rows it has; set source.limit for one")
    for note in result["notes"]:
        message(f"note: {note}")
