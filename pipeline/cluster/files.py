"""Files that the configuration names and workers read on their nodes: which they are, and on which nodes they miss."""

from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import NamedTuple

from stillhouse.pipeline.cluster.named import Facts, Named
from stillhouse.pipeline.run import placement
from stillhouse.schemas.config import Config, DetoxifyConfig, is_local_path

SCREENING = ("screen", "review")


class Input(NamedTuple):
    """A file, folder or glob of a disk."""

    where: str
    """The key that names it."""
    path: str
    stages: tuple[str, ...]
    """Whose workers read it."""

    @property
    def is_there(self) -> bool:
        """Whether this node has it."""
        return Path(self.path).exists() or bool(glob(self.path, recursive=True))


def inputs(config: Config) -> Iterator[Input]:
    """All that a run of a configuration with absolute paths reads beside models for vLLM (`pipeline.models`)."""
    for where, path, stages in _named(config):
        if path is not None and "://" not in path.removeprefix("file://"):
            yield Input(where, path.removeprefix("file://"), stages)


def _named(config: Config) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
    paths = config.source.path
    for path in [paths] if isinstance(paths, str) else paths or []:
        yield "source.path", path, ("ingest",)
    if config.decontamination is not None:
        for one in config.decontamination.evaluations:
            yield f"decontamination.evaluations ({one.name})", one.path, SCREENING
    if config.screen.jailbreaks is not None:
        for one in config.screen.jailbreaks.templates:
            yield f"screen.jailbreaks.templates ({one.name})", one.path, ("screen",)
    for classifier in config.screen.classifiers:
        if isinstance(classifier, DetoxifyConfig):
            where = "screen.classifiers (detoxify)"
            yield f"{where}.checkpoint", classifier.checkpoint, SCREENING
            yield f"{where}.huggingface_config_path", classifier.huggingface_config_path, SCREENING
    if config.dedupe.semantic is not None and is_local_path(config.dedupe.semantic.model):
        yield "dedupe.semantic.model", config.dedupe.semantic.model, ("dedupe",)


def missing(config: Config, facts: Facts, nodes: list[Facts], named: Named) -> Iterator[str]:
    """A sentence for each that is not on a node on which a worker that reads it may be."""
    for one in inputs(config):
        lacking = [node for node in nodes if one.path in node["missing_inputs"] and _may_be_on(node, config, one)]
        if lacking:
            yield (
                f"{one.where}: {one.path} is not there on {named(lacking)}, where {' and '.join(one.stages)} may run; "
                "put it where every node finds it, such as a shared file system or an object store"
            )


def _may_be_on(node: Facts, config: Config, one: Input) -> bool:
    return any(placement.has_room(node["resources"], placement.pieces(config, stage)[-1]) for stage in one.stages)
