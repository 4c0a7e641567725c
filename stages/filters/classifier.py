"""The interface of a text classifier.

Shape legend: N texts, L labels.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stillhouse.schemas.config import ConfigError


class Classifier(Protocol):
    labels: tuple[str, ...]
    thresholds: dict[str, float]
    """A text is unsafe at or above its label's threshold. A label without one is only scored."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities [N, L] in the order of `texts` and `labels`."""
        ...


@runtime_checkable
class ReadsBoth(Protocol):
    """A classifier of answers that also reads what was asked. It may have `broken`, whether it has failed for good, and
    `close`, which ends what it started."""

    def score_answers(self, asked: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities [N, L] of `texts`, which answer `asked`."""
        ...


def check_thresholds(thresholds: Mapping[str, float], labels: Sequence[str], where: str) -> dict[str, float]:
    """A copy of `thresholds`. Raises `ConfigError`, naming the known labels, where one is for an unknown label."""
    unknown = sorted(set(thresholds) - set(labels))
    if unknown:
        raise ConfigError(
            f"{where}: `thresholds` names {', '.join(unknown)}; the labels are {', '.join(labels) or 'none'}, use these"
        )
    return dict(thresholds)
