"""Every knob, its range and its meaning: the configuration of a run, as pydantic models.

Not the data contract (that is `schemas.tables`). Defaults < YAML < `--set`, validated once. Keys marked `free` never
change what is written; every other key is part of the configuration hash, and a run folder refuses a different one.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class _Free:
    """Marks a field that never changes what is written."""


free = _Free()
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]

OBJECT_STORES = ("s3", "gs", "az")


def checked_location(path: str) -> str:
    """`path` as it is: one of a file system, `file://…`, or an object store's. Raises ValueError for any other URL."""
    scheme, separator, rest = path.partition("://")
    if separator and scheme != "file":
        if scheme not in OBJECT_STORES:
            known = ", ".join(f"{name}://" for name in OBJECT_STORES)
            raise ValueError(f"{path}: {scheme}:// is no known object store; use {known}, file:// or a path")
        if not rest.partition("/")[0]:
            raise ValueError(f"{path}: names no bucket; write {scheme}://BUCKET/…")
    return path


class Section(BaseModel):
    """A group of keys: unknown keys are refused, values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names each key and what is wrong with it."""


class SourceConfig(Section):
    path: str | list[str] | None = None
    """File, folder, glob or object-store URL of Parquet, JSONL or JSON (also .gz, .zst); a list is read in order."""
    dataset: str | None = None
    """Instead of `path`: a data set on the Hugging Face hub, such as lmsys/lmsys-chat-1m (token from HF_TOKEN)."""
    revision: str | None = None
    """Commit, tag or branch of `dataset`; has no default, because it decides the data."""
    format: Literal["auto", "lmsys", "sharegpt", "wildchat", "messages"] = "auto"
    """How a row spells a conversation; auto looks at the columns of the first readable row."""
    name: str | None = None
    """Goes into the `source` column; by default the dataset's id or the path's last part."""
    limit: Count | None = None
    """Read only the first rows of the source."""

    @field_validator("path")
    @classmethod
    def _known_locations(cls, path: str | list[str] | None) -> str | list[str] | None:
        for location in [path] if isinstance(path, str) else path or []:
            checked_location(location)
        return path

    @model_validator(mode="after")
    def _one_source(self) -> "SourceConfig":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("name either `path` or `dataset`, not both and not neither")
        if self.dataset is not None and self.revision is None:
            raise ValueError("a hub `dataset` needs a `revision`: the same run must read the same rows next month")
        return self


class IngestConfig(Section):
    turns: Literal["first", "all"] = "first"
    """Keep the first user turn only, or all of them."""
    languages: list[str] | None = None
    """Keep these values of the source's language column; null keeps every language."""
    max_prompt_tokens: Count | None = None
    """Refuse a longer first prompt, counted in the teacher's tokens with its template; by default whatever the
    teacher's context leaves beside `sampling.max_tokens`."""
    rows_per_shard: Count = 1000
    """Source rows per shard. Fixes the partition of the whole run."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.5
    """Fail when more than this share of the source is refused."""


class DedupeConfig(Section):
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Join two prompts when their estimated Jaccard similarity is at least this."""
    num_perm: Annotated[int, Field(ge=16, le=1024)] = 128
    """MinHash permutations."""
    ngram: Count = 5
    """Words per shingle."""
    char_ngram: Count = 5
    """Characters per shingle of a text too short for words."""
    max_per_cluster: Count = 1
    """Distinct texts kept of a cluster of near-duplicates."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Of the permutations."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.95
    """Fail when more than this share is dropped."""


class ProfanityCheckConfig(Section):
    """A small linear classifier that ships inside its wheel (English; label `profanity`)."""

    name: Literal["profanity-check"]
    thresholds: dict[str, Fraction] = {"profanity": 0.9}
    """Drop at or above this score, per label. Labels without a threshold are scored and kept."""


class DetoxifyConfig(Section):
    """Detoxify's transformer classifiers."""

    name: Literal["detoxify"]
    model: Literal["original", "unbiased", "multilingual", "original-small", "unbiased-small"] = "unbiased"
    """Which of Detoxify's released checkpoints."""
    checkpoint: str | None = None
    """A local checkpoint in Detoxify's format instead; needs `checkpoint_sha256` or `trust_checkpoint`."""
    checkpoint_sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    """Refuse the checkpoint file unless it has this digest. Without it, a released checkpoint must have the digest that
    its name begins with (8 digits)."""
    trust_checkpoint: Annotated[bool, free] = False
    """Unpickle a local `checkpoint` without `checkpoint_sha256`: a file that anyone could have changed runs as code."""
    huggingface_config_path: str | None = None
    """Folder with the model's config and tokenizer, for machines without the hub."""
    thresholds: dict[str, Fraction] = {"toxicity": 0.8, "severe_toxicity": 0.3, "threat": 0.5}
    """Drop at or above this score, per label. Labels without a threshold are scored and kept."""
    batch_size: Count = 32
    """Windows per forward pass. Decides the data, if only in a score's sixth digit: padding changes rounding."""

    @model_validator(mode="after")
    def _verified(self) -> "DetoxifyConfig":
        if self.checkpoint is not None and self.checkpoint_sha256 is None and not self.trust_checkpoint:
            raise ValueError(
                "a local `checkpoint` is unpickled, which runs whatever code it holds; give its `checkpoint_sha256` "
                "(sha256sum prints it), or set `trust_checkpoint: true` if nobody else can write the file"
            )
        return self


