"""alt-profanity-check on a few texts."""

import numpy as np
import pytest

from stillhouse.schemas.config import ConfigError, ProfanityCheckConfig
from stillhouse.stages.filters import load


def test_profanity_check() -> None:
    classifier = load(ProfanityCheckConfig(name="profanity-check"))
    texts = [
        "fuck you, you stupid bitch",
        "What is the capital of France?",
        "",
        " \n",
        "\0\u200b\U0001f642",
        "a" * 100_000,
    ]
    scores = classifier.score(texts)
    assert scores.shape == (6, 1)
    assert scores.dtype == np.float32
    assert scores[0, 0] > 0.9
    assert (scores[1:] < 0.5).all()
    assert classifier.score([]).shape == (0, 1)
    assert classifier.thresholds == {"profanity": 0.9}


def test_unknown_labels_are_named() -> None:
    with pytest.raises(ConfigError, match="names toxicity; the labels are profanity"):
        load(ProfanityCheckConfig(name="profanity-check", thresholds={"toxicity": 0.5}))
