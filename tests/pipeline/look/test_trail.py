"""A prompt's way, compared with where PyArrow finds it in the files."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.folder import shard
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.trail import trail
from stillhouse.schemas.tables import LEDGER
from tests.support.data import STAGES


def brief(entries: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(entry["stage"], entry["status"], entry["reason"], entry["columns"].get("sample_id")) for entry in entries]


def kept(stage: str, sample: str | None = None) -> tuple[Any, ...]:
    return stage, "kept", None, sample


def test_a_prompt_that_is_published(looked_at: Path) -> None:
    entries = trail(open_place(str(looked_at)), "id-7")
    samples = ["id-7/0", "id-7/1"]
    before = [kept(stage) for stage in STAGES[:3]]
    assert brief(entries) == before + [kept(stage, sample) for stage in STAGES[3:] for sample in samples]
    for entry in entries:
        row = pq.read_table(looked_at / entry["file"]).to_pylist()[entry["row"]]
        assert row["prompt_id"] == "id-7"
        assert row["source_row"] == entry["columns"]["source_row"] == 7
        assert row.get("sample_id") == entry["columns"].get("sample_id")


def test_one_of_its_samples(looked_at: Path) -> None:
    entries = trail(open_place(str(looked_at / "generate")), "id-7/1")
    before = [kept(stage) for stage in STAGES[:3]]
    assert brief(entries) == before + [kept(stage, "id-7/1") for stage in STAGES[3:]]
    assert trail(open_place(str(looked_at)), "id-7/9") == []
    assert trail(open_place(str(looked_at)), "id-70") == []
    assert trail(open_place(str(looked_at)), "/0") == []


@pytest.mark.parametrize(
    ("prompt", "stage", "reason"),
    [
        ("id-2", "ingest", "starts_with_assistant"),
        ("id-5", "dedupe", "exact_duplicate"),
        ("id-3", "screen", "unsafe_prompt"),
    ],
)
def test_a_prompt_that_was_dropped(looked_at: Path, prompt: str, stage: str, reason: str) -> None:
    entries = trail(open_place(str(looked_at)), prompt)
    before = STAGES[: STAGES.index(stage)]
    assert brief(entries) == [*(kept(name) for name in before), (stage, "dropped", reason, None)]
    row = pq.read_table(looked_at / entries[-1]["file"]).to_pylist()[entries[-1]["row"]]
    assert (row["prompt_id"], row["reason"]) == (prompt, reason)
    if stage == "screen":
        (score,) = row["scores"]
        assert entries[-1]["columns"]["scores.profanity"] == pytest.approx(score["score"], abs=1e-6)


def test_stages_that_are_missing(looked_at: Path, tmp_path: Path) -> None:
    run = shutil.copytree(looked_at, tmp_path / "run")
    for folder in ("dataset", "review", "ledger/review"):
        shutil.rmtree(run / folder)
    (run / "generate/00001.parquet").unlink()
    missing = [(stage, "missing", None, None) for stage in STAGES]
    before = [kept(stage) for stage in STAGES[:3]]
    assert brief(trail(open_place(str(run)), "id-7")) == before + missing[3:]
    done = [kept("generate", "id-0/0"), kept("generate", "id-0/1")]
    assert brief(trail(open_place(str(run)), "id-0")) == before + done + missing[4:]


def test_one_sample_dropped_and_one_kept(looked_at: Path, tmp_path: Path) -> None:
    """Both ways go on as they are, until nothing is left."""
    run = shutil.copytree(looked_at, tmp_path / "run")
    _drop_in_review(run, "id-7/0")
    rest = [kept("generate", "id-7/0"), kept("generate", "id-7/1"), kept("review", "id-7/1")]
    dropped = ("review", "dropped", "empty_answer", "id-7/0")
    last = [kept("publish", "id-7/0"), kept("publish", "id-7/1")]  # which this test left as it was
    assert brief(trail(open_place(str(run)), "id-7"))[3:] == [*rest, dropped, *last]
    assert brief(trail(open_place(str(run)), "id-7/0"))[3:] == [rest[0], dropped]


def _drop_in_review(run: Path, sample: str) -> None:
    path = run / "review/00001.parquet"
    table = pq.read_table(path)
    path.write_bytes(shard.encode(table.filter([row != sample for row in table.column("sample_id").to_pylist()])))
    row = {"prompt_id": sample.partition("/")[0], "sample_id": sample, "stage": "review", "reason": "empty_answer"}
    ledger = pa.Table.from_pylist([row], schema=LEDGER)
    (run / "ledger/review/00001.parquet").write_bytes(shard.encode(ledger))


def test_a_dataset_alone(looked_at: Path, tmp_path: Path) -> None:
    shutil.copytree(looked_at / "dataset", tmp_path / "copy")
    entries = trail(open_place(str(tmp_path / "copy")), "id-7/0")
    assert brief(entries) == [kept("publish", "id-7/0")]
    assert entries[0]["file"] == "data/train-00001-of-00004.parquet"


def test_a_prompt_whose_id_reads_like_a_samples(looked_at: Path, tmp_path: Path) -> None:
    """`a/0` can be a prompt, and `a` another one."""
    for n, prompt in enumerate(["a", "a/0"]):
        table = pa.table({"prompt_id": [prompt], "sample_id": [f"{prompt}/0"]})
        data = shard.encode(table, ShardInfo("generate", f"0000{n}.parquet", "x", 1, 1))
        (tmp_path / f"0000{n}.parquet").write_bytes(data)
    place = open_place(str(tmp_path))
    assert [entry["columns"]["prompt_id"] for entry in trail(place, "a/0")] == ["a/0"]
    assert [entry["columns"]["prompt_id"] for entry in trail(place, "a")] == ["a"]
    assert [entry["columns"]["prompt_id"] for entry in trail(place, "a/0/0")] == ["a/0"]
