"""What the workers of each stage may use."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from stillhouse.schemas.config.section import Count, Section


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


_OF_TEACHER = WorkersConfig(shards_in_flight=2)


def _filled(workers: Any, default: WorkersConfig) -> Any:
    return default.model_dump(exclude_defaults=True) | workers if isinstance(workers, dict) else workers


class ResourcesConfig(Section):
    ingest: WorkersConfig = WorkersConfig(max_workers=2)
    """They read pieces of a large source, for one more that gives rows their ids and writes the shards."""
    dedupe: WorkersConfig = WorkersConfig(max_workers=2)
    screen: WorkersConfig = WorkersConfig()
    balance: WorkersConfig = WorkersConfig()
    generate: WorkersConfig = _OF_TEACHER
    rollout: WorkersConfig = _OF_TEACHER
    score: WorkersConfig = _OF_TEACHER
    review: WorkersConfig = WorkersConfig()
    publish: WorkersConfig = WorkersConfig(max_workers=2)
    teachers: dict[str, WorkersConfig] = {}
    """Of single `teachers`, by their names, in the place of `generate` or `score`: engines of another size."""
    max_attempts: Count = 3
    """Attempts at a shard before it is set aside (one of generate or score is then first made in parts)."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, raw: Any) -> Any:
        """A stage of which some keys are given has its own defaults for the others; a teacher has its stage's."""
        if not isinstance(raw, dict):
            return raw
        filled = dict(raw)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, WorkersConfig) and name in raw:
                filled[name] = _filled(raw[name], field.default)
        if isinstance(raw.get("teachers"), dict):
            filled["teachers"] = {name: _filled(workers, _OF_TEACHER) for name, workers in raw["teachers"].items()}
        return filled

    @model_validator(mode="after")
    def _of_ingest(self) -> "ResourcesConfig":
        if self.ingest.resources:
            raise ValueError(
                "ingest.resources: the tasks of ingest go to any node; put the source where every node finds it, and "
                "remove this key"
            )
        return self
