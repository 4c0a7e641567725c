"""Which setting decides what a filter drops, and with which value, from the values that decide a run's data."""

from typing import Any

from stillhouse.schemas.config.identity import nested_values
from stillhouse.schemas.tables import EVIDENCE_LABELS

TAGS = frozenset({"low_information", "mistaken_identity", "refusal", "hedge"})
"""Labels that are 0 or 1: there is no threshold to try."""
NO_THRESHOLD = TAGS | {"language", "code"}
"""Labels at or above which no setting drops a row."""
_UNSAFE = {"screen": "unsafe_prompt", "review": "unsafe_answer"}
_OWN_REASONS = {label: reason for reason, label in EVIDENCE_LABELS.items()}
_OF_ITEMS = {"contamination": "decontamination.threshold", "jailbreak": "screen.jailbreaks.threshold"}


def drop_reason(stage: str, label: str) -> str:
    """For which a score of this label drops a row in `stage`."""
    return label if label in TAGS else _OWN_REASONS.get(label, _UNSAFE[stage])


def thresholds(config: dict[str, Any], stage: str) -> dict[str, tuple[str, float]]:
    """By label of a stage the setting that is its threshold, and the value."""
    found = {label: (key, config[key]) for label, key in _OF_ITEMS.items() if config.get(key) is not None}
    if stage == "review":
        found.pop("jailbreak", None)  # which are looked for in prompts alone
        own = config.get("review.thresholds")
        if own is not None:
            return {label: ("review.thresholds", value) for label, value in own.items()} | found
    return {
        label: (key, value)
        for key, values in config.items()
        if key.startswith("screen.classifiers[") and key.endswith("].thresholds")
        for label, value in values.items()
    } | found


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section with its lists of sections, as YAML would give it; empty where it is not there."""
    found = nested_values(config, [name]).get(name, {})
    lists: dict[str, Any] = {}
    for key, value in found.items():
        listed, bracket, number = key.partition("[")
        if not bracket:
            lists[key] = value
            continue
        items = lists.setdefault(listed, [])
        items += [{} for _ in range(int(number[:-1]) + 1 - len(items))]
        items[int(number[:-1])] = value
    return lists
