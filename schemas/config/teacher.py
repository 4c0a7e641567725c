"""The teacher, how it writes, and what is kept of its distribution."""

import json
import math
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from stillhouse.schemas.config.section import Count, Fraction, Section, added, free, is_local_path, is_stored

OWN_BACKEND = "stillhouse.stages.teacher.engine:VLLMTeacher"

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


RESERVED_TEMPLATE_ARGUMENTS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "max_length",
        "messages",
        "padding",
        "raise_exception",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "self",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)
"""Names of `apply_chat_template` and of what it gives to every template: not for `chat_template_kwargs`."""


def _day(value: object) -> str:
    """`value` as YYYY-MM-DD; YAML makes a date of that where it stands without quotes."""
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise ValueError(f"{str(value)!r} is no day; write it as 2026-11-25") from None


def checked_options(engine: Mapping[str, Any], *variables: Mapping[str, Any]) -> None:
    """Raises ValueError for options of an engine, or variables of a chat template, that are not the user's to set."""
    for given in variables:
        if taken := RESERVED_TEMPLATE_ARGUMENTS & set(given):
            raise ValueError(f"chat_template_kwargs: {sorted(taken)} are set by Stillhouse; remove them here")
        try:
            json.dumps(given)
        except TypeError:
            raise ValueError(
                "chat_template_kwargs: holds something other than text, numbers, lists and mappings; put a date in "
                "quotes"
            ) from None
    if "hf_token" in engine:
        raise ValueError("engine: hf_token would be written into the manifest; set HF_TOKEN in the environment")
    if reserved := RESERVED_ENGINE_OPTIONS & set(engine):
        raise ValueError(f"engine: {sorted(reserved)} are set by Stillhouse from other keys; remove them here")


def checked_pin(model: str, revision: str | None) -> None:
    """Raises ValueError for a model of the hub without a `revision`."""
    if revision is None and not is_local_path(model):
        raise ValueError(
            f"{model!r} is not a folder here, so it is taken for a hub id, and that needs a `revision` "
            "(a commit or tag): the model decides the data; for a folder write a path that starts with / or ./"
        )


def num_parallel(engine: Mapping[str, Any]) -> int:
    """GPUs of one engine with these options: pieces of each layer, times groups of layers."""
    return int(engine.get("tensor_parallel_size", 1)) * int(engine.get("pipeline_parallel_size", 1))


class TeacherConfig(Section):
    model: str
    """Folder of Hugging Face weights, or a hub id (then with `revision`)."""
    revision: str | None = None
    """Commit or tag of a hub model; required for one, because it decides the data."""
    chat_template: str | None = None
    """Jinja text used instead of the tokenizer's own template. In YAML the name of the file that holds it."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the template, such as enable_thinking."""
    date: Annotated[str, BeforeValidator(_day)] | None = None
    """The day that the template takes for today (YYYY-MM-DD), where it writes one; null: the day on which the run
    starts (UTC), which run.json keeps."""
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
    """Seconds without a new token, with requests in flight, after which the engine counts as hung: its process
    ends, and the attempt counts as failed. Must exceed what reading the longest prompt takes."""
    backend: str = OWN_BACKEND
    """module:class that implements `stages.teacher.Teacher`."""

    @model_validator(mode="after")
    def _pinned(self) -> "TeacherConfig":
        checked_pin(self.model, self.revision)
        checked_options(self.engine, self.chat_template_kwargs)
        return self

    @property
    def trust_remote_code(self) -> bool:
        """Whether Python code that comes with the model may run, here as in the engine: only where vLLM is told so."""
        return self.engine.get("trust_remote_code") is True


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
    """Every sample's own seed is derived from this, its prompt_id and its number. From 0 to 2^32 - 1."""

    @field_validator("seed")
    @classmethod
    def _for_numpy(cls, seed: int, info: ValidationInfo) -> int:
        if not 0 <= seed < 2**32 and not is_stored(info):
            raise ValueError("must be from 0 to 4294967295 (2^32 - 1): the engine's process seeds NumPy with it")
        return seed


class KeepConfig(Section):
    """Which tokens keep their targets, by the entropy of the teacher's whole distribution; one of the two. All tokens
    keep their labels: their text is learned all the same. docs/targets.md has what this is worth."""

    entropy_above: Annotated[float | None, Field(ge=0.0), added] = None
    """Tokens of a larger entropy (nats) than this."""
    fraction: Annotated[float | None, Field(gt=0.0, le=1.0), added] = None
    """Of each answer the share of its tokens with the largest entropies, rounded up; of equal ones the first."""

    @model_validator(mode="after")
    def _one(self) -> "KeepConfig":
        if (self.entropy_above is None) == (self.fraction is None):
            raise ValueError("takes entropy_above (nats) or fraction, and not both; write one of them")
        return self


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
    0.015625, at least 1/512."""
    num_draws: Annotated[int, Field(ge=1, le=32767)] = 64
    """Draws per position (D), with replacement."""
    draws_from: Literal["engine", "top_k"] = "engine"
    """Where draws are taken: inside the engine, from the whole distribution; or, for an engine that cannot, from the
    `top_k` most probable tokens, by which every token outside of them is lost and counted as missing."""
    probe_fraction: Fraction = 0.1
    """Share of answers for which the engine keeps one token's whole distribution, to measure what storing costs."""
    entropy: Annotated[Literal[True] | None, BeforeValidator(lambda value: value or None), added] = None
    """Also keep the entropy of the whole distribution behind every token (`teacher_entropy`, nats), told by the
    engine. `keep` does it too."""
    keep: Annotated[KeepConfig | None, added] = None
    """Keep targets of some tokens only."""

    @model_validator(mode="after")
    def _exact(self, info: ValidationInfo) -> "TargetsConfig":
        if self.precision and math.frexp(self.precision)[0] != 0.5:
            raise ValueError(f"precision {self.precision} is not a power of two; write for example 0.015625 (1/64)")
        if 0 < self.precision < 1 / 512 and not is_stored(info):
            # int16 counts the steps, and the last of K is often below -32 nats where the first is nearly certain.
            raise ValueError(
                f"precision {self.precision} cannot hold log-probabilities below {-32767 * self.precision:.3g} nats; "
                "write 0.001953125 (1/512) or more, or 0 for float16"
            )
        return self

    @property
    def has_entropy(self) -> bool:
        """Whether `teacher_entropy` is among the columns."""
        return self.entropy is not None or self.keep is not None


