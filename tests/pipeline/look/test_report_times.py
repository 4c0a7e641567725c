"""The report's view of timelines that runs have left."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.report.times import times
from stillhouse.pipeline.run.progress import Progress, Reports
from stillhouse.pipeline.run.result import ShardResult
from stillhouse.pipeline.run.timeline import Timeline


def tell(folder: Path, results: list[ShardResult]) -> None:
    progress = Progress()
    timeline = Timeline(str(folder), progress)
    report = Reports(progress, timeline)
    report.begin("generate", len(results))
    for result in results:
        report.result("generate", result)
    progress.close()
    timeline.close()


def made(name: str, worker: str = "w0", **values: object) -> ShardResult:
    values = {"outcome": "written", **values}
    return ShardResult("generate", name, 2.0, rows_in=10, num_target_tokens=100, worker=worker, **values)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text('{"deciding": {}}')
    return tmp_path


def test_what_shards_took_is_told(folder: Path) -> None:
    results = [
        made("00000.parquet"),
        made("00001.parquet", "w1", attempts=3),
        made("00002.parquet", outcome="set_aside"),
        made("00003.parquet", outcome="others"),
    ]
    tell(folder, results)
    found = times(open_place(str(folder)))
    assert found is not None
    (step,) = found["steps"]
    assert (step["step"], step["shards"], step["rows"], step["tokens"]) == ("generate", 3, 30, 300)
    assert (step["repeated"], step["set_aside"], step["workers"]) == (1, 1, 2)
    seconds = sum((end - start) * rate for start, end, rate in found["speed"])
    assert seconds == pytest.approx(300, rel=0.05)  # what is summed is tokens per second over time


def test_two_runs_are_one_history(folder: Path) -> None:
    tell(folder, [made("00000.parquet")])
    tell(folder, [made(f"0000{n}.parquet", f"w{n}") for n in range(1, 5)])
    found = times(open_place(str(folder)))
    assert found is not None
    assert (found["runs"], found["steps"][0]["shards"], found["steps"][0]["workers"]) == (2, 5, 4)


def test_no_timeline_no_times(folder: Path) -> None:
    tell(folder, [])
    assert times(open_place(str(folder))) is None


def test_what_cannot_be_read_is_left_out(folder: Path) -> None:
    tell(folder, [made("00000.parquet")])
    (folder / keys.TIMELINE / "20200101T000000-0000.parquet").write_bytes(b"PAR1")
    other = shards.encode(pa.table({"stage": ["generate"]}))
    (folder / keys.TIMELINE / "20200101T000000-0001.parquet").write_bytes(other)
    found = times(open_place(str(folder)))
    assert found is not None
    assert found["runs"] == 1


def test_teachers_that_take_turns_are_one_step(folder: Path) -> None:
    progress = Progress()
    timeline = Timeline(str(folder), progress)
    report = Reports(progress, timeline)
    for name, outcome in (("first", "part"), ("second", "written")):
        report.begin(f"generate: {name}", 1)
        time.sleep(0.3)
        report.result(f"generate: {name}", made("00000.parquet", outcome=outcome))
    progress.close()
    timeline.close()
    found = times(open_place(str(folder)))
    assert found is not None
    (step,) = found["steps"]
    assert (step["step"], step["shards"], step["tokens"]) == ("generate", 1, 100)
    assert step["seconds"] >= 0.6
    assert progress.generate_seconds >= 0.6
    assert progress.generate_tokens == 100
