"""Killed at any moment, a run goes on as if nothing had been: every shard byte for byte that of an undisturbed run.

`python -m pytest tests/test_faults.py -m slow -s` (make test-faults) kills real drivers, workers, raylets and GCS
servers at random moments, and single processes at every single step that they take on the storage.
"""

import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.folder.local import LocalFolder
from stillhouse.pipeline.look import status
from stillhouse.pipeline.run import driver
from stillhouse.schemas.config import Config
from tests.support.data import make_raw_config
from tests.support.inline_pool import InlinePool, Kept, run_inline
from tests.support.undisturbed import ROWS, assert_nothing_lost_nothing_twice, killed_again_and_again, undisturbed_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Config:
    return undisturbed_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def config(finished: Config, tmp_path: Path) -> Config:
    """A copy of the undisturbed run, to be spoilt."""
    shutil.copytree(finished.run_dir, tmp_path / "run")
    return finished.model_copy(update={"run_dir": str(tmp_path / "run")})


def test_a_stage_that_leaves_nothing_ends_the_run(tmp_path: Path, weights: Path) -> None:
    """Before engines are started for shards without rows."""
    raw = make_raw_config(tmp_path)
    raw["screen"] = {"classifiers": [{"name": "profanity-check", "thresholds": {"profanity": 0.0}}]}
    raw["screen"]["max_dropped_fraction"] = 1.0
    config, told = Config.model_validate(raw), Kept()
    for until in ("screen", None):
        with pytest.raises(
            RunError, match=r"^screen: nothing is left, all of \d+ rows were dropped \(unsafe_prompt \d+\)"
        ):
            driver.run(config, told, InlinePool(), until=until)
    assert "generate" not in [step for step, _ in told.steps]


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def flip(file: Path, *, in_footer: bool = False) -> None:
    data = bytearray(file.read_bytes())
    data[data.rindex(b"rows_in") if in_footer else 60] ^= 1
    file.write_bytes(data)


def test_damaged_shards_are_named_and_made_again(finished: Config, config: Config) -> None:
    """One of each kind, met in the middle of a run."""
    run_dir = Path(config.run_dir)
    for key in (
        "dataset/manifest.json",
        "dataset/data/train-00001-of-00006.parquet",
        "review/00001.parquet",
        "generate/00002.parquet",
        "review/00002.parquet",
    ):
        (run_dir / key).unlink()
    damaged = [
        "generate/00001.parquet",
        "screen/00002.parquet",
        "ingest/00005.parquet",
        "dataset/data/train-00004-of-00006.parquet",
        "state/review/assignments/00001.parquet",
    ]
    for key in damaged:
        flip(run_dir / key, in_footer=key.startswith("ingest"))
    seen = ("ingest/00005.parquet",)  # in a footer
    before = status.status(config)
    assert [line.partition(": ")[0] for line in before["damaged"]] == [str(run_dir / key) for key in seen]
    _, told = run_inline(config)
    for key in damaged:
        assert str(run_dir / key) in told, key
    assert_nothing_lost_nothing_twice(run_dir, Path(finished.run_dir))
    after = status.status(config)
    assert after["damaged"] == []
    folders = ("ingest", "screen", "generate", "dataset/data")
    assert list(after["put_away"]) == [f"state/damaged/{folder}" for folder in folders]


@pytest.mark.parametrize("stage", ["dedupe", "review"])
@pytest.mark.parametrize("what", ["sketches", "assignments"])
def test_damage_to_the_view_of_the_whole(finished: Config, config: Config, stage: str, what: str) -> None:
    run_dir = Path(config.run_dir)
    (run_dir / "dataset/manifest.json").unlink()
    (run_dir / stage / "00003.parquet").unlink()
    flip(run_dir / f"state/{stage}/{what}/00003.parquet")
    if what == "sketches":
        (run_dir / f"state/{stage}/assignments/00003.parquet").unlink()
    _, told = run_inline(config)
    assert str(run_dir / f"state/{stage}/{what}/00003.parquet") in told
    assert_nothing_lost_nothing_twice(run_dir, Path(finished.run_dir))


def test_finished_dataset_with_a_lost_and_a_cut_file_is_completed(finished: Config, config: Config) -> None:
    lost, cut = (Path(config.run_dir, f"dataset/data/train-0000{n}-of-00006.parquet") for n in (0, 3))
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-9])
    _, told = run_inline(config)
    assert f"{lost}: is gone" in told
    assert f"{cut}: has " in told
    assert_nothing_lost_nothing_twice(Path(config.run_dir), Path(finished.run_dir))


