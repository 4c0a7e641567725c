"""Which shards are made first, which are shared, and that a shard which workers share is the shard that one makes."""

import asyncio
import itertools
from typing import Any

import pytest

from stillhouse.pipeline.folder import index, keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.index import ShardSummary
from stillhouse.pipeline.run import sharing
from stillhouse.pipeline.run.pool import Job, LocalPool
from stillhouse.pipeline.run.progress import Step
from stillhouse.pipeline.run.result import ShardResult
from stillhouse.pipeline.run.worker import Worker
from stillhouse.schemas.config import Config
from tests.support.prompts import numbered, prompts, put_screened

NAME = "00000.parquet"


@pytest.fixture
def config(raw_config: dict[str, Any]) -> Config:
    """A run with a screened shard of 41 prompts."""
    raw_config["sampling"]["n"] = 2
    config = Config.model_validate(raw_config)
    put_screened(config, NAME, numbered(list(range(41))))
    return config


def summary(rows: int, num_turns: int = 0) -> ShardSummary:
    return ShardSummary("", 0, rows, rows, 0, {}, "", "", num_turns=num_turns)


def covered(units: list[str]) -> dict[str, list[int]]:
    rows = dict[str, list[int]]()
    for unit in units:
        shard, extent = sharing.parsed(unit)
        rows.setdefault(shard, []).extend(range(*(extent or (0, 10_000))))
    return rows


