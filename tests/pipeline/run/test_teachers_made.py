"""Several teachers in one run, killed, damaged, shared: the files are those of a run that nothing disturbs."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.folder import index, keys, open_folder
from stillhouse.pipeline.run import driver, sharing
from stillhouse.pipeline.run.pool import LocalPool
from stillhouse.pipeline.run.purge import purge
from stillhouse.pipeline.run.worker import Worker
from stillhouse.schemas.config import Config
from tests.support import fake_teacher
from tests.support.command import contents
from tests.support.inline_pool import InlinePool, Kept, run_inline
from tests.support.s3 import bucket  # noqa: F401 (a fixture)
from tests.support.teaching import published_rows
from tests.support.undisturbed import killed_again_and_again

Raw = dict[str, Any]

pytestmark = pytest.mark.slow


def take_answers_back(config: Config) -> None:
    for folder in ("dataset", "review", "generate", "state/review", "ledger/review", "ledger/generate"):
        shutil.rmtree(Path(config.run_dir) / folder)


def test_killed_at_any_step(taught: tuple[Config, dict[str, Any]], tmp_path: Path) -> None:
    config = taught[0].model_copy(update={"run_dir": str(tmp_path / "run")})
    steps = random.Random(0)
    kills = killed_again_and_again(config, Path(taught[0].run_dir), iter(lambda: steps.randint(40, 200), None))
    assert kills >= 5


def test_killed_between_the_teachers(
    taught: tuple[Config, dict[str, Any]], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first one has answered is there, and its engine is not started again."""
    take_answers_back(copied)

    def no_teacher(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake_teacher.OtherTeacher, "__init__", no_teacher)
        with pytest.raises(KeyboardInterrupt):
            run_inline(copied)
    parts = sharing.by_shard(open_folder(copied.run_dir).list(keys.parts("generate")))
    assert len(parts) == 5  # in the last shard it has no rows
    started = []
    original = fake_teacher.FakeTeacher.__init__

    def started_as(self: Any, config: Config, stop: list[int]) -> None:
        started.append(type(self).__name__)
        original(self, config, stop)

    monkeypatch.setattr(fake_teacher.FakeTeacher, "__init__", started_as)
    run_inline(copied)
    assert started == ["OtherTeacher"]
    assert contents(Path(copied.run_dir)) == contents(Path(taught[0].run_dir))


