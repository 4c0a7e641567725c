"""Several classifiers as one, and what of them is unsafe."""

from typing import get_args

import numpy as np
import pytest

from stillhouse.schemas.config import ClassifierConfig, ConfigError, ProfanityCheckConfig
from stillhouse.stages.filters import FILTERS, combined, load, unsafe_rows
from stillhouse.stages.filters.detoxify import DetoxifyClassifier
from tests.support.python import run_python
from tests.support.tiny_bert import LABELS, Tiny


def test_every_configured_name_has_a_filter() -> None:
    sections = get_args(get_args(ClassifierConfig)[0])
    assert set(FILTERS) == {get_args(section.model_fields["name"].annotation)[0] for section in sections}


@pytest.mark.usefixtures("one_thread")
def test_combined_concatenates_labels(tiny: Tiny, classifier: DetoxifyClassifier) -> None:
    profanity = ProfanityCheckConfig(name="profanity-check")
    both = combined([profanity, tiny.config(thresholds={"threat": 0.4})])
    texts = ["you bitch", "good morning", "hello"]
    assert both.labels == ("profanity", *LABELS)
    assert both.thresholds == {"profanity": 0.9, "threat": 0.4}
    np.testing.assert_allclose(both.score(texts)[:, 1:], classifier.score(texts), atol=2e-6)
    np.testing.assert_array_equal(both.score(texts)[:, :1], load(profanity).score(texts))
    assert both.score([]).shape == (0, 4)
    assert combined([]).labels == ()
    assert combined([]).score(texts).shape == (3, 0)


def test_combined_refuses_a_label_twice() -> None:
    profanity = ProfanityCheckConfig(name="profanity-check")
    with pytest.raises(ConfigError, match="more than one has the label profanity; "):
        combined([profanity, profanity])


def test_thresholds_compare_in_float32() -> None:
    scores = np.array([[0.9, 0.0], [np.nextafter(np.float32(0.9), np.float32(0)), 1.0]], np.float32)
    assert unsafe_rows(scores, ("a", "b"), {"a": 0.9}).tolist() == [True, False]
    assert unsafe_rows(scores, ("a", "b"), {"b": 1.0}).tolist() == [False, True]
    assert unsafe_rows(scores, ("a", "b"), {"a": 0.0}).tolist() == [True, True]


def test_importing_is_cheap() -> None:
    script = (
        "import sys, stillhouse.stages.screen, stillhouse.stages.review; "
        "print({'torch', 'detoxify', 'profanity_check'} & set(sys.modules))"
    )
    assert run_python(script).strip() == "set()"