ClassifierConfig = Annotated[ProfanityCheckConfig | DetoxifyConfig, Field(discriminator="name")]


class ScreenConfig(Section):
    drop_flagged: bool = True
    """Drop prompts that the source's own moderation flagged."""
    classifiers: list[ClassifierConfig] = []
    """Applied to every user turn here and to every answer in review."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.5
    """Fail when more than this share is dropped."""


class TeacherConfig(Section):
    model: str
    """Folder of Hugging Face weights, or a hub id (then with `revision`)."""
    revision: str | None = None
    """Commit or tag of a hub model; required for one, because it decides the data."""
    chat_template: str | None = None
    """Jinja text used instead of the tokenizer's own template. In YAML the name of the file that holds it."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the template, such as enable_thinking."""
    max_model_len: Annotated[int, Field(ge=8)]
    """Context of the teacher, prompt and answer together, in tokens."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the teacher's weights and arithmetic."""
    engine: dict[str, Any] = {}
    """More engine options, passed to vLLM as they are, under vLLM's names. Options of `FREE_ENGINE_OPTIONS` may change
    in the middle of a run."""
    env: Annotated[dict[str, str], free] = {}
    """Environment variables of the engine's process, such as VLLM_CPU_KVCACHE_SPACE (GiB)."""
    stall_timeout_s: Annotated[float, Field(gt=0.0), free] = 600.0
    """An engine from which no token has come for so long, while answers are under way, is taken to hang: its process is
    ended, and the attempt counts as failed. Must exceed what reading the longest prompt takes."""
    backend: str = "stillhouse.stages.teacher:VLLMTeacher"
    """module:class that implements `stages.teacher.Teacher`."""

    @model_validator(mode="after")
    def _pinned(self) -> "TeacherConfig":
        if self.revision is None and not is_local_path(self.model):
            raise ValueError(
                f"{self.model!r} is not a folder here, so it is taken for a hub id, and that needs a `revision` "
                "(a commit or tag): the teacher decides the data; for a folder write a path that starts with / or ./"
            )
        if "hf_token" in self.engine:
            raise ValueError("engine: hf_token would be written into the manifest; set HF_TOKEN in the environment")
        reserved = RESERVED_ENGINE_OPTIONS & set(self.engine)
        if reserved:
            raise ValueError(f"engine: {sorted(reserved)} are set by Stillhouse from other keys; remove them here")
        return self

    @property
    def trust_remote_code(self) -> bool:
        """Whether Python code that comes with the model may run, here as in the engine: only where vLLM is told so."""
        return self.engine.get("trust_remote_code") is True


RESERVED_ENGINE_OPTIONS = frozenset(
    {
        "dtype",
        "logits_processors",
        "logprobs_mode",
        "max_logprobs",
        "max_model_len",
        "model",
        "revision",
        "seed",
        "worker_extension_cls",
    }
)
"""vLLM engine options that other keys decide, or with which the distribution would not be the teacher's own."""

FREE_ENGINE_OPTIONS = frozenset(
    {
        "disable_log_stats",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "load_format",
        "max_num_batched_tokens",
        "max_num_seqs",
        "pipeline_parallel_size",
        "swap_space",
        "tensor_parallel_size",
    }
)
"""vLLM engine options about speed and memory only: never part of the configuration hash."""


class SamplingConfig(Section):
    """How the teacher writes, under vLLM's names. What is *stored* is always the distribution at temperature 1."""

    n: Count = 1
    """Answers per prompt."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Fraction = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    max_tokens: Count
    """Per assistant turn."""
    stop_token_ids: list[int] = []
    """In addition to the model's end-of-sequence and the template's end-of-turn tokens."""
    seed: int = 0
    """Every sample's own seed is derived from this, its prompt_id and its number."""


