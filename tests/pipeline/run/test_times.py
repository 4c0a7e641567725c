"""How long shards took is written down beside the data, and the report reads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.errors import StorageError
from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.report.times import times
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.pipeline.run.times import Times


class Deaf:
    """A `Report` that counts what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, step: str, num_shards: int | None, num_answers: int | None = None) -> None:
        self.calls.append("begin")

    def result(self, step: str, result: ShardResult) -> None:
        self.calls.append("result")

    def activity(self, activity: Activity) -> None:
        self.calls.append("activity")

    def trouble(self, text: str) -> None:
        self.calls.append("trouble")


def tell(folder: Path, results: list[ShardResult], workers: int = 2) -> Deaf:
    deaf = Deaf()
    kept = Times(open_folder(str(folder)), deaf)
    kept.begin("generate", len(results) or 0)
    for number in range(workers):
        kept.activity(Activity(f"w{number}", "generate", "transform", is_starting=False))
    kept.activity(Activity("", "generate", "transform", is_starting=True, waits_for="a GPU"))
    for result in results:
        kept.result("generate", result)
    kept.trouble("a file is gone")
    kept.write()
    return deaf


def shard(name: str, **values: Any) -> ShardResult:
    return ShardResult("generate", name, 2.0, rows_in=10, num_target_tokens=100, **values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text('{"deciding": {}}')
    return tmp_path


def test_what_shards_took_is_kept(folder: Path) -> None:
    results = [shard("00000.parquet"), shard("00001.parquet", attempts=3), shard("00002.parquet", outcome="set_aside"),
               shard("00003.parquet", outcome="others")]  # fmt: skip
    deaf = tell(folder, results)
    assert deaf.calls == ["begin", *["activity"] * 3, *["result"] * 4, "trouble"]
    found = times(open_place(str(folder)))
    assert found is not None
    step = found["steps"][0]
    assert (step["step"], step["shards"], step["rows"], step["tokens"]) == ("generate", 3, 30, 300)
    assert (step["repeated"], step["set_aside"], step["workers"]) == (1, 1, 2)
    seconds = sum((end - start) * rate for start, end, rate in found["speed"])
    assert seconds == pytest.approx(300, rel=0.05)  # what is summed is tokens per second over time


def test_two_runs_are_one_history(folder: Path) -> None:
    tell(folder, [shard("00000.parquet")], workers=1)
    tell(folder, [shard("00001.parquet")], workers=4)
    found = times(open_place(str(folder)))
    assert found is not None
    assert (found["runs"], found["steps"][0]["shards"], found["steps"][0]["workers"]) == (2, 2, 4)


def test_a_run_that_makes_nothing_writes_nothing(folder: Path) -> None:
    tell(folder, [])
    assert not (folder / "state").exists()
    assert times(open_place(str(folder))) is None


def test_what_cannot_be_read_is_left_out(folder: Path) -> None:
    tell(folder, [shard("00000.parquet")])
    (folder / "state/times/20200101T000000-0000.json").write_text('{"shards": 1')
    (folder / "state/times/20200101T000000-0001.json").write_text(json.dumps({"shards": []}))
    found = times(open_place(str(folder)))
    assert found is not None
    assert found["runs"] == 1


def test_a_storage_that_fails_fails_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.pipeline.folder.local import LocalFolder

    def fail(*_: Any) -> None:
        raise StorageError("full")

    monkeypatch.setattr(LocalFolder, "put", fail)
    tell(folder, [shard("00000.parquet")])
