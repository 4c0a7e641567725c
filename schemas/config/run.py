"""A whole run."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

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
from stillhouse.schemas.config.resources import ResourcesConfig, WorkersConfig
from stillhouse.schemas.config.section import Section, added, as_path, checked_location, free, is_stored
from stillhouse.schemas.config.teacher import (
    GenerateConfig,
    RolloutConfig,
    SamplingConfig,
    ScoreConfig,
    TargetsConfig,
    TeacherConfig,
)
from stillhouse.schemas.config.teachers import OF_GENERATE, NamedTeacher, check_mixture, check_read_alike

MAX_SHARD_TARGETS = 2**30
"""Targets in one shard: Arrow's offsets count 2^31 values, and an object store takes 5 GiB in a single put, which is
what this many are at 5 bytes each (3 is usual)."""


class Config(Section):
    """A whole run."""

    task: Literal["generate", "score"] = "generate"
    """`generate`: the teacher answers the source's prompts. `score`: it reads the source's own answers, and its
    distribution is kept for each of their tokens. Also the name of the stage that does it."""
    run_dir: Annotated[str, AfterValidator(checked_location), AfterValidator(as_path), free]
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
    """With `teachers`, the first of them."""
    teachers: Annotated[list[NamedTeacher] | None, Field(min_length=1), added] = None
    """Instead of `teacher`: several, each for some of the rows. docs/teachers.md says how."""
    mixture: Annotated[Literal["average"] | None, added] = None
    """With `teachers`, `task: score` and `targets.method: sampled`: every row gets the average of the distributions of
    all of them."""
    sampling: SamplingConfig
    targets: TargetsConfig = TargetsConfig()
    generate: GenerateConfig = GenerateConfig()
    score: Annotated[ScoreConfig | None, added] = None
    """Set (to its defaults, if to nothing else) with `task: score`, and only then."""
    rollout: Annotated[RolloutConfig | None, added] = None
    """With `task: score`, a student whose answers to the source's prompts are scored, in the place of the source's."""
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
        unread = [str(key) for key, value in sampling.items() if key != "seed" and value != silent.get(key)]
        if unread:
            raise ValueError(
                f"sampling: {', '.join(sorted(unread))} say how a teacher writes, and with task: score it writes "
                "nothing; remove them (sampling.seed stays)"
            )
        return {**raw, "sampling": {**sampling, "max_tokens": 1}, "score": raw.get("score") or {}}

    @model_validator(mode="before")
    @classmethod
    def _first_teacher(cls, raw: Any) -> Any:
        """`teacher` from `teachers`, for all that holds for each of them."""
        if not isinstance(raw, dict) or not raw.get("teachers") or "teacher" in raw:
            return raw
        first = raw["teachers"][0] if isinstance(raw["teachers"], list) else None
        if isinstance(first, NamedTeacher):
            first = first.model_dump()
        if not isinstance(first, dict):
            return raw
        return {**raw, "teacher": {key: first[key] for key in first if key in TeacherConfig.model_fields}}

    @model_validator(mode="after")
    def _several(self) -> "Config":
        names = [] if self.teachers is None else [teacher.name for teacher in self.teachers]
        if unknown := sorted(self.resources.teachers.keys() - names):
            raise ValueError(f"resources.teachers: {', '.join(unknown)} is none of teachers; use their names")
        if self.teachers is None:
            if self.mixture is not None:
                raise ValueError("mixture: is of several teachers; name them in `teachers`")
            return self
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"teachers: {', '.join(twice)} is there twice; give each a name of its own")
        first = self.teachers[0]
        if self.teacher != TeacherConfig(**{key: getattr(first, key) for key in TeacherConfig.model_fields}):
            raise ValueError("teacher, teachers: set one of them; a single teacher needs no rule")
        if self.mixture is not None:
            check_mixture(self.teachers, self.task, self.targets, self.generate)
            return self
        for teacher in self.teachers[:-1]:
            if teacher.when is None:
                raise ValueError(
                    f"teachers: {teacher.name} has no `when` and takes every row, so that none is left for those after "
                    "it; give it a rule, or put it last"
                )
        return self

    @model_validator(mode="after")
    def _rolls_out(self) -> "Config":
        if self.rollout is None:
            return self
        if self.teachers is not None:
            check_read_alike(self.teachers, "rollout: the student reads by the one template of all teachers")
        if self.score is None:
            raise ValueError("rollout: what a student writes is scored; set task to score, or remove the section")
        if self.score.ids == "source":
            raise ValueError(
                "score.ids: source are of answers that the source has, and with the section rollout a student writes "
                "them; remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _scores(self, info: ValidationInfo) -> "Config":
        if self.score is None:
            return self
        if self.task != "score":
            raise ValueError("score: is read with task: score only; set that, or remove the section")
        thinking = next(
            (view.generate.thinking for view in self.views() if view.generate.thinking != "supervise"), None
        )
        if thinking is not None:
            raise ValueError(
                f"generate.thinking: {thinking} is about what a teacher writes, and with task: score it "
                "writes nothing; remove it (labels of score.ids: source say what is learned)"
            )
        if self.score.ids == "source" and self.personal is not None and self.personal.prompts == "mask":
            raise ValueError(
                "personal.prompts: mask would change words whose ids are given (score.ids: source); set it to drop or "
                "keep"
            )
        is_drawn = any(isinstance(view.generate.system_prompts, list) for view in self.views())
        if self.score.ids == "source" and is_drawn and not is_stored(info):
            raise ValueError(
                "generate.system_prompts: ids that are given (score.ids: source) hold the system prompts that they "
                "were made with; set it to source, or remove it"
            )
        if any("speculative_config" in view.teacher.engine for view in self.views()):
            raise ValueError("teacher.engine.speculative_config: nothing is written with task: score; remove it")
        return self

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        for view in self.views():
            try:
                view._check_fit()
            except ValueError as error:
                name = getattr(view.teacher, "name", None)
                raise error if name is None else ValueError(f"teachers: of {name}: {error}") from None
        return self

    def _check_fit(self) -> None:
        """Raises ValueError where keys contradict each other about the teacher."""
        max_tokens, key = self.writing.max_tokens, "sampling" if self.rollout is None else "rollout.sampling"
        if max_tokens >= self.teacher.max_model_len:
            raise ValueError(
                f"{key}.max_tokens {max_tokens} leaves no room for a prompt in "
                f"teacher.max_model_len {self.teacher.max_model_len}; lower the first or raise the second"
            )
        if self.ingest.max_prompt_tokens is not None:
            need = self.ingest.max_prompt_tokens + max_tokens
            if need > self.teacher.max_model_len:
                raise ValueError(
                    f"ingest.max_prompt_tokens + {key}.max_tokens = {need} exceeds teacher.max_model_len "
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

    def _check_shard_size(self) -> None:
        """Raises ValueError where a shard could hold more targets than one file may: said before answers are paid
        for."""
        is_whole = self.task == "score" or self.ingest.turns == "all"
        tokens = self.teacher.max_model_len if is_whole else self.sampling.max_tokens
        targets = 0 if self.targets.method == "sampled" else self.targets.top_k
        draws = 0 if self.targets.method == "top_k" else self.targets.num_draws
        each = self.writing.n * tokens * max(targets, draws)
        fitting = MAX_SHARD_TARGETS // max(each, 1)
        if self.ingest.rows_per_shard > fitting:
            raise ValueError(
                f"ingest.rows_per_shard: {self.ingest.rows_per_shard:,} rows of up to {each:,} targets (sampling.n x "
                f"tokens x targets of each) can exceed the {MAX_SHARD_TARGETS:,} that a shard may hold; "
                + (f"lower it to {fitting:,}" if fitting else "lower targets.top_k, sampling.n or sampling.max_tokens")
            )

    def of_teacher(self, name: str) -> "Config":
        """This run with one teacher, `name` of `teachers`: what the parts of a run see that know of one alone. (Its
        hash is not the run's.)"""
        named = next(teacher for teacher in self.teachers or [] if teacher.name == name)
        changed = {key: value for key in OF_GENERATE if (value := getattr(named, key)) is not None}
        resources = self.resources
        if name in resources.teachers:
            resources = resources.model_copy(update={self.task: resources.teachers[name]})
        sampling, targets = self.sampling, self.targets
        if self.mixture is not None:
            names = self.teacher_names
            # Draws of their own, or two teachers that agree would draw the same twice.
            sampling = sampling.model_copy(update={"seed": (sampling.seed + names.index(name)) % 2**32})
            targets = targets.model_copy(update={"num_draws": targets.num_draws // len(names), "probe_fraction": 0.0})
        return self.model_copy(
            update={
                "teacher": named,
                "teachers": None,
                "mixture": None,
                "sampling": sampling,
                "targets": targets,
                "generate": self.generate.model_copy(update=changed),
                "resources": resources.model_copy(update={"teachers": {}}),
            }
        )

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """Of `teachers`, in order; none where there is one `teacher`."""
        return tuple(teacher.name for teacher in self.teachers or [])

    @property
    def has_rules(self) -> bool:
        """Whether each row has one of several teachers."""
        return self.teachers is not None and self.mixture is None

    def views(self) -> "list[Config]":
        """The run as each of its teachers sees it: `of_teacher` of all, or itself."""
        return [self.of_teacher(name) for name in self.teacher_names] or [self]

    @property
    def engine_workers(self) -> WorkersConfig:
        """Of the stage that has the teacher."""
        return self.resources.score if self.task == "score" else self.resources.generate

    @property
    def reads_answers(self) -> bool:
        """Whether the source's answers are read: those that are scored."""
        return self.task == "score" and self.rollout is None

    @property
    def asks_more(self) -> bool:
        """Whether the teacher is asked about more ids than those that were written."""
        if self.rollout is not None:
            return self.rollout.asked_top_k > 0
        return self.score is not None and self.score.asked_ids is not None

    @property
    def writing(self) -> SamplingConfig:
        """How answers are written: by the teacher, or with the section `rollout` by the student."""
        return self.sampling if self.rollout is None else self.rollout.sampling

    @property
    def writer(self) -> "Config":
        """The configuration by which answers are written: this one, or with the section `rollout` that of a run in
        which the student stands in the teacher's place, and no more of its distribution is kept than is asked about."""
        if self.rollout is None:
            return self
        if self.teachers is not None:  # whose rows are read alike
            return self.of_teacher(self.teacher_names[0]).writer
        read_by = self.teacher.model_dump(include={"chat_template", "chat_template_kwargs", "date"})
        return self.model_copy(
            update={
                "task": "generate",
                "score": None,
                "rollout": None,
                "teacher": self.rollout.teacher(self.teacher.max_model_len, read_by),
                "sampling": self.rollout.sampling,
                "targets": TargetsConfig(top_k=max(1, self.rollout.asked_top_k), probe_fraction=0.0),
            }
        )

    def num_samples(self, stage: str) -> int:
        """Rows that a stage makes of each that it reads."""
        return self.writing.n if stage == ("generate" if self.rollout is None else "rollout") else 1

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
        """Longest first prompt, in teacher tokens, that leaves room for an answer of `sampling.max_tokens` (of the
        student's, where one writes)."""
        return self.ingest.max_prompt_tokens or self.teacher.max_model_len - self.writing.max_tokens