class TargetsConfig(Section):
    """What is kept of the teacher's distribution; docs/targets.md has what each choice costs."""

    method: Literal["top_k", "sampled", "both"] = "top_k"
    """`top_k`: the most probable tokens and the mass outside them. `sampled`: independent draws from the whole
    distribution, unbiased and smaller. Or both."""
    top_k: Count = 64
    """Most probable tokens kept per position (K)."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Of the K, keep only as many per position as are needed to reach this mass."""
    precision: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Round log-probabilities to multiples of this many nats: 0 (float16 as it is) or a power of two such as
    0.015625."""
    num_draws: Annotated[int, Field(ge=1, le=32767)] = 64
    """Draws per position (D), with replacement."""
    draws_from: Literal["engine", "top_k"] = "engine"
    """Where draws are taken: inside the engine, from the whole distribution; or, for an engine that cannot, from the
    `top_k` most probable tokens, by which every token outside of them is lost and counted as missing."""
    probe_fraction: Fraction = 0.1
    """Share of answers for which the engine keeps one token's whole distribution, to measure what storing costs."""

    @model_validator(mode="after")
    def _exact(self) -> "TargetsConfig":
        if self.precision and math.frexp(self.precision)[0] != 0.5:
            raise ValueError(f"precision {self.precision} is not a power of two; write for example 0.015625 (1/64)")
        return self


