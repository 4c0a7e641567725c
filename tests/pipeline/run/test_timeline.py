"""What a run writes down of itself while it goes on, and what `status` makes of it."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.identity import open_run
from stillhouse.pipeline.look import status
from stillhouse.pipeline.run import timeline
from stillhouse.pipeline.run.progress import Progress, Reports
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.pipeline.run.timeline import Timeline
from stillhouse.schemas import tables
from stillhouse.schemas.config import Config
from tests.support.command import Command


def test_timeline_is_what_the_shards_say(finished: Command) -> None:
    """Counts are in each shard's footer as well; the timeline came from the results of workers."""
    (file,) = (finished.run_dir / keys.TIMELINE).iterdir()
    table = shards.read(open_folder(str(finished.run_dir)), f"{keys.TIMELINE}/{file.name}")
    assert table.schema == tables.TIMELINE
    rows = [row for row in table.to_pylist() if row["step"] == "transform"]
    said = {}
    for stage in ("ingest", "dedupe", "screen", "generate", "review", "publish"):
        for path in (finished.run_dir / keys.stage_folder(stage)).glob("*.parquet"):
            said[stage, path.name] = json.loads(pq.read_metadata(path).metadata[b"stillhouse"])
    assert {
        (row["stage"], row["shard"], row["rows_in"], row["rows_out"], row["num_target_tokens"]) for row in rows
    } == {
        (stage, info["shard"], info["rows_in"], info["rows_out"], info["num_target_tokens"])
        for (stage, _), info in said.items()
    }
    assert len(rows) == len(said)
    assert {row["outcome"] for row in rows} == {"written"}
    assert {row["attempts"] for row in rows} == {1}
    assert {row["stage"] for row in table.to_pylist() if row["step"] == "sketch"} == {"dedupe", "review"}


def test_timeline_says_when_and_where(finished: Command) -> None:
    (file,) = (finished.run_dir / keys.TIMELINE).iterdir()
    rows = pq.read_table(file).to_pylist()
    written_at = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    for row in rows:
        assert row["queued"] <= row["started"] <= row["ended"] <= written_at
    assert [row["ended"] for row in rows] == sorted(row["ended"] for row in rows)
    by_worker = [row for row in rows if row["stage"] != "ingest"]
    assert {row["node"] for row in by_worker} == {socket.gethostname()}
    assert all(row["worker"].startswith("local-") for row in by_worker)
    assert {(row["node"], row["worker"]) for row in rows if row["stage"] == "ingest"} == {(None, None)}
    assert not [*(finished.run_dir / keys.NOW).iterdir()]  # it has ended


def test_timeline_that_is_written_often_has_every_row_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "ROWS_EVERY_S", 0.0)
    progress = Progress()
    line = Timeline(open_run(config).url, progress)
    names = [keys.shard_name(number) for number in range(20)]
    for name in names:
        line.result("screen", ShardResult("screen", name, 1.0))
    line.close()
    progress.close()
    (file,) = open_folder(config.run_dir).list(keys.TIMELINE)
    table = shards.read(open_folder(config.run_dir), f"{keys.TIMELINE}/{file}")
    assert table.column("shard").to_pylist() == names


@pytest.fixture
def config(raw_config: dict[str, Any]) -> Config:
    return Config.model_validate(raw_config)


@pytest.fixture
def going(config: Config) -> Any:
    """A run that goes on: three shards of generate, one of which is done."""
    progress = Progress()
    line = Timeline(open_run(config).url, progress)
    report = Reports(progress, line)
    report.begin("generate", 3, 30)
    report.activity(Activity("w", "generate", "transform", False, 2, 4, 16, 1000))
    report.result(
        "generate",
        ShardResult("generate", "00000.parquet", 2.0, rows_in=10, rows_out=9, num_target_tokens=50, attempts=2).by("w"),
    )
    yield report, line
    progress.close()


def test_status_says_how_far_a_run_is(
    config: Config, going: tuple[Reports, Timeline], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, line = going
    (now,) = status.status(config)["now"]
    assert (now["step"], now["num_shards"], now["num_answers"], now["num_workers"]) == ("generate", 3, 30, 1)
    assert now["shards_done"] == 0  # not yet: it was written when the first worker spoke
    monkeypatch.setattr(line, "_next_now", 0.0)  # time goes by
    report.activity(Activity("w", "generate", "transform", False, 2, 4, 16, 1000))
    result = status.status(config)
    (now,) = result["now"]
    assert (now["shards_done"], now["answers_done"], now["answers_under_way"]) == (1, 14, 16)
    assert now["seconds_ago"] < 60
    capsys.readouterr()
    status.show(result)
    shown = capsys.readouterr().err
    assert "a run goes on; " in shown
    assert "generate: 14 answers done, 16 under way, 0 to come, " in shown
    report.begin("review: sketch", 3)
    report.activity(Activity("v", "review", "sketch", True))
    assert [now["step"] for now in status.status(config)["now"]] == ["review: sketch"]  # at once
    line.close()
    assert status.status(config)["now"] == []


def test_status_knows_a_run_that_was_killed(
    config: Config, going: tuple[Reports, Timeline], capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = (Path(config.run_dir) / keys.NOW).iterdir()
    facts = json.loads(file.read_text())
    then = datetime.now(UTC) - timedelta(minutes=10)
    file.write_text(json.dumps(facts | {"written": then.isoformat()}))
    os.utime(file, (then.timestamp(), then.timestamp()))
    (file.parent / "other.json").write_text("not JSON")
    result = status.status(config)
    assert [600 <= now["seconds_ago"] < 620 for now in result["now"]] == [True]
    capsys.readouterr()
    status.show(result)
    shown = capsys.readouterr().err
    assert f"silent since {then.isoformat()} and was killed" in shown
    assert "goes on; " not in shown
    assert timeline.NOW_EVERY_S * 2 < status.SILENT_AFTER_S


def test_a_clock_that_is_behind_makes_no_run_silent(config: Config, going: tuple[Reports, Timeline]) -> None:
    (file,) = (Path(config.run_dir) / keys.NOW).iterdir()
    facts, now = json.loads(file.read_text()), datetime.now(UTC)
    then = now - timedelta(minutes=10)
    for of_writer, of_storage in ((then, now), (now, then)):
        file.write_text(json.dumps(facts | {"written": of_writer.isoformat()}))
        os.utime(file, (of_storage.timestamp(), of_storage.timestamp()))
        assert [now["seconds_ago"] < 60 for now in status.status(config)["now"]] == [True]


def test_storage_that_fails_ends_no_run_for_a_timeline(going: tuple[Reports, Timeline], config: Config) -> None:
    report, line = going
    folder = Path(config.run_dir) / keys.NOW
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.write_bytes(b"")  # where a folder should be
    line._next_now = line._next_rows = 0.0
    report.activity(Activity("w", "generate", "transform", False, 2, 4, 16, 1000))
    line.close()


def test_nothing_made_nothing_written(config: Config) -> None:
    line = Timeline(open_run(config).url, progress := Progress())
    line.begin("ingest", 0)
    line.close()
    progress.close()
    assert not (Path(config.run_dir) / "state/timeline").exists()
    assert not (Path(config.run_dir) / "state/now").exists()