def test_damage_that_comes_back_each_time_ends_the_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(config.run_dir, "dataset/manifest.json").unlink()
    Path(config.run_dir, "screen/00001.parquet").unlink()
    Path(config.run_dir, "generate/00001.parquet").unlink()
    put, num_puts = LocalFolder.put_if_absent, 0

    def rotten(store: LocalFolder, key: str, data: bytes) -> bool:
        nonlocal num_puts
        num_puts += key == "screen/00001.parquet"
        return put(store, key, data[:-20] + b"x" + data[-19:] if key == "screen/00001.parquet" else data)

    monkeypatch.setattr(LocalFolder, "put_if_absent", rotten)
    with pytest.raises(
        RunError, match=r"screen/00001\.parquet: is damaged or gone 3 times, each time it is made; check"
    ):
        run_inline(config)


def test_answers_made_again_take_what_was_made_from_them_along(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher is not sure to answer twice alike: a review of other answers must not stay."""
    run_dir = Path(config.run_dir)
    (run_dir / "dataset/manifest.json").unlink()
    (run_dir / "generate/00003.parquet").unlink()
    victim = pq.read_table(run_dir / "screen/00003.parquet").column("prompt_id")[0].as_py()
    monkeypatch.setenv("FAKE_TEACHER_REFUSES", victim)
    manifest, _ = run_inline(config)
    counts = manifest["stages"]
    assert counts["generate"]["dropped"] == {"teacher_failed": 1}
    assert counts["review"]["rows_in"] == counts["generate"]["rows_out"]
    assert manifest["rows"] == counts["review"]["rows_out"]
    published = [pq.read_table(file).column("prompt_id").to_pylist() for file in run_dir.glob("dataset/data/*")]
    assert manifest["rows"] == sum(map(len, published))
    assert not any(victim in ids for ids in published)
    rows = [row["source_row"] for file in run_dir.glob("ledger/*/*") for row in pq.read_table(file).to_pylist()]
    rows += [row for file in run_dir.glob("dataset/data/*") for row in pq.read_table(file)["source_row"].to_pylist()]
    assert sorted(rows) == list(range(ROWS))


def test_run_that_lacks_only_its_manifest_looks_at_no_stage(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """And at all of them as soon as one published file is not what its index says."""
    run_dir = Path(config.run_dir)
    (run_dir / "dataset/manifest.json").unlink()
    first, _ = run_inline(config)  # a copied folder is looked over, and its index made again
    looked: list[int] = []
    stages = driver._Driver._all_stages

    def look(self: Any) -> Any:
        looked.append(1)
        return stages(self)

    monkeypatch.setattr(driver._Driver, "_all_stages", look)
    (run_dir / "dataset/manifest.json").unlink()
    assert run_inline(config)[0] == first
    assert not looked
    for spoil in (
        lambda: (run_dir / "dataset/data/train-00002-of-00006.parquet").unlink(),
        lambda: flip(run_dir / "dataset/data/train-00003-of-00006.parquet"),
        lambda: (run_dir / "state/index/review.json").unlink(),
    ):
        (run_dir / "dataset/manifest.json").unlink()
        spoil()
        assert run_inline(config)[0] == first
        assert looked
        looked.clear()


@pytest.mark.parametrize("key", ["state/partition.json", "dataset/manifest.json", "state/index/review.json"])
def test_damaged_json_is_made_again(finished: Config, config: Config, key: str) -> None:
    Path(config.run_dir, "dataset/manifest.json").unlink()
    file = Path(config.run_dir, key)
    file.write_bytes(b'{"num_shards": 5' if "partition" in key else b"{")
    run_inline(config)
    assert_nothing_lost_nothing_twice(Path(config.run_dir), Path(finished.run_dir))


def test_damaged_count_of_shards_is_noticed(finished: Config, config: Config) -> None:
    Path(config.run_dir, "dataset/manifest.json").unlink()
    Path(config.run_dir, "state/partition.json").write_bytes(b'{"num_shards": 5, "num_rows": 60}')
    run_inline(config)
    assert_nothing_lost_nothing_twice(Path(config.run_dir), Path(finished.run_dir))


def test_a_stray_file_beside_the_shards_has_the_source_read_no_more(config: Config) -> None:
    run_dir = Path(config.run_dir)
    (run_dir / "ingest/notes.txt").write_text("mine")
    (run_dir / "dataset/manifest.json").unlink()
    (run_dir / "dataset/data/train-00001-of-00006.parquet").unlink()
    told = Kept()
    run_inline(config, told)
    assert told.steps[0] == ("ingest", 0)


def test_killed_between_a_shard_and_the_view_of_its_ledger(finished: Config, config: Config) -> None:
    Path(config.run_dir, "dataset/manifest.json").unlink()
    shutil.rmtree(Path(config.run_dir, "ledger"))
    run_inline(config)
    assert_nothing_lost_nothing_twice(Path(config.run_dir), Path(finished.run_dir))


# ---------------------------------------------------------------------------------------------------------------------
# One process, killed at each of its steps


def test_killed_at_any_step(finished: Config, tmp_path: Path) -> None:
    config = finished.model_copy(update={"run_dir": str(tmp_path / "run")})
    random_steps = random.Random(0)
    kills = killed_again_and_again(config, Path(finished.run_dir), iter(lambda: random_steps.randint(40, 160), None))
    assert kills >= 5
