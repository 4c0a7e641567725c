"""Files that the configuration names and workers read on their nodes: which they are, and on which nodes they miss."""

import os
from collections.abc import Iterator
from glob import iglob
from typing import NamedTuple
from urllib.parse import unquote

from stillhouse.pipeline.cluster.named import Facts, Named
from stillhouse.pipeline.run import placement
from stillhouse.schemas.config import Config, DetoxifyConfig, EvaluationConfig, is_local_path

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
        """Whether this node has it, and may look."""
        return os.path.exists(self.path) or any(iglob(self.path, recursive=True))


def inputs(config: Config) -> Iterator[Input]:
    """All that a run of a configuration with absolute paths reads beside models for vLLM (`pipeline.models`)."""
    for where, path, stages in _named(config):
        scheme, separator, rest = (path or "").rpartition("://")
        if path and scheme in ("", "file"):
            yield Input(where, unquote(rest) if separator else path, stages)


def _named(config: Config) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
    for path in config.source.paths:
        yield "source.path", path, ("ingest",)
    for where, one, stages in sets(config):
        yield where, one.path, stages
    for classifier in config.screen.classifiers:
        if isinstance(classifier, DetoxifyConfig):
            where = "screen.classifiers (detoxify)"
            yield f"{where}.checkpoint", classifier.checkpoint, SCREENING
            yield f"{where}.huggingface_config_path", classifier.huggingface_config_path, SCREENING
    if config.dedupe.semantic is not None and is_local_path(config.dedupe.semantic.model):
        yield "dedupe.semantic.model", config.dedupe.semantic.model, ("dedupe",)


def sets(config: Config) -> Iterator[tuple[str, EvaluationConfig, tuple[str, ...]]]:
    """All sets of texts, by their keys, and the stages that look for them."""
    if config.decontamination is not None:
        for one in config.decontamination.evaluations:
            yield f"decontamination.evaluations ({one.name})", one, SCREENING
    if config.screen.jailbreaks is not None:
        for one in config.screen.jailbreaks.templates:
            yield f"screen.jailbreaks.templates ({one.name})", one, ("screen",)


def missing(config: Config, facts: Facts, nodes: list[Facts], named: Named) -> Iterator[str]:
    """A sentence for each that is not on a node on which a worker that reads it may be. Nodes say under which path they
    looked: a relative one is another on each."""
    stages_of = {where: stages for where, _, stages in _named(config)}
    lacking: dict[tuple[str, str], list[Facts]] = {}
    for node in nodes:
        for where, path in node["missing_inputs"]:
            if _may_be_on(node, config, stages_of.get(where, ())):
                lacking.setdefault((where, path), []).append(node)
    for (where, path), bad in lacking.items():
        yield (
            f"{where}: {path} is not there on {named(bad)}, where {' and '.join(stages_of[where])} may run; put it "
            "where every node finds it, such as a shared file system or an object store"
        )


def _may_be_on(node: Facts, config: Config, stages: tuple[str, ...]) -> bool:
    return any(placement.has_room(node["resources"], placement.pieces(config, stage)[-1]) for stage in stages)
