"""The models that the workers of a run start on vLLM: its teacher, a student, guards."""

from collections.abc import Iterator
from typing import NamedTuple

from stillhouse.schemas.config import Config, GuardConfig, NamedTeacher, TeacherConfig


class Model(NamedTuple):
    where: str
    """The section that names it, as sentences call it."""
    stage: str
    """Whose workers start it."""
    run: Config
    """A run of which it is the teacher: what those read who ask for a model's files or engine. Of a guard it has the
    sections `teacher`, `sampling`, `targets` and `generate` alone."""

    @property
    def teacher(self) -> TeacherConfig:
        return self.run.teacher


def of(config: Config) -> Iterator[Model]:
    """Of a run with one teacher (one of `Config.views`), that first; a guard once for each stage that asks it."""
    teacher = config.teacher
    yield Model(f"teachers.{teacher.name}" if isinstance(teacher, NamedTeacher) else "teacher", config.task, config)
    if config.rollout is not None:
        yield Model("rollout", "rollout", config.writer)
    for guard in config.screen.classifiers:
        if isinstance(guard, GuardConfig):
            from stillhouse.stages.filters.guard import as_run, place_of

            for what, stage in (("prompts", "screen"), ("answers", "review")):
                if what in guard.reads:
                    yield Model(place_of(guard), stage, as_run(guard))
