"""What `check` says of the models of a run: what their files and this machine tell without an engine."""

import importlib.util
import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from stillhouse.pipeline import models
from stillhouse.pipeline.models import Model
from stillhouse.schemas.config import Config, ConfigError, GuardConfig
from stillhouse.stages.teacher.pretrained import model_facts

WHOSE = {"rollout": "the student", "screen": "the guard", "review": "the guard"}
"""What a model is called, by its stage."""


def slow_models(config: Config) -> list[str]:
    """`slow_dtype` of each model."""
    return [*dict.fromkeys(filter(None, (slow_dtype(model.where, model.teacher.dtype) for model in _every(config))))]


def model_problems(config: Config) -> list[str]:
    """Why an engine would not start, or would not do what it is asked, each said once."""
    problems = [text for view in config.views() for text in _unknown_tokens(view)]
    problems += [text for model in _every(config) for text in _too_long(model)]
    return [*dict.fromkeys([*problems, *_guard_problems(config)])]


def _every(config: Config) -> list[Model]:
    return [model for view in config.views() for model in models.of(view)]


def _unknown_tokens(config: Config) -> Iterator[str]:
    """More tokens than there are, asked of the teacher or the student."""
    targets, vocab_size = config.targets, model_facts(config).vocab_size
    is_asked = targets.method != "sampled" or targets.draws_from == "top_k"
    if is_asked and vocab_size is not None and targets.top_k > vocab_size:
        yield f"targets.top_k: {targets.top_k} exceeds the teacher's vocabulary of {vocab_size}; lower it"
    if config.rollout is None:
        return
    asked, vocab_size = config.rollout.asked_top_k, model_facts(config.writer).vocab_size
    if vocab_size is not None and asked > vocab_size:
        yield f"rollout.asked_top_k: {asked} exceeds the student's vocabulary of {vocab_size}; lower it"


def _too_long(model: Model) -> Iterator[str]:
    """A context that vLLM does not start the model with."""
    teacher, longest = model.teacher, model_facts(model.run).max_positions
    is_forced = "hf_overrides" in teacher.engine or "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in {**os.environ, **teacher.env}
    if longest is not None and teacher.max_model_len > longest and not is_forced:
        where = "teacher" if model.stage == "rollout" else model.where  # a student has the teacher's context
        yield (
            f"{where}.max_model_len: {teacher.max_model_len} exceeds the {longest} positions that "
            f"{WHOSE.get(model.stage, 'the teacher')} was made for (max_position_embeddings); lower it"
        )


def _guard_problems(config: Config) -> Iterator[str]:
    from stillhouse.stages.filters.guard import check_guard

    for guard in config.screen.classifiers:
        if isinstance(guard, GuardConfig):
            try:
                check_guard(guard)
            except ConfigError as error:
                yield str(error)


def slow_dtype(where: str, dtype: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """What to know where this machine would run a model on a CPU that is slow with `dtype`; None otherwise.

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
        f"{where}.dtype: this machine has no GPU, and its CPU no AVX-512; {dtype} is then about 7 times slower "
        "than float32; set float32 for a run here"
    )
