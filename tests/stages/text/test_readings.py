"""Texts that are read together, against each text read by itself."""

import pytest

from stillhouse.stages.text import readings as module
from stillhouse.stages.text.reading import reading
from stillhouse.stages.text.readings import readings
from tests.support.questions import DIFFERENT, SAME
from tests.support.texts import ODD_TEXTS, golden_texts, long_texts, texts_in_scripts


@pytest.mark.parametrize("at_once", [1, 300, 1 << 18])
def test_they_are_those_of_each_text(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    texts = [*ODD_TEXTS, *texts_in_scripts(200)]
    if at_once > 300:  # a piece is a fixed cost
        texts += [*(text for pair in SAME + DIFFERENT for text in pair), *texts_in_scripts(1000), *golden_texts()]
        texts += long_texts()
    found = readings(texts)
    assert len(found) == len(texts)
    for text, what in zip(texts, found, strict=True):
        assert what == reading(text), ascii(text[:200])


def test_the_texts_beside_it_do_not_matter() -> None:
    for text in ODD_TEXTS:
        for other in ("", "A", "x =", "```\n", "  y", "\u00e9 B"):
            assert readings([other, text, other, text])[1::2] == [reading(text)] * 2, ascii((other, text))


def test_no_texts() -> None:
    assert readings([]) == []