@pytest.mark.long
def test_killed_between_the_teachers_on_an_object_store(
    taught: tuple[Config, dict[str, Any]],
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = taught[0].model_copy(update={"run_dir": f"{bucket}/teachers"})
    with monkeypatch.context() as patch:
        patch.setattr(fake_teacher.OtherTeacher, "__init__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_inline(config)
    store = open_folder(config.run_dir)
    assert len(store.list(keys.parts("generate"))) == 5
    assert store.list("generate") == {}
    run_inline(config)
    theirs = contents(Path(taught[0].run_dir))
    assert [key for key in theirs if store.get(key) != theirs[key]] == []
    assert store.list(keys.parts("generate")) == {}


def test_parts_of_other_prompts_are_made_again(
    taught: tuple[Config, dict[str, Any]], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the first teacher that is damaged is found by the last one, and comes back in the next round."""
    take_answers_back(copied)
    with monkeypatch.context() as patch:
        patch.setattr(fake_teacher.OtherTeacher, "__init__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_inline(copied)
    part = next((Path(copied.run_dir) / keys.parts("generate")).glob("00001.*"))
    data = bytearray(part.read_bytes())
    data[60] ^= 1
    part.write_bytes(data)
    _, told = run_inline(copied)
    assert part.name in told
    assert contents(Path(copied.run_dir)) == contents(Path(taught[0].run_dir))


@pytest.mark.long
def test_number_of_workers_changes_no_byte(taught: tuple[Config, dict[str, Any]], copied: Config) -> None:
    take_answers_back(copied)
    resources = copied.resources.model_dump() | {
        "generate": {"max_workers": 2, "num_cpus": 0.1},
        "teachers": {"codes": {"max_workers": 3, "num_cpus": 0.1, "shards_in_flight": 2}},
    }
    config = copied.model_copy(update={"resources": type(copied.resources).model_validate(resources)})
    kept = Kept()
    driver.run(config, kept, LocalPool())
    assert [step for step, _ in kept.steps if step.startswith("generate")] == ["generate: counts", "generate: codes"]
    mine, theirs = contents(Path(config.run_dir)), contents(Path(taught[0].run_dir))
    assert [key for key in theirs if mine.get(key) != theirs[key]] == []


@pytest.mark.long
def test_a_row_that_kills_its_worker_costs_that_row(
    taught: tuple[Config, dict[str, Any]], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_answers_back(copied)
    victim = next(row["sample_id"] for row in published_rows(taught[0]).values() if row["teacher"] == "counts")
    monkeypatch.setenv("FAKE_TEACHER_DIES_ON", victim)
    resources = copied.resources.model_copy(update={"max_attempts": 1})
    manifest = driver.run(copied.model_copy(update={"resources": resources}), Kept(), LocalPool())
    assert manifest["stages"]["generate"]["dropped"] == {"teacher_failed": 1}
    assert manifest["set_aside"] == []
    lost = published_rows(taught[0]).keys() - published_rows(copied).keys()
    assert {name.rpartition("/")[0] for name in lost} == {victim.rpartition("/")[0]}


def test_a_shard_that_is_set_aside_can_be_tried_again(
    taught: tuple[Config, dict[str, Any]], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last teacher fails on all its rows of one shard: what the first one wrote of it stays for the next try."""
    take_answers_back(copied)
    resources = copied.resources.model_copy(update={"max_attempts": 1})
    config = copied.model_copy(update={"resources": resources})
    first = tuple(f"row-{number}/" for number in range(10))
    answer = fake_teacher.OtherTeacher.answer

    async def refuses(self: Any, prompt_ids: Any, request_id: str, seed: int, max_tokens: int) -> Any:
        if request_id.startswith(first):
            raise RuntimeError("not this shard")
        return await answer(self, prompt_ids, request_id, seed, max_tokens)

    with monkeypatch.context() as patch:
        patch.setattr(fake_teacher.OtherTeacher, "answer", refuses)
        manifest, _ = run_inline(config)
    assert len(manifest["set_aside"]) == 1
    assert sum(name.startswith("00000.") for name in open_folder(config.run_dir).list(keys.parts("generate"))) == 1
    again = driver.run(config, Kept(), InlinePool(), retry_set_aside=True)
    assert again["set_aside"] == []
    assert contents(Path(config.run_dir)) == contents(Path(taught[0].run_dir))


def test_pieces_that_nobody_puts_together_end_the_run(
    raw_teachers: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in a dataset that lacks a shard, of which nothing says so."""

    async def keeps(self: Any, shard: str, source: Any, part: Any) -> Any:
        return part

    monkeypatch.setattr(Worker, "_joined", keeps)
    raw = raw_teachers | {"run_dir": str(tmp_path / "run"), "source": {**raw_teachers["source"], "limit": 10}}
    with pytest.raises(RunError, match=r"generate/00000.parquet: is damaged or gone 3 times"):
        run_inline(Config.model_validate(raw))


def test_purge_leaves_the_counts_right(copied: Config) -> None:
    rows = published_rows(copied)
    victim = next(row for row in rows.values() if row["teacher"] == "codes")
    purge(copied.run_dir, [victim["prompt_id"]])
    manifest = json.loads((Path(copied.run_dir) / keys.MANIFEST).read_text())
    left = [row["teacher"] for row in published_rows(copied).values()]
    assert {teacher["name"]: teacher["rows"] for teacher in manifest["teachers"]} == {
        name: left.count(name) for name in ("counts", "codes")
    }
    names = [f"{n:05d}.parquet" for n in range(6)]
    screened = index.read(copied, open_folder(copied.run_dir), "screen", names)
    counted = [count["rows"] for summary in screened.values() for count in summary.teachers.values()]
    assert sum(counted) == sum(summary.rows_out for summary in screened.values())