class ReviewConfig(Section):
    thresholds: dict[str, Fraction] | None = None
    """Per label for answers; by default those of `screen.classifiers`."""
    drop_truncated: bool = False
    """Drop answers that end by length; otherwise they are only marked in `finish_reasons`."""
    loop_tokens: Annotated[int, Field(ge=8)] = 64
    """An answer is degenerate when it repeats itself over a stretch of at least this many tokens ..."""
    loop_repeats: Annotated[int, Field(ge=2)] = 4
    """... with at least this many copies of the repeated piece."""
    max_duplicates: Count = 1
    """Answers kept of those that are equal after normalisation."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.5
    """Fail when more than this share is dropped."""


class GenerateConfig(Section):
    system_prompts: list[str | None] | None = None
    """System prompts for the teacher: each prompt gets one of them, drawn by its id and `sampling.seed`; null stands
    for none. In YAML either the list or the name of a YAML file that holds it. The source's own system prompts are
    kept aside in `system_prompt` and not used."""
    thinking: Literal["supervise", "keep", "drop"] = "supervise"
    """What becomes of a reasoning teacher's thinking: tokens like any others; kept in `input_ids` without labels and
    targets; or cut out (the answer's targets then are conditioned on thinking that the student does not see)."""
    thinking_tokens: tuple[str, str] = ("<think>", "</think>")
    """What opens and closes thinking; each must be a single token of the teacher."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.2
    """Fail when more than this share gets no answer."""


class PublishConfig(Section):
    license: str = "other"
    """For the dataset card. Mind the source's and the teacher's terms."""


class WorkersConfig(Section):
    """Ray resources of one stage; never changes what is written."""

    min_workers: Count = 1
    max_workers: Count = 1
    num_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    """Per worker."""
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """Per worker."""
    shards_in_flight: Count = 1
    """Shards one worker holds at once; for generate, what keeps the engine full across a shard's end."""
    resources: dict[str, float] = {}
    """Custom Ray resources per worker."""

    @model_validator(mode="after")
    def _ordered(self) -> "WorkersConfig":
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers {self.min_workers} exceeds max_workers {self.max_workers}")
        return self


class ResourcesConfig(Section):
    ingest: WorkersConfig = WorkersConfig()
    dedupe: WorkersConfig = WorkersConfig(max_workers=2)
    screen: WorkersConfig = WorkersConfig()
    generate: WorkersConfig = WorkersConfig(shards_in_flight=2)
    review: WorkersConfig = WorkersConfig()
    publish: WorkersConfig = WorkersConfig(max_workers=2)
    max_attempts: Count = 3
    """Attempts at a shard before it is set aside (a generate shard is then first made in parts)."""


class Config(Section):
    """A whole run."""

    run_dir: Annotated[str, AfterValidator(checked_location), free]
    """Folder of the run: stages, ledger, dataset. A path or an object-store URL."""
    source: SourceConfig
    ingest: IngestConfig = IngestConfig()
    dedupe: DedupeConfig = DedupeConfig()
    screen: ScreenConfig = ScreenConfig()
    teacher: TeacherConfig
    sampling: SamplingConfig
    targets: TargetsConfig = TargetsConfig()
    generate: GenerateConfig = GenerateConfig()
    review: ReviewConfig = ReviewConfig()
    publish: PublishConfig = PublishConfig()
    resources: Annotated[ResourcesConfig, free] = ResourcesConfig()

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.sampling.max_tokens >= self.teacher.max_model_len:
            raise ValueError(
                f"sampling.max_tokens {self.sampling.max_tokens} leaves no room for a prompt in "
                f"teacher.max_model_len {self.teacher.max_model_len}; lower the first or raise the second"
            )
        if self.ingest.max_prompt_tokens is not None:
            need = self.ingest.max_prompt_tokens + self.sampling.max_tokens
            if need > self.teacher.max_model_len:
                raise ValueError(
                    f"ingest.max_prompt_tokens + sampling.max_tokens = {need} exceeds teacher.max_model_len "
                    f"{self.teacher.max_model_len}; lower one of the first two or raise the last"
                )
        draws_in_engine = self.targets.method != "top_k" and self.targets.draws_from == "engine"
        if draws_in_engine and "speculative_config" in self.teacher.engine:
            raise ValueError(
                "teacher.engine.speculative_config: vLLM runs no logits processors with it, so it cannot draw; remove "
                "it, or set targets.method to top_k"
            )
        if draws_in_engine and self.sampling.repetition_penalty != 1.0:
            raise ValueError(
                f"sampling.repetition_penalty {self.sampling.repetition_penalty} changes what the engine draws from "
                "(vLLM's V2 runner applies it first); set it to 1.0, targets.method to top_k, or targets.draws_from to "
                "top_k"
            )
        return self

    @property
    def max_prompt_tokens(self) -> int:
        """Longest first prompt, in teacher tokens, that leaves room for an answer of `sampling.max_tokens`."""
        return self.ingest.max_prompt_tokens or self.teacher.max_model_len - self.sampling.max_tokens


def is_local_path(name: str) -> bool:
    """Whether a model or data set name means a folder: it exists, or is written as a path."""
    return name.startswith(("/", "./", "../", "~")) or Path(name).exists()


def deciding_values(config: Config) -> dict[str, Any]:
    """Every key that decides what is written, dotted, with its JSON value (free keys left out)."""
    flat: dict[str, Any] = {}

    def visit(section: Section, prefix: str) -> None:
        for name, field in type(section).model_fields.items():
            if any(isinstance(mark, _Free) for mark in field.metadata):
                continue
            value, key = getattr(section, name), prefix + name
            if isinstance(value, Section):
                visit(value, f"{key}.")
            elif key == "teacher.engine":
                flat[key] = {k: v for k, v in sorted(value.items()) if k not in FREE_ENGINE_OPTIONS}
            elif isinstance(value, list) and value and isinstance(value[0], Section):
                for i, item in enumerate(value):
                    visit(item, f"{key}[{i}].")
            else:
                flat[key] = value

    visit(config, "")
    return flat


def config_hash(config: Config) -> str:
    """sha256 (hex) of `deciding_values` as canonical JSON."""
    return hashlib.sha256(json.dumps(deciding_values(config), sort_keys=True).encode()).hexdigest()


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys at which two `deciding_values` differ, sorted."""
    missing = object()
    return sorted(key for key in old.keys() | new.keys() if old.get(key, missing) != new.get(key, missing))


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), validate, make paths absolute.

    Raises `ConfigError` with one line per wrong key.
    """
    import yaml  # here, so that `--help` does not pay for it

    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: is not YAML; check indentation, colons and quotes") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: holds {type(raw).__name__}, not a mapping of keys; start from configs/quickstart.yaml"
        )
    for override in overrides or []:
        key, sep, text = override.partition("=")
        if not sep or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", key):
            raise ConfigError(
                f"--set {override!r}: is not key.path=value; write for example --set sampling.max_tokens=256"
            )
        node = raw
        *parents, last = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {key}: {parent!r} is not a section; check the key")
            node = child
        node[last] = yaml.safe_load(text)
    _inline(raw, "generate", "system_prompts", yaml.safe_load)
    _inline(raw, "teacher", "chat_template", str)
    try:
        return absolute(Config.model_validate(raw))
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            key = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                message = "is not a known key; check its spelling"
            lines.append(f"{key}: {message}" if key else message)
        raise ConfigError(f"{path}: " + "; ".join(lines)) from None


def _inline(raw: dict[str, Any], section: str, key: str, parse: Callable[[str], Any]) -> None:
    """Puts a file's content where `raw` names the file, so that the hash covers it and no worker needs the file."""
    import yaml

    values = raw.get(section)
    if not isinstance(values, dict) or not isinstance(values.get(key), str):
        return
    try:
        values[key] = parse(Path(values[key]).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{section}.{key}: {values[key]} cannot be read ({reason}); check the path") from None
    except yaml.YAMLError:
        raise ConfigError(f"{section}.{key}: {values[key]} is not YAML; write a list of strings") from None


def absolute(config: Config) -> Config:
    """`config` with local paths made absolute: workers need not share the driver's folder."""

    def fix(path: str) -> str:
        return path if "://" in path else str(Path(path).expanduser().absolute())

    source, teacher = config.source, config.teacher
    if source.path is not None:
        paths = [source.path] if isinstance(source.path, str) else source.path
        source = source.model_copy(update={"path": [fix(path) for path in paths]})
    if is_local_path(teacher.model):
        teacher = teacher.model_copy(update={"model": fix(teacher.model)})
    return config.model_copy(update={"run_dir": fix(config.run_dir), "source": source, "teacher": teacher})
