"""configs/gemma2-lmsys.yaml: every filter of content is on, and what is there as a comment is right."""

import re
from pathlib import Path

from stillhouse.schemas.config import GuardConfig, load
from tests.support.data import ROOT

RECIPE = ROOT / "configs/gemma2-lmsys.yaml"
COMMENTED = re.compile(r"^    # (- name: guard|  (?:preset|model|revision|engine|thresholds):.*)$", re.M)


def test_every_filter_is_on() -> None:
    """Sections of no stage, and those inside of a stage's, that may be null."""
    config = load(RECIPE)
    filters: dict[str, object] = {name: getattr(config, name) for name in ("decontamination", "personal", "balance")}
    for stage in ("dedupe", "screen", "review"):
        fields = type(getattr(config, stage)).model_fields
        optional = [name for name, field in fields.items() if field.default is None and name != "thresholds"]
        filters |= {f"{stage}.{name}": getattr(getattr(config, stage), name) for name in optional}
    assert len(filters) >= 9
    assert {name for name, section in filters.items() if section is None} == {"dedupe.semantic"}
    assert "semantic: is left out" in RECIPE.read_text()
    assert config.screen.drop_flagged
    assert [classifier.name for classifier in config.screen.classifiers] == ["detoxify"]


def test_the_guard_is_ready(tmp_path: Path) -> None:
    text, number = COMMENTED.subn(r"    \1", RECIPE.read_text())
    assert number == 6
    (tmp_path / "recipe.yaml").write_text(text)
    guard = load(tmp_path / "recipe.yaml").screen.classifiers[1]
    assert isinstance(guard, GuardConfig)
    assert guard.thresholds.keys() <= set(guard.labels)
    assert guard.revision is not None
    assert len(guard.revision) == 40
