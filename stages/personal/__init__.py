"""Personal information in texts: found by libraries that know the formats, counted, and masked on request.

No list of names, no model: a name in a sentence is not found. What is, and how well: docs/curation.md. Importing this
package is cheap; the libraries are imported when a `Finder` is built or a text first needs them.

Shape legend: R rows of a table.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillhouse.schemas.config import PersonalConfig
from stillhouse.schemas.tables import personal_type
from stillhouse.stages.personal.span import Span

__all__ = ["PERSONAL", "PLACEHOLDER", "Find", "Finder", "Span", "counts_column"]

PERSONAL, PLACEHOLDER = "personal_information", "placeholder_names"
"""Drop reasons, of prompts and of answers."""
_PLACEHOLDER = re.compile(r"(?<![A-Za-z0-9_])NAME_[0-9]+(?![A-Za-z0-9_])")
"""What LMSYS-Chat-1M has in the place of names."""
_WORTH_A_LOOK = re.compile(r"[0-9@]|PRIVATE KEY|:[0-9A-Fa-f]*:")
"""A text without a digit, an at sign or a key's first line holds nothing that is looked for."""


class Find(NamedTuple):
    """Personal information of one kind at a place of a text."""

    start: int
    end: int
    kind: str


class Finder:
    """Finds what `config` names. Holds no text."""

    def __init__(self, config: PersonalConfig) -> None:
        self._config = config
        every = _finders()
        self._finders = {kind: every[kind] for kind in every if kind in config.kinds}
        self.kinds: tuple[str, ...] = config.counted
        """What is counted, in the order of the column's fields."""

    def find(self, text: str, language: str | None) -> list[Find]:
        """Finds in the order of the text, none within another: of two that overlap, the kind that is harder to mistake
        counts. `language` is the row's, by name or code; it decides how telephone numbers are written."""
        if _WORTH_A_LOOK.search(text) is None:
            return []
        found: list[Find] = []
        taken = bytearray(len(text))
        for kind, spans in self._finders.items():
            for start, end in spans(text, language):
                if not any(taken[start:end]):
                    taken[start:end] = b"\1" * (end - start)
                    found.append(Find(start, end, kind))
        if "placeholder" in self.kinds:
            found += [Find(*match.span(), "placeholder") for match in _PLACEHOLDER.finditer(text)]
        return sorted(found)

    def masked(self, texts: Sequence[str], language: str | None) -> tuple[list[str], dict[str, int]]:
        """The texts of one conversation with marks such as EMAIL_1 in the place of what was found, and how often each
        kind was. What stands there twice has the same mark, in every text. Placeholders stay."""
        marks: dict[tuple[str, str], str] = {}
        counts = dict.fromkeys(self.kinds, 0)
        numbers = dict.fromkeys(self.kinds, 0)
        masked = []
        for text in texts:
            parts, end = [], 0
            for find in self.find(text, language):
                counts[find.kind] += 1
                if find.kind == "placeholder":
                    continue
                key = (find.kind, text[find.start : find.end])
                if key not in marks:
                    numbers[find.kind] += 1
                    marks[key] = f"{find.kind.upper()}_{numbers[find.kind]}"
                parts += [text[end : find.start], marks[key]]
                end = find.end
            masked.append("".join([*parts, text[end:]]))
        return masked, counts

    def count(self, texts: Iterable[str], language: str | None) -> dict[str, int]:
        """How often each kind is found in the texts of one conversation."""
        counts = dict.fromkeys(self.kinds, 0)
        for text in texts:
            for find in self.find(text, language):
                counts[find.kind] += 1
        return counts

    @property
    def masks(self) -> bool:
        """Whether prompts are to be masked."""
        return self._config.prompts == "mask"

    def prompt_reason(self, counts: dict[str, int]) -> str | None:
        """Why a prompt with so many finds is to be dropped, if it is."""
        return self._reason(counts, self._config.prompts == "drop")

    def answer_reason(self, counts: dict[str, int]) -> str | None:
        """Why an answer with so many finds is to be dropped, if it is."""
        return self._reason(counts, self._config.answers == "drop")

    def _reason(self, counts: dict[str, int], drops: bool) -> str | None:
        if self._config.placeholders == "drop" and counts["placeholder"]:
            return PLACEHOLDER
        finds = sum(n for kind, n in counts.items() if kind != "placeholder")
        return PERSONAL if drops and finds >= self._config.drop_from else None


def counts_column(counts: Sequence[dict[str, int]], kinds: Sequence[str]) -> pa.StructArray:
    """Counts of rows [R] as a column of the type `tables.personal_type(kinds)`."""
    counts_RK: NDArray[np.int32] = np.array([[row[kind] for kind in kinds] for row in counts], np.int32)
    counts_RK = counts_RK.reshape(len(counts), len(kinds))
    columns = [pa.array(np.ascontiguousarray(counts_R)) for counts_R in counts_RK.T]
    return pa.StructArray.from_arrays(columns, fields=list(personal_type(kinds)))


def _finders() -> dict[str, Callable[[str, str | None], Iterable[Any]]]:
    """By kind, those that are harder to mistake first."""
    from stillhouse.stages.personal.addresses import emails, ips, macs
    from stillhouse.stages.personal.credentials import credentials
    from stillhouse.stages.personal.numbers import cards, ibans, national_ids
    from stillhouse.stages.personal.phones import phones
    from stillhouse.stages.personal.streets import streets

    return {
        "credential": lambda text, language: credentials(text),
        "email": lambda text, language: emails(text),
        "iban": lambda text, language: ibans(text),
        "national_id": lambda text, language: national_ids(text),
        "card": lambda text, language: cards(text),
        "ip": lambda text, language: ips(text),
        "mac": lambda text, language: macs(text),
        "street": lambda text, language: streets(text),
        "phone": phones,
    }
