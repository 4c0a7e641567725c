"""Looking before paying: `run --until STAGE` and `run --sample N`."""

import json
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.pipeline import cli, flow
from stillhouse.pipeline.run import driver, pool
from stillhouse.schemas.config import Config, ConfigError, config_hash, deciding_values, sampled
from tests.support.command import Command, contents, read
from tests.support.data import CONVERSATIONS
from tests.support.inline_pool import InlinePool, Kept


class AskedPool(InlinePool):
    """Keeps what it is asked for."""

    def __init__(self) -> None:
        self.required: list[str] = []

    def require(self, config: Config, stages: Sequence[str]) -> list[str]:
        self.required += stages
        return []


Run = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command `stillhouse run --local`, its workers in this process."""
    monkeypatch.setattr(pool, "LocalPool", InlinePool)
    file = tmp_path / "config.yaml"

    def call(raw: dict[str, Any], *arguments: str) -> tuple[dict[str, Any], str]:
        file.write_text(yaml.safe_dump(raw))
        out = StringIO()
        assert cli.main(["run", str(file), "--local", "--json", *arguments], out) == 0
        return json.loads(out.getvalue()), capsys.readouterr().err.replace(str(file), "CONFIG")

    return call


@pytest.mark.long
def test_a_run_in_steps_is_the_run_in_one_go(finished: Command, tmp_path: Path, run: Run) -> None:
    raw = yaml.safe_load(finished.file.read_text()) | {"run_dir": str(tmp_path / "run")}
    folder = tmp_path / "run"
    result, err = run(raw, "--until", "screen", "--set", "sampling.seed=0")
    assert list(result["stages"]) == ["ingest", "dedupe", "screen"]
    assert result["until"] == "screen"
    assert result["stages"]["screen"]["rows_out"] == read(folder / "screen").num_rows > 0
    assert "go on:    stillhouse run CONFIG --set sampling.seed=0 --local\n" in err
    assert not any((folder / name).exists() for name in ("generate", "review", "dataset"))
    run(raw, "--until", "generate")
    assert not (folder / "review").exists()
    run(raw)
    assert contents(folder) == contents(finished.run_dir)
    again, err = run(raw, "--until", "screen")
    assert "nothing was missing" in err
    assert again["rows"] > 0


def test_nothing_of_later_stages_is_asked(raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, config = AskedPool(), Config.model_validate(raw_config)
    built = []
    monkeypatch.setattr(flow, "generate", lambda config: built.append(config))
    result = driver.run(config, Kept(), asked, until="dedupe")
    assert asked.required == ["ingest", "dedupe"]
    assert not built
    assert list(result["stages"]) == ["ingest", "dedupe"]


@pytest.mark.parametrize("stage", ["publish", "sreen"])
def test_a_stage_that_cannot_be_the_last(raw_config: dict[str, Any], stage: str) -> None:
    config = Config.model_validate(raw_config)
    with pytest.raises(ConfigError, match=r"--until: .* name one of ingest, dedupe, screen, generate, review"):
        driver.run(config, Kept(), InlinePool(), until=stage)
    assert not Path(config.run_dir).exists()


@pytest.mark.long
def test_sample_is_a_run_of_its_own(raw_config: dict[str, Any], run: Run) -> None:
    manifest, err = run(raw_config, "--sample", "12", "--set", "source.limit=null")
    folder = Path(f"{raw_config['run_dir']}-sample-12")
    assert f"12 rows of the whole source, in {folder}" in err
    assert "whole:    stillhouse run CONFIG --set source.limit=null --local\n" in err
    assert not Path(raw_config["run_dir"]).exists()
    assert manifest["stages"]["ingest"]["rows_in"] == 12
    assert manifest["config"]["source.sample"] == 12
    assert json.loads((folder / "run.json").read_text())["config"]["source"]["sample"] == 12
    ledger = read(folder / "ledger/ingest")
    rows = pa.concat_arrays([t["source_row"].combine_chunks() for t in (ledger, read(folder / "ingest"))]).to_pylist()
    assert len(set(rows)) == 12
    assert max(rows) > 5000  # of 17,671
    # The rows themselves, read by other means.
    source = pq.read_table(CONVERSATIONS, columns=["conversation"]).column(0)
    for row in read(folder / "ingest").select(["source_row", "user_turns"]).to_pylist():
        assert source[row["source_row"]].as_py()[0]["content"] == row["user_turns"][0]
    before = contents(folder)
    out = StringIO()
    arguments = ["status", str(folder.parent / "config.yaml"), "--sample", "12", "--set", "source.limit=null", "--json"]
    assert cli.main(arguments, out) == 0
    assert json.loads(out.getvalue())["rows"] == manifest["rows"]
    run(raw_config, "--sample", "12", "--set", "source.limit=null")
    assert contents(folder) == before


def test_a_configuration_without_a_sample_is_the_run_it_was(raw_config: dict[str, Any]) -> None:
    config = Config.model_validate(raw_config)
    assert "source.sample" not in deciding_values(config)
    preview = sampled(config, 5)
    assert deciding_values(preview)["source.sample"] == 5
    assert config_hash(preview) != config_hash(config)
    assert preview.run_dir == f"{config.run_dir}-sample-5"
    with pytest.raises(ConfigError, match="is a whole bucket"):
        sampled(config.model_copy(update={"run_dir": "s3://bucket/"}), 5)