def test_units_get_smaller_and_hold_every_row_once() -> None:
    ready = {f"{n:05d}.parquet": summary(100 * n) for n in range(1, 11)}
    units = sharing.shared([*ready], ready, num_workers=8, shards_in_flight=1)
    rows = covered(units)
    assert rows == {name: [*range(ready[name].rows_out)] for name in reversed(ready)}
    left = sum(range(1, 11)) * 100
    for shard, group in itertools.groupby(units, lambda unit: sharing.parsed(unit)[0]):
        pieces = [*group]
        longest = -(-ready[shard].rows_out // len(pieces))
        assert longest <= max(left / 16 + 1, 2 * sharing.MIN_PIECE_ROWS)
        left -= ready[shard].rows_out


def test_many_equal_shards_are_shared_at_the_end_alone() -> None:
    ready = {f"{n:05d}.parquet": summary(1000) for n in range(100)}
    units = sharing.shared([*ready], ready, num_workers=8, shards_in_flight=2)
    assert units[:69] == [*ready][:69]
    assert all("@" in unit for unit in units[69:])


def test_one_worker_shares_nothing_and_keeps_the_order() -> None:
    ready = {f"{n:05d}.parquet": summary(100 * n) for n in range(1, 4)}
    assert sharing.shared([*ready], ready, 1, 4, begun={"00001.parquet"}) == [*ready]


def test_shards_that_were_begun_are_shared() -> None:
    ready = {f"{n:05d}.parquet": summary(10) for n in range(9)}
    units = sharing.shared([*ready], ready, 2, 1, begun={"00001.parquet"})
    assert [unit for unit in units if "@" in unit] == ["00001.parquet@0-5", "00001.parquet@5-10"]


def test_cost_is_turns() -> None:
    ready = {"a": summary(10, 20), "b": summary(15, 15), "c": summary(12)}
    assert sharing.shared([*ready], ready, 2, 1) == ["a", "b", "c"]


def test_turns_are_read_from_the_footer(config: Config) -> None:
    put_screened(config, "00001.parquet", prompts([["one"], ["one", "two", "three"], ["one", "two"]]))
    footer = shards.read_footer(open_folder(config.run_dir), "screen/00001.parquet")
    assert footer.num_turns == 6
    read = index.read(config, open_folder(config.run_dir), "screen", [NAME, "00001.parquet"])
    assert (read[NAME].num_turns, read["00001.parquet"].num_turns) == (41, 6)


@pytest.mark.parametrize("parts", [[(0, 4)], [(4, 8)], [(0, 2), (6, 8)], [(0, 8)], [(0, 4), (0, 2)]])
def test_what_is_missing_is_what_no_part_holds(parts: list[tuple[int, int]]) -> None:
    rows = [row for extent in sharing.missing(parts, 0, 8) for row in range(*extent)]
    assert rows == sorted(set(range(8)) - {row for extent in parts for row in range(*extent)})


def pieces(depth: int) -> list[str]:
    return [sharing.unit(NAME, *extent) for extent in sharing.halves(0, 41, depth)]


def whole(config: Config) -> bytes:
    """The shard as one worker makes it; it is taken away again."""
    store = open_folder(config.run_dir)
    assert asyncio.run(Worker(config, "generate", "transform", "a", 1).process(NAME)).outcome == "written"
    data = store.get(f"generate/{NAME}")
    for key in (f"generate/{NAME}", f"ledger/generate/{NAME}"):
        store.delete(key)
    return data


@pytest.mark.parametrize("group_bytes", [32 << 20, 4096], ids=["one row group", "many"])
def test_shared_shard_is_the_shard_of_one_worker_to_the_byte(
    config: Config, group_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", group_bytes)
    store, expected = open_folder(config.run_dir), whole(config)
    workers = [Worker(config, "generate", "transform", "b", 1) for _ in range(2)]
    step = Step("generate", 1, 82, 0.0)

    async def work() -> list[ShardResult]:
        made = []
        for worker, unit in zip(itertools.cycle(workers), reversed(pieces(2)), strict=False):
            made.append(await worker.process(unit))
            step.add_result(made[-1])
            assert step.rows_done == sum(worker._num_committed for worker in workers)
        return made

    results = asyncio.run(work())
    assert [result.outcome for result in results] == ["part"] * 3 + ["written"]
    assert [result.rows_in for result in results] == [22, 20, 20, 82]
    assert [result.unit for result in results] == pieces(2)[::-1]
    assert store.get(f"generate/{NAME}") == expected
    assert store.list(keys.parts("generate")) == {}
    assert store.list("state/attempts/b") == {}
    assert (step.shards_done, step.rows_done, step.tokens_done) == (1, 82, results[-1].num_target_tokens)
    assert step.in_pieces == {}


def test_last_pieces_that_end_together_give_one_shard(config: Config) -> None:
    expected, store = whole(config), open_folder(config.run_dir)
    workers = [Worker(config, "generate", "transform", "b", 1) for _ in range(4)]

    async def work() -> list[ShardResult]:
        return await asyncio.gather(*(w.process(unit) for w, unit in zip(workers, pieces(2), strict=True)))

    outcomes = [result.outcome for result in asyncio.run(work())]
    assert outcomes.count("written") == 1
    assert set(outcomes) == {"written", "part"}
    assert store.get(f"generate/{NAME}") == expected
    assert store.list(keys.parts("generate")) == {}


@pytest.mark.parametrize("again", [0, 1, 3])
def test_run_that_was_killed_goes_on_with_other_pieces(config: Config, again: int) -> None:
    expected, store = whole(config), open_folder(config.run_dir)
    first = Worker(config, "generate", "transform", "b", 1)
    for unit in (pieces(2)[1], pieces(3)[5]):
        assert asyncio.run(first.process(unit)).outcome == "part"
    second = Worker(config, "generate", "transform", "c", 1)
    transform: Any = second._transform
    asked = list[str]()

    async def counting(table: Any) -> Any:
        asked.extend(table.column("prompt_id").to_pylist())
        return await transform(table)

    second._transform = counting
    units = pieces(again) if again else [NAME]
    results = [asyncio.run(second.process(unit)) for unit in units]
    assert results[-1].outcome == "written"
    assert store.get(f"generate/{NAME}") == expected
    there = [row for unit in (pieces(2)[1], pieces(3)[5]) for row in range(*sharing.parsed(unit)[1] or ())]
    assert sorted(asked) == sorted(f"id-{row}" for row in set(range(41)) - set(there))


@pytest.mark.parametrize("unit", [pieces(1)[0], NAME])
def test_pieces_of_other_prompts_are_made_again(config: Config, unit: str) -> None:
    """The screened shard was damaged and made again, and is not what it was."""
    store = open_folder(config.run_dir)
    assert asyncio.run(Worker(config, "generate", "transform", "b", 1).process(pieces(1)[0])).outcome == "part"
    store.delete(f"screen/{NAME}")
    put_screened(config, NAME, numbered(list(range(100, 141))))
    apart = config.model_copy(update={"run_dir": f"{config.run_dir}-apart"})
    put_screened(apart, NAME, numbered(list(range(100, 141))))
    expected = whole(apart)
    other = Worker(config, "generate", "transform", "c", 1)
    if unit == NAME:
        assert asyncio.run(other.process(pieces(1)[1])).outcome == "redo"  # the last one finds a strange one
        assert asyncio.run(other.process(NAME)).outcome == "written"
    else:
        assert [asyncio.run(other.process(u)).outcome for u in pieces(1)] == ["part", "written"]
    assert store.get(f"generate/{NAME}") == expected


def test_row_that_fails_costs_one_row_of_a_shared_shard(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TEACHER_RAISES_ON", "id-17/")
    worker = Worker(config, "generate", "transform", "b", 1)
    results = [asyncio.run(worker.process(unit)) for unit in pieces(2)]
    assert [result.outcome for result in results] == ["part"] * 3 + ["written"]
    assert results[-1].dropped == {"teacher_failed": 2}
    assert open_folder(config.run_dir).list("state/attempts/b") == {}


def test_teacher_that_fails_on_everything_sets_a_shared_shard_aside(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TEACHER_RAISES_ON", "id-")
    worker = Worker(config, "generate", "transform", "b", 1)
    results = [asyncio.run(worker.process(unit)) for unit in pieces(1)]
    assert [result.outcome for result in results] == ["set_aside", "part"]
    assert open_folder(config.run_dir).list("generate") == {}


@pytest.mark.long
def test_workers_of_a_pool_share(config: Config) -> None:
    expected, store = whole(config), open_folder(config.run_dir)
    resources = config.resources.generate.model_copy(update={"num_cpus": 0.5, "max_workers": 2, "shards_in_flight": 1})
    config = config.model_copy(update={"resources": config.resources.model_copy(update={"generate": resources})})
    pool = LocalPool()
    try:
        job = Job(config, "generate", "transform", 1, is_async=True)
        results = [*pool.map_shards(job, pieces(2), lambda activity: None)]
    finally:
        pool.close()
    assert sorted(result.unit for result in results) == sorted(pieces(2))
    assert len({result.worker for result in results}) == 2
    assert store.get(f"generate/{NAME}") == expected


def test_files_of_others_are_no_parts() -> None:
    names = [
        "00001.0-8.parquet",
        "00001.8-9.failed",
        "00001.0-8.json",
        ".nfs0001",
        "notes.txt",
        "a.b.c",
        "00001.x-y.parquet",
    ]
    assert sharing.by_shard(names) == {"00001.parquet": [(0, 8), (8, 9)]}
