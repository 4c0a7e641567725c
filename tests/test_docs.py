"""What the documents say of the code stays true."""

import json
import re
import tomllib
from typing import Any

from stillhouse.pipeline import flow
from stillhouse.schemas.config import Config
from stillhouse.stages import ingest
from tests.support.data import ROOT


def test_every_drop_reason_is_documented() -> None:
    text = (ROOT / "docs/format.md").read_text().partition("### Reasons")[2].partition("## Size")[0]
    documented = {
        row.split("|")[1].strip(): set(re.findall(r"`(\w+)`", row.split("|")[2]))
        for row in text.splitlines()
        if "`" in row
    }
    shared = (ROOT / "stages/personal/__init__.py").read_text()  # of ingest and review
    assert documented["ingest"] == set(ingest.REASONS)
    assert documented["rollout"] == documented["generate"]
    for stage in ("dedupe", "screen", "balance", "generate", "score", "review"):
        source = (ROOT / "stages" / f"{stage}.py").read_text() + shared
        for reason in documented[stage]:
            assert f'"{reason}"' in source, reason


def test_published_columns_are_documented() -> None:
    from stillhouse.schemas import tables
    from stillhouse.schemas.config import TargetsConfig

    text = (ROOT / "docs/format.md").read_text().partition("## The run folder")[0]
    names = set(
        re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|")))
    )
    every = [TargetsConfig(method="both"), TargetsConfig(precision=0.25, entropy=True)]
    more = {"curated": tables.CURATED.names, "asked": True, "several": True, "student": True}
    schemas = [tables.reviewed(["label"], settings, ["email"], **more) for settings in every]
    assert {name for schema in schemas for name in schema.names} == names


def test_every_fault_has_the_test_that_is_named() -> None:
    tests: dict[str, list[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tests.setdefault(path.stem.removeprefix("test_"), []).extend(re.findall(r"def test_(\w+)", path.read_text()))
    faults = (ROOT / "docs/reliability.md").read_text().partition("## Faults")[2].partition("## Kills")[0]
    named = [row.split("|")[3] for row in faults.splitlines() if row.startswith("| ") and "`" in row.split("|")[3]]
    assert len(named) > 20
    for cell in named:
        file = ""
        for before, name in re.findall(r"(?:(\w+): )?`([^`]+)`", cell):
            file = before or file
            parts = name.partition("[")[0].split("…")
            assert any(all(part in test for part in parts) for test in tests.get(file, [])), f"{file}: {name}"


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
    for path in (ROOT / "docs/training").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in index


READERS = {
    "DuckDB": "duckdb",
    "Polars, `read_parquet` and streaming `scan_parquet`": "polars",
    "pandas on PyArrow": "pandas",
    "PyArrow": "pyarrow",
    "datasets, in memory and streaming": "datasets",
    "ClickHouse (chDB)": "chdb",
    "DataFusion (Rust's `parquet` crate)": "datafusion",
    "Spark": "pyspark",
    "hyparquet with hyparquet-compressors": "hyparquet",
    "fastparquet": "fastparquet",
}
"""The packages of the readers in docs/compatibility.md."""


def test_readers_of_the_page_are_those_that_are_installed() -> None:
    text = (ROOT / "docs/compatibility.md").read_text().partition("### Encodings")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("| ")]
    named = sorted((READERS[reader], version) for reader, version in rows if reader != "reader")
    pins = {
        path.stem: dict(line.split("==") for line in path.read_text().split())
        for path in (ROOT / "tests/readers/requirements").glob("*.txt")
    }
    package = {"spark": "pyspark"}
    installed = [
        (name, pins[stem][name]) for stem in pins for name in [package.get(stem, stem.rpartition("-")[0] or stem)]
    ]
    installed.append(
        ("hyparquet", json.loads((ROOT / "tests/readers/package.json").read_text())["dependencies"]["hyparquet"])
    )
    assert named == sorted(installed)


def test_the_decoder_asks_for_what_it_was_run_with() -> None:
    pins = dict(line.split("==") for line in (ROOT / "tests/readers/requirements/pyarrow-15.txt").read_text().split())
    wanted = tomllib.loads((ROOT / "schemas/targets/pyproject.toml").read_text())["project"]["dependencies"]
    bounds = dict(line.split(">=") for line in wanted)
    assert bounds["pyarrow"] == pins["pyarrow"]
    assert f"{bounds['numpy']}.0" == pins["numpy"]


def test_architecture_names_every_module() -> None:
    """A package's `__init__.py` only where it holds code."""
    named = set(
        re.findall(r"^\| `((?:schemas|stages|pipeline)/\S+\.py)` \|", (ROOT / "docs/architecture.md").read_text(), re.M)
    )
    modules = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for folder in ("schemas", "stages", "pipeline")
        for path in (ROOT / folder).rglob("*.py")
    }
    with_code = {
        name
        for name, text in modules.items()
        if name != "pipeline/__main__.py"
        and (not name.endswith("__init__.py") or re.search("^(def|class) ", text, re.M))
    }
    assert named - modules.keys() == set()
    assert with_code - named == set()


def test_stages_are_the_files_of_their_folder(raw_config: dict[str, Any]) -> None:
    raw_config["balance"] = {"quotas": [{"by": ["language"], "max_rows": 1}]}
    scoring = {key: value for key, value in raw_config.items() if key != "sampling"} | {"task": "score"}
    rolling_out = scoring | {"rollout": {"model": "./student", "sampling": {"max_tokens": 8}}}
    configs = [Config.model_validate(raw) for raw in (raw_config, scoring, rolling_out)]
    stages = [stage.name for config in configs for stage in flow.of(config)]
    files = {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert files - {"__init__"} == set(stages)


def test_no_file_is_long() -> None:
    """Over 350 lines a file has more than one mechanism; DECISIONS.md would say why."""
    for folder in ("schemas", "stages", "pipeline"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 350, path
