"""alt-profanity-check as a classifier. The package is imported when one is built.

Shape legend: N texts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.schemas.config import ProfanityCheckConfig
from stillhouse.stages.filters.classifier import check_thresholds


class ProfanityCheck:
    """The linear model inside the alt-profanity-check wheel: for English, with the one label `profanity`."""

    def __init__(self, config: ProfanityCheckConfig) -> None:
        import profanity_check

        self.labels: tuple[str, ...] = ("profanity",)
        self.thresholds = check_thresholds(config.thresholds, self.labels, "screen.classifiers (profanity-check)")
        self._predict_prob = profanity_check.predict_prob

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities [N, 1]."""
        if not texts:  # scikit-learn refuses an empty matrix
            return np.zeros((0, 1), np.float32)
        return np.asarray(self._predict_prob(texts), np.float32)[:, None]
