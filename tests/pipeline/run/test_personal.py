"""A run that masks personal information: no file holds it, and all that is made of a dataset still fits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline import cli
from stillhouse.pipeline.dataset.join import join
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.dataset.withhold import withhold
from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.look import report
from stillhouse.schemas.config import Config
from tests.support.data import make_raw_config
from tests.support.inline_pool import run_inline

NUM_ROWS = 24


def address(row: int) -> str:
    return f"person{row}@web.de"


def records() -> Iterator[dict[str, Any]]:
    """Prompts with an address each, one with NAME_1; the last two are one prompt but for the address."""
    for n in range(NUM_ROWS):
        topic = min(n, NUM_ROWS - 2)
        name = "NAME_1" if n == 3 else "Anna"
        text = f"Hello from {address(n)}. {name} asks about letter {topic}, or {chr(97 + topic) * 9}."
        yield {"messages": [{"role": "user", "content": text}, {"role": "user", "content": f"Mail {address(n)} now"}]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("personal")
    source = folder / "source/rows.jsonl"
    source.parent.mkdir()
    source.write_text("".join(json.dumps(record) + "\n" for record in records()))
    raw = make_raw_config(folder)
    raw["source"] = {"path": str(source)}
    raw["ingest"] |= {"turns": "all", "rows_per_shard": 8}
    raw["screen"] = {"classifiers": []}
    raw["personal"] = {"placeholders": "drop"}
    run_inline(Config.model_validate(raw))
    return Path(raw["run_dir"])


def test_no_file_holds_what_was_masked(run: Path) -> None:
    num_files = 0
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            text = str(pq.read_table(path).to_pylist()) + str(pq.read_metadata(path).metadata)
            num_files += 1
        else:
            text = path.read_bytes().decode(errors="replace")
        assert "@web.de" not in text, path
    assert num_files > 10
    rows = pq.read_table(run / "dataset/data").to_pylist()
    assert {row["messages"][0]["content"][:19] for row in rows} == {"Hello from EMAIL_1."}
    assert {row["prompt_personal"]["email"] for row in rows} == {2}


def test_counts_and_versions_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((run / "dataset/manifest.json").read_text())
    assert manifest["stages"]["ingest"]["dropped"] == {"placeholder_names": 1}
    assert manifest["stages"]["dedupe"]["dropped"] == {"exact_duplicate": 1}  # it is one prompt without the address
    assert "phonenumbers" in manifest["software"]
    report.write(str(run))
    assert "prompt_personal.email" in (run / "report.html").read_text()
    described = cli.main(["inspect", str(run), "--json"])
    assert described == 0
    assert "prompt_personal.email" in json.loads(capsys.readouterr().out)["numbers"]


@pytest.mark.long
def test_verified_withheld_and_joined(run: Path, tmp_path: Path) -> None:
    assert verify(str(run), 1)["problems"] == []
    withhold(str(run), str(tmp_path / "masked"), 1)
    withheld = pq.read_table(tmp_path / "masked/data")
    assert withheld["prompt_personal"].null_count == withheld.num_rows
    join(str(tmp_path / "masked"), str(tmp_path / "joined"))
    assert verify(str(tmp_path / "joined"), 1)["problems"] == []
    assert pq.read_table(tmp_path / "joined/data").equals(pq.read_table(run / "dataset/data"))


@pytest.mark.long
def test_joined_by_other_masks_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of a library that no longer finds an address."""
    withhold(str(run), str(tmp_path / "masked"), 1)
    monkeypatch.setattr("stillhouse.stages.personal.addresses.emails", lambda text: iter(()))
    with pytest.raises(ShardError, match="libraries"):
        join(str(tmp_path / "masked"), str(tmp_path / "joined"))


def test_what_was_dropped_is_counted_in_the_ledger(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    texts = ["Mail a@web.de, b@web.de", *(f"Question number {n} is this" for n in "abc")]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    raw = make_raw_config(tmp_path)
    raw["source"] = {"path": str(source), "columns": {"conversation": "text"}}
    raw["personal"] = {"prompts": "drop"}
    run_inline(Config.model_validate(raw))
    (row,) = pq.read_table(Path(raw["run_dir"]) / "ledger/ingest").to_pylist()
    assert (row["source_row"], row["reason"]) == (0, "personal_information")
    assert row["scores"] == [{"label": "email", "score": 2.0}]
