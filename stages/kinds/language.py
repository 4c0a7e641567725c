"""The language of a text, whatever its source says; none where it cannot be told.

Prompts are short, quote other languages and hold code, and that is where detectors are wrong: so code, addresses and
placeholders are left out first, and a text that is too short, or in two languages, has none. What is left is judged by
py3langid, a naive Bayes classifier of n-grams whose model is in its wheel.
"""

import functools
import re
from typing import Any

from stillhouse.stages.kinds.code import without_code

LANGUAGE = "language"

LONGEST = 500
"""Characters that are read, those of the beginning: no language is told better by more, and time grows with them."""
LEAST = 12
"""Letters that a text needs; a character of a script without spaces counts as three."""
PART = 18
"""Letters of a part, such as a sentence or a quotation, by which a text can be in two languages."""
MOST_PARTS = 12
OTHER = 0.25
"""The share of a text that makes it one in two languages."""
SURE = 0.8
"""So certain must be that a part is in another language."""

VARIANTS = {
    "an": "es",
    "ary": "ar",
    "arz": "ar",
    "crh": "tr",
    "ext": "es",
    "gcf": "ht",
    "gcr": "ht",
    "grc": "el",
    "hbo": "he",
    "lij": "it",
    "ltg": "lv",
    "nn": "no",
    "pcm": "en",
    "sdh": "ku",
    "uzs": "uz",
    "vec": "it",
    "wuu": "zh",
    "yue": "zh",
}
"""What the model knows apart and a short text does not tell apart: each would take some of the other's score."""
NO_LANGUAGE = "zxx"
"""What the model says of a text that is in none."""

_NO_WORDS = re.compile(r"https?://\S+|www\.\S+|\S+@\S+|`[^`\n]*`|\b[A-Z]+_\d+\b|\[/?INST\]|</?\w+/?>|[@#$]\w+|\w*\d\w*")
_DENSE = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    r"\uf900-\ufaff"
)
_SCRIPTS = {
    "dense": re.compile(rf"[{_DENSE}]"),
    "latin": re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]"),
    # Signs of vowels in scripts of India are no letters to Python.
    "other": re.compile(rf"[^\W\d_A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff{_DENSE}]|[\u0900-\u0dff]"),
}
_ENDS = re.compile(r"[\n.!?:;\"“”„«»。！？：；「」]+")


class Languages:
    """Finds languages. The model takes a second to read, once in a process, and 100 MB."""

    def __init__(self, min_score: float) -> None:
        self._min_score = min_score
        self._identifier = _identifier()

    def find(self, text: str) -> tuple[str | None, float]:
        """The ISO 639 code of a text's language, and how certain it is, 0 to 1; (None, 0) where it cannot be told."""
        text = _NO_WORDS.sub(" ", without_code(text)[: 4 * LONGEST])[:LONGEST]
        letters = _letters(text)
        if sum(letters.values()) < LEAST:
            return None, 0.0
        script = max(letters, key=lambda name: letters[name])
        if letters[script] < (1 - OTHER) * sum(letters.values()):
            return None, 0.0
        code, score = self._judge(text)
        if code is None or score < self._min_score or self._is_mixed(text, code, sum(letters.values())):
            return None, 0.0
        return code, score

    def _judge(self, text: str) -> tuple[str | None, float]:
        """The language that is most certain, and how certain it is; variants of one language count together."""
        scores: dict[str, float] = {}
        for label, score in self._identifier.rank(text):
            code = VARIANTS.get(label, label)
            scores[code] = scores.get(code, 0.0) + score
        best = max(scores, key=lambda code: scores[code])
        return None if best == NO_LANGUAGE else best, min(scores[best], 1.0)

    def _is_mixed(self, text: str, code: str, total: int) -> bool:
        """Whether parts that are surely in another language make up much of a text."""
        others = 0
        # Sentences that say next to nothing of a long text are not asked.
        sized = [(part, sum(_letters(part).values())) for part in _ENDS.split(text)]
        for part, size in sized:
            if max(PART, total / MOST_PARTS) <= size < total:
                found, score = self._judge(part)
                others += size if found != code and score >= SURE else 0
        return others >= OTHER * total


def _letters(text: str) -> dict[str, int]:
    return {name: len(script.findall(text)) * (3 if name == "dense" else 1) for name, script in _SCRIPTS.items()}


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
