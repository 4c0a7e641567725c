"""A whole run, and the resources it may use."""

from typing import Annotated

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
from stillhouse.schemas.config.teacher import GenerateConfig, SamplingConfig, TargetsConfig, TeacherConfig


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
    review: WorkersConfig = WorkersConfig()
    publish: WorkersConfig = WorkersConfig(max_workers=2)
    max_attempts: Count = 3
    """Attempts at a shard before it is set aside (a generate shard is then first made in parts)."""


MAX_SHARD_TARGETS = 2**30
"""Targets in one shard: Arrow's offsets count 2^31 values, and an object store takes 5 GiB in a single put, which is
what this many are at 5 bytes each (3 is usual)."""


class Config(Section):
    """A whole run."""

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
        self._check_shard_size()
        return self

    def _check_shard_size(self) -> None:
        """Raises ValueError where a shard could hold more targets than one file may: said before answers are paid
        for."""
        tokens = self.teacher.max_model_len if self.ingest.turns == "all" else self.sampling.max_tokens
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
    def personal_kinds(self) -> tuple[str, ...]:
        """Kinds of personal information that are counted; none where nobody looks for it."""
        return () if self.personal is None else self.personal.counted

    @property
    def max_prompt_tokens(self) -> int:
        """Longest first prompt, in teacher tokens, that leaves room for an answer of `sampling.max_tokens`."""
        return self.ingest.max_prompt_tokens or self.teacher.max_model_len - self.sampling.max_tokens
