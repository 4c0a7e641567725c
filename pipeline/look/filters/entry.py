"""What is told of a filter, and of a setting that decides what it drops."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

TITLES = {
    "personal_information": "personal information",
    "placeholder_names": "placeholders such as NAME_1",
    "exact_duplicate": "equal prompts",
    "near_duplicate": "near duplicates",
    "semantic_duplicate": "prompts of one meaning",
    "moderation_flagged": "the source's moderation",
    "contamination": "evaluation sets",
    "jailbreak": "jailbreak templates",
    "low_information": "prompts that ask nothing",
    "language": "languages",
    "over_quota": "quotas by kind",
    "empty_answer": "empty answers",
    "loop_tokens": "answers that repeat themselves",
    "mistaken_identity": "mistaken identity",
    "refusal": "refusals",
    "hedge": "hedges",
    "truncated_answer": "answers that were cut off",
    "duplicate_answer": "equal answers",
}
"""Filters by their names; every other one is a classifier's label."""


@dataclass
class Setting:
    """One key of the configuration, and the rows that the filter would drop at some of its values."""

    key: str
    value: Any
    drops: list[tuple[Any, int]]
    """[(value, rows), ...], the value that was used among them; empty where nothing tells."""
    note: str = ""


@dataclass
class Filter:
    """What a filter did to a run. Rows are prompts up to balance, then samples."""

    stage: str
    name: str
    """The label of its score, or its drop reason."""
    reason: str | None
    """For which it drops rows; None where it drops none."""
    read: int | None
    """Rows that it has read and that are known of."""
    found: int | None
    """Of these the ones that it is about, kept or not."""
    dropped: int
    """Rows in the ledger with the reason. Filters share `unsafe_prompt` and `unsafe_answer`: here are those that this
    one takes."""
    settings: list[Setting] = field(default_factory=list)
    clock: str | None = None
    """What the stage calls it where it writes down seconds."""
    seconds: float | None = None
    rows_per_second: float | None = None

    @property
    def title(self) -> str:
        return TITLES.get(self.name, f"classifier: {self.name}")

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        del told["clock"]
        return told | {"title": self.title}


def told(value: Any) -> str:
    """A setting's value, as people write it in YAML."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def around(value: float, others: Iterable[float]) -> list[float]:
    """The value that was used and others to compare it with, ascending."""
    return sorted({float(value), *map(float, others)})
