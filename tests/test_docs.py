"""What the documents say of the code stays true."""

import re

from stillhouse.stages import ingest
from tests.support.data import ROOT


def test_every_drop_reason_is_documented() -> None:
    text = (ROOT / "docs/format.md").read_text().partition("### Reasons")[2].partition("## Size")[0]
    documented = {
        row.split("|")[1].strip(): set(re.findall(r"`(\w+)`", row.split("|")[2]))
        for row in text.splitlines()
        if "`" in row
    }
    assert documented["ingest"] == set(ingest.REASONS)
    for stage in ("dedupe", "screen", "generate", "review"):
        source = (ROOT / "stages" / f"{stage}.py").read_text()
        for reason in documented[stage]:
            assert f'"{reason}"' in source, reason


def test_published_columns_are_documented() -> None:
    from stillhouse.schemas import tables
    from stillhouse.schemas.config import TargetsConfig

    text = (ROOT / "docs/format.md").read_text().partition("## The run folder")[0]
    names = set(
        re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|")))
    )
    every = [TargetsConfig(method="both"), TargetsConfig(precision=0.25)]
    assert {name for settings in every for name in tables.reviewed(["label"], settings).names} == names


def test_links_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_layout_has_its_page() -> None:
    from stillhouse.stages.layouts import LAYOUTS, load_layout

    for name in LAYOUTS:
        page = (ROOT / "docs/training" / load_layout(name).page).read_text()
        assert f"export RUN --to {name}" in page
    index = (ROOT / "docs/training/README.md").read_text()
    for page in (ROOT / "docs/training").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index
