"""A whole run, and the resources it may use."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from stillhouse.schemas.config.curation import BalanceConfig, DecontaminationConfig
from stillhouse.schemas.config.data import (
    DedupeConfig,
    IngestConfig,
    PersonalConfig,
    PublishConfig,
    ReviewConfig,
    ScreenConfig,
    SourceConfig,
)
from stillhouse.schemas.config.section import Count, Section, added, checked_location, free
from stillhouse.schemas.config.teacher import GenerateConfig, SamplingConfig, ScoreConfig, TargetsConfig, TeacherConfig


class WorkersConfig(Section):
    """Ray resources of one stage; never changes what is written."""

    min_workers: Count = 1
    """So many stay on a cluster until the stage is over; the others end when nothing is left for them."""
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
    balance: WorkersConfig = WorkersConfig()
    generate: WorkersConfig = WorkersConfig(shards_in_flight=2)
    score: WorkersConfig = WorkersConfig(shards_in_flight=2)
    review: WorkersConfig = WorkersConfig()
    publish: WorkersConfig = WorkersConfig(max_workers=2)
    max_attempts: Count = 3
    """Attempts at a shard before it is set aside (one of generate or score is then first made in parts)."""


MAX_SHARD_TARGETS = 2**30
"""Targets in one shard: Arrow's offsets count 2^31 values, and an object store takes 5 GiB in a single put, which is
what this many are at 5 bytes each (3 is usual)."""


class Config(Section):
    """A whole run."""

    task: Literal["generate", "score"] = "generate"
    """`generate`: the teacher answers the source's prompts. `score`: it reads the source's own answers, and its
    distribution is kept for each of their tokens. Also the name of the stage that does it."""
    run_dir: Annotated[str, AfterValidator(checked_location), free]
    """Folder of the run: stages, ledger, dataset. A path or an object-store URL."""
    source: SourceConfig
    ingest: IngestConfig = IngestConfig()
    dedupe: DedupeConfig = DedupeConfig()
    decontamination: Annotated[DecontaminationConfig | None, added] = None
    """Evaluation sets that prompts and answers must not hold; null looks for none."""
    screen: ScreenConfig = ScreenConfig()
    balance: Annotated[BalanceConfig | None, added] = None
    """Quotas for kinds of prompts; null keeps them as they come."""
    personal: Annotated[PersonalConfig | None, added] = None
    """Look for personal information; by default nobody does."""
    teacher: TeacherConfig
    sampling: SamplingConfig
    targets: TargetsConfig = TargetsConfig()
    generate: GenerateConfig = GenerateConfig()
    score: Annotated[ScoreConfig | None, added] = None
    """Set (to its defaults, if to nothing else) with `task: score`, and only then."""
    review: ReviewConfig = ReviewConfig()
    publish: PublishConfig = PublishConfig()
    resources: Annotated[ResourcesConfig, free] = ResourcesConfig()

    @model_validator(mode="before")
    @classmethod
    def _scored(cls, raw: Any) -> Any:
        """With `task: score` the teacher writes one token for each conversation, which nobody reads: all keys of
        `sampling` but the seed say nothing then, and need not be there."""
        if not isinstance(raw, dict) or raw.get("task") != "score":
            return raw
        sampling = raw.get("sampling") or {}
        if not isinstance(sampling, dict):
            return raw
        silent = SamplingConfig(max_tokens=1).model_dump()
        if unread := sorted(key for key, value in sampling.items() if key != "seed" and value != silent.get(key)):
            raise ValueError(
                f"sampling: {', '.join(unread)} say how a teacher writes, and with task: score it writes nothing; "
                "remove them (sampling.seed stays)"
            )
        return {**raw, "sampling": {**sampling, "max_tokens": 1}, "score": raw.get("score") or {}}

    @model_validator(mode="after")
    def _scores(self) -> "Config":
        if self.score is None:
            return self
        if self.task != "score":
            raise ValueError("score: is read with task: score only; set that, or remove the section")
        if self.generate.thinking != "supervise":
            raise ValueError(
                f"generate.thinking: {self.generate.thinking} is about what a teacher writes, and with task: score it "
                "writes nothing; remove it (labels of score.ids: source say what is learned)"
            )
        if self.score.ids == "source" and self.personal is not None and self.personal.prompts == "mask":
            raise ValueError(
                "personal.prompts: mask would change words whose ids are given (score.ids: source); set it to drop or "
                "keep"
            )
        if "speculative_config" in self.teacher.engine:
            raise ValueError("teacher.engine.speculative_config: nothing is written with task: score; remove it")
        return self

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
        if self.targets.has_entropy and "speculative_config" in self.teacher.engine:
            raise ValueError(
                "teacher.engine.speculative_config: vLLM runs no logits processors with it, so it tells no entropies; "
                "remove it, or targets.entropy and targets.keep"
            )
        if self.targets.has_entropy and self.sampling.repetition_penalty != 1.0:
            raise ValueError(
                f"sampling.repetition_penalty {self.sampling.repetition_penalty} changes the distribution whose "
                "entropy the engine tells (vLLM's V2 runner applies it first); set it to 1.0, or remove "
                "targets.entropy and targets.keep"
            )
        if draws_in_engine and self.sampling.repetition_penalty != 1.0:
            raise ValueError(
                f"sampling.repetition_penalty {self.sampling.repetition_penalty} changes what the engine draws from "
                "(vLLM's V2 runner applies it first); set it to 1.0, targets.method to top_k, or targets.draws_from to "
                "top_k"
            )
        self._check_shard_size()
        return self

    def _check_shard_size(self) -> None:
        """Raises ValueError where a shard could hold more targets than one file may: said before answers are paid
        for."""
        is_whole = self.task == "score" or self.ingest.turns == "all"
        tokens = self.teacher.max_model_len if is_whole else self.sampling.max_tokens
        targets = 0 if self.targets.method == "sampled" else self.targets.top_k
        draws = 0 if self.targets.method == "top_k" else self.targets.num_draws
        each = self.sampling.n * tokens * max(targets, draws)
        fitting = MAX_SHARD_TARGETS // max(each, 1)
        if self.ingest.rows_per_shard > fitting:
            raise ValueError(
                f"ingest.rows_per_shard: {self.ingest.rows_per_shard:,} rows of up to {each:,} targets (sampling.n x "
                f"tokens x targets of each) can exceed the {MAX_SHARD_TARGETS:,} that a shard may hold; "
                + (f"lower it to {fitting:,}" if fitting else "lower targets.top_k, sampling.n or sampling.max_tokens")
            )

    @property
    def engine_workers(self) -> WorkersConfig:
        """Of the stage that has the teacher."""
        return self.resources.score if self.task == "score" else self.resources.generate

    @property
    def given_ids(self) -> bool:
        """Whether rows of the source bring the ids that are scored."""
        return self.score is not None and self.score.ids == "source"

    @property
    def personal_kinds(self) -> tuple[str, ...]:
        """Kinds of personal information that are counted; none where nobody looks for it."""
        return () if self.personal is None else self.personal.counted

    @property
    def max_prompt_tokens(self) -> int:
        """Longest first prompt, in teacher tokens, that leaves room for an answer of `sampling.max_tokens`."""
        return self.ingest.max_prompt_tokens or self.teacher.max_model_len - self.sampling.max_tokens
