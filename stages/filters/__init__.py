"""Text classifiers behind one interface: texts in, a score per label out. Screen scores prompts, review answers.

A new filter is a file here, a section of the configuration, and a line in `FILTERS`. Importing this package is cheap:
torch, detoxify and profanity_check are imported when a classifier is built.

Shape legend: N texts, L labels, R rows of a table.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillhouse.schemas.config import ClassifierConfig, ConfigError
from stillhouse.schemas.tables import scores_type
from stillhouse.stages.filters.classifier import Classifier, ReadsBoth, check_thresholds
from stillhouse.stages.filters.clock import Clock
from stillhouse.stages.filters.detoxify import DetoxifyClassifier
from stillhouse.stages.filters.guard import GuardClassifier
from stillhouse.stages.filters.profanity import ProfanityCheck

__all__ = [
    "FILTERS",
    "Classifier",
    "Clock",
    "Combined",
    "check_thresholds",
    "combined",
    "load",
    "read_by",
    "score_rows",
    "scores_column",
    "unsafe_rows",
]

FILTERS: dict[str, Callable[[Any], Classifier]] = {
    "profanity-check": ProfanityCheck,
    "detoxify": DetoxifyClassifier,
    "guard": GuardClassifier,
}
"""The classifier that each `name` in `screen.classifiers` stands for, built from its section."""


class Combined:
    """Several classifiers as one; without any, L is 0. `clock` learns what each of them takes. Raises `ConfigError`
    where two of them have the same label."""

    def __init__(self, classifiers: "Sequence[Classifier | Combined]", clock: Clock | None = None) -> None:
        self.classifiers: list[Classifier] = []
        for part in classifiers:
            self.classifiers += part.classifiers if isinstance(part, Combined) else [part]
        self._clock = clock or Clock()
        self.labels: tuple[str, ...] = tuple(label for part in self.classifiers for label in part.labels)
        self.thresholds = {label: value for part in self.classifiers for label, value in part.thresholds.items()}
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if twice:
            raise ConfigError(f"screen.classifiers: more than one has the label {', '.join(twice)}; keep one of them")

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [N, L], the columns in the order of the classifiers."""
        return _side_by_side(len(texts), [self._timed(part, texts) for part in self.classifiers])

    def score_answers(self, asked: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        """The same of answers, with what was asked for each of them: some classifiers read both."""
        return _side_by_side(len(texts), [self._timed(part, texts, asked) for part in self.classifiers])

    def _timed(self, part: Classifier, texts: Sequence[str], asked: Sequence[str] | None = None) -> NDArray[np.float32]:
        with self._clock.of(part.labels[0]):
            if asked is not None and isinstance(part, ReadsBoth):
                return part.score_answers(asked, texts)
            return part.score(texts)

    @property
    def broken(self) -> bool:
        """Whether some classifier has failed for good."""
        return any(getattr(part, "broken", False) for part in self.classifiers)

    def close(self) -> None:
        """End what the classifiers started."""
        for part in self.classifiers:
            getattr(part, "close", _nothing)()


def _side_by_side(num_texts: int, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([np.zeros((num_texts, 0), np.float32), *parts], axis=1)


def _nothing() -> None:
    pass


def load(config: ClassifierConfig) -> Classifier:
    """The classifier that a configuration names. Raises `ConfigError` when it cannot be used as configured."""
    return FILTERS[config.name](config)


def combined(configs: Sequence[ClassifierConfig]) -> Combined:
    """All configured classifiers as one, labels in the order of the configuration."""
    return Combined([load(config) for config in configs])


def read_by(configs: Sequence[ClassifierConfig], what: str) -> list[ClassifierConfig]:
    """Those of the classifiers that judge `what`, prompts or answers."""
    return [config for config in configs if what in getattr(config, "reads", (what,))]


def score_rows(
    classifier: Combined,
    texts: Sequence[str],
    row_N: NDArray[np.int64],
    num_rows: int,
    asked: Sequence[str] | None = None,
) -> NDArray[np.float32]:
    """Scores [R, L]: for each label the highest score of a row's texts; 0 for a row without any. Text i belongs to row
    `row_N[i]`. Of answers, `asked` is what each of them answers."""
    scores_RL = np.zeros((num_rows, len(classifier.labels)), np.float32)
    if classifier.labels:
        scores = classifier.score(texts) if asked is None else classifier.score_answers(asked, texts)
        np.maximum.at(scores_RL, row_N, scores)
    return scores_RL


def unsafe_rows(
    scores_RL: NDArray[np.float32], labels: Sequence[str], thresholds: Mapping[str, float]
) -> NDArray[np.bool_]:
    """[R]: whether some label's score is at or above its threshold."""
    # In float32 like the scores: the double 0.9 and the float32 nearest to it are different numbers.
    limit_L = np.asarray([thresholds.get(label, np.inf) for label in labels], np.float32)
    return np.asarray((scores_RL >= limit_L).any(axis=1))


def scores_column(scores_RL: NDArray[np.float32], labels: Sequence[str]) -> pa.StructArray:
    """Scores as a struct<label: float32> column, of the type `tables.scores_type(labels)`."""
    columns = [pa.array(np.ascontiguousarray(scores_R)) for scores_R in scores_RL.T]
    return pa.StructArray.from_arrays(columns, fields=list(scores_type(labels)))