Mark = Annotated[str, Field(min_length=1)]
ThinkingTokens = tuple[Mark, Mark]


class GenerateConfig(Section):
    system_prompts: list[str | None] | Literal["source"] | None = None
    """System prompts for the teacher: each prompt gets one of them, drawn by its id and `sampling.seed`; null stands
    for none. In YAML either the list or the name of a YAML file that holds it. `source` gives each prompt the source's
    own, or none where it has none; otherwise these are kept aside in `system_prompt` and not used."""
    thinking: Literal["supervise", "keep", "drop"] = "supervise"
    """What becomes of a reasoning teacher's thinking: tokens like any others; kept in `input_ids` without labels and
    targets; or cut out (the answer's targets then are conditioned on thinking that the student does not see)."""
    thinking_tokens: ThinkingTokens = ("<think>", "</think>")
    """What opens and closes thinking; each must be a single token of the teacher."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.2
    """Fail when more than this share gets no answer."""


class ScoreConfig(Section):
    """`task: score`: the source's own answers get the teacher's distributions; docs/scoring.md says how."""

    answers: Literal["all", "last"] = "all"
    """Which answers of those that `ingest.turns` keeps are supervised: all of them, or the last, which then reads the
    others as they are."""
    ids: Literal["text", "source"] = "text"
    """`text`: the answers go through the teacher's chat template. `source`: each row's `input_ids` and `labels` (or a
    mask: docs/scoring.md) are scored as they are."""
    tokenizer_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64}|teacher)$")] | None = None
    """With `ids: source`, whose ids they are: the `tokenizer_sha256` that the teacher must have, or the word `teacher`,
    by which you say that they are its own. A source that is a Stillhouse dataset says so in its manifest."""
    asked_ids: str | None = None
    """With `ids: source`, a column of it that has more ids for each supervised token, such as a student's most probable
    ones: as many for each, in lists or flat. The teacher's log-probabilities of them come out beside the targets."""
    student_logprobs: str | None = None
    """With `ids: source`, a column of it that has one log-probability for each supervised token, by whoever wrote it:
    `token_logprobs` of a student's dataset. They come out as they are, beside the teacher's."""
    cut_long: bool = False
    """Of an answer that does not fit `teacher.max_model_len`, keep as much as fits (`finish_reasons` say length);
    otherwise the conversation ends before it, and is dropped where nothing is left."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.2
    """Fail when more than this share cannot be scored."""

    @model_validator(mode="after")
    def _whose_ids(self) -> "ScoreConfig":
        if self.tokenizer_sha256 is not None and self.ids == "text":
            raise ValueError("tokenizer_sha256 is about ids that the source gives; set ids to source, or remove it")
        if self.asked_ids is not None and self.ids == "text":
            raise ValueError("asked_ids belong to tokens that the source gives; set ids to source, or remove it")
        if self.student_logprobs is not None and self.ids == "text":
            raise ValueError("student_logprobs belong to tokens that the source gives; set ids to source, or remove it")
        return self


class RolloutConfig(Section):
    """With `task: score`, a student that writes the answers (stage `rollout`); docs/scoring.md says how. It reads each
    prompt by the teacher's chat template, and has the teacher's context."""

    model: str
    """Folder of the student's weights, or a hub id (then with `revision`). Its tokenizer is the teacher's, id for
    id."""
    revision: str | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    engine: dict[str, Any] = {}
    """As `teacher.engine`."""
    env: Annotated[dict[str, str], free] = {}
    stall_timeout_s: Annotated[float, Field(gt=0.0), free] = 600.0
    backend: str = OWN_BACKEND
    sampling: SamplingConfig
    """How it writes; `student_logprobs` are those at temperature 1 all the same."""
    asked_top_k: Annotated[int, Field(ge=0)] = 0
    """How many of the student's most probable ids at each of its tokens the teacher is asked about (`asked_ids`)."""
    max_dropped_fraction: Annotated[Fraction, free] = 0.2
    """Fail when more than this share gets no answer."""

    @model_validator(mode="after")
    def _as_a_teacher(self) -> "RolloutConfig":
        if "speculative_config" in self.engine:
            raise ValueError("engine: speculative_config and log-probabilities were not tested together; remove it")
        self.teacher(8, {})
        return self

    def teacher(self, max_model_len: int, read_by: dict[str, Any]) -> TeacherConfig:
        """The section `teacher` of a run in which the student stands in the teacher's place; `read_by` has the keys
        that say how it reads a conversation."""
        names = ("model", "revision", "dtype", "engine", "env", "stall_timeout_s", "backend")
        own = {name: getattr(self, name) for name in names}
        return TeacherConfig(max_model_len=max_model_len, **own, **read_by)
