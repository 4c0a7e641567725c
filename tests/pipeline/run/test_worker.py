"""One worker and its shards, without Ray: attempts, who is to blame, the contract of a stage."""

import asyncio
import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stillhouse.pipeline.errors import StageError, safe_message
from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.quarantine import quarantine
from stillhouse.pipeline.folder.shard import ShardId
from stillhouse.pipeline.run.commit import check_contract
from stillhouse.pipeline.run.worker import Worker
from stillhouse.schemas import tables
from stillhouse.schemas.config import Config, config_hash
from stillhouse.stages.teacher import chat
from tests.support.children import in_child
from tests.support.prompts import numbered, prompts, put_screened


@pytest.fixture
def config(raw_config: dict[str, Any]) -> Config:
    """A run whose screened shards exist: one prompt each."""
    config = Config.model_validate(raw_config)
    for number in range(3):
        name = keys.shard_name(number)
        table = prompts([[f"question {number}"]])
        table = table.set_column(0, "prompt_id", pa.array([f"id-{number}"]))
        put_screened(config, name, numbered([number]))
    return config


def test_refused_row_costs_one_row(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TEACHER_REFUSES_OVER", "3")
    done = asyncio.run(Worker(config, "generate", "transform", "run", 3).process("00000.parquet"))
    assert (done.outcome, done.rows_out, done.dropped) == ("written", 0, {"teacher_failed": 1})
    ledger = shards.read(open_folder(config.run_dir), "ledger/generate/00000.parquet").to_pylist()
    assert [(row["prompt_id"], row["sample_id"], row["reason"]) for row in ledger] == [
        ("id-0", "id-0/0", "teacher_failed")
    ]


def test_answers_of_shards_that_are_done_are_not_told_twice(config: Config) -> None:
    """They are in the shard's result; `Activity.num_done` is about the shards under way."""
    generate = Worker(config, "generate", "transform", "run", 3)
    for name in ("00000.parquet", "00001.parquet"):
        assert asyncio.run(generate.process(name)).rows_in == 1
    activity = generate.activity("w")
    assert (activity.num_shards, activity.num_done, activity.num_under_way) == (0, 0, 0)
    assert activity.num_tokens > 0


def test_failing_shard_is_set_aside_after_its_attempts(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Worker(config, "generate", "transform", "run", 3)
    monkeypatch.setattr(Worker, "_splits", False)  # as any other stage
    calls = 0

    async def fail(table: pa.Table) -> pa.Table:
        nonlocal calls
        calls += 1
        raise KeyError("a prompt's text")

    monkeypatch.setattr(generate, "_transform", fail)
    done = asyncio.run(generate.process("00001.parquet"))
    assert calls == config.resources.max_attempts == done.attempts == 3
    assert done.outcome == "set_aside"
    assert "KeyError at test_worker.py" in done.message
    assert "text" not in done.message
    assert open_folder(config.run_dir).list("state/set_aside/generate") == {"00001.json": len(done.message) + 13}


def test_attempts_are_in_the_result(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Worker(config, "generate", "transform", "run", 3)
    transform: Any = generate._transform
    calls = Counter[str]()

    async def fail(table: pa.Table) -> pa.Table:
        for name in table.column("prompt_id").to_pylist():
            calls[name] += 1
            if calls[name] <= {"id-0": 0, "id-1": 1, "id-2": config.resources.max_attempts}[name]:
                raise KeyError
        return await transform(table)

    monkeypatch.setattr(generate, "_transform", fail)
    done = [asyncio.run(generate.process(f"0000{n}.parquet")) for n in range(3)]
    # The third is made in parts once its attempts as a shard are used up.
    assert [(result.outcome, result.attempts) for result in done] == [("written", 1), ("written", 2), ("written", 4)]


def generate_in_children(config: Config, names: list[str], max_deaths: int) -> list[int]:
    """Generates `names` as one driver does whose workers die: a new process each time. Returns the exit codes."""

    async def work() -> None:
        generate = Worker(config, "generate", "transform", "run", 3)
        await asyncio.gather(*(generate.process(name) for name in names))

    chat.load_chat(config)  # for all children: they are forks
    codes: list[int] = []
    while len(codes) <= max_deaths:
        codes.append(in_child(lambda: asyncio.run(work())))
        if codes[-1] == 0:
            break
    return codes


def failed_rows(config: Config) -> list[str]:
    store = open_folder(config.run_dir)
    ledgers = [shards.read(store, f"ledger/generate/{name}") for name in store.list("ledger/generate")]
    rows = pa.concat_tables(ledgers).to_pylist()
    assert {row["reason"] for row in rows} <= {"teacher_failed"}
    return sorted(row["sample_id"] for row in rows)


@pytest.mark.parametrize("way", ["DIES", "BREAKS", "HANGS"])
@pytest.mark.long
def test_row_that_ends_the_engine_costs_one_row(config: Config, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row id-104 of shard 3 (rows 100 to 109), with others under way beside it."""
    put_screened(config, "00003.parquet", numbered(list(range(100, 110))))
    monkeypatch.setenv(f"FAKE_TEACHER_{way}_ON", "id-104/")
    monkeypatch.setenv("FAKE_TEACHER_DELAY_S", "0.05")
    config = config.model_copy(
        update={
            "teacher": config.teacher.model_copy(update={"stall_timeout_s": 0.6}),
            "resources": config.resources.model_copy(update={"max_attempts": 2}),
        }
    )
    codes = generate_in_children(config, ["00000.parquet", "00003.parquet", "00001.parquet"], 20)
    # Twice as a shard; rows 0 to 4, 2 to 4, 3 to 4; twice as itself.
    assert codes == [1] * 7 + [0]
    store = open_folder(config.run_dir)
    assert list(store.list("generate")) == ["00000.parquet", "00001.parquet", "00003.parquet"]
    assert failed_rows(config) == ["id-104/0"]
    rest = [f"id-{n}/0" for n in range(100, 110) if n != 104]
    assert shards.read(store, "generate/00003.parquet").column("sample_id").to_pylist() == rest
    for folder in ("state/set_aside/generate", "state/parts/generate", "state/attempts/run"):
        assert store.list(folder) == {}


def test_shard_in_parts_is_the_shard_in_one_piece(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with several samples per prompt, and when a run was killed amid the parts."""
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"n": 2})})
    put_screened(config, "00007.parquet", numbered(list(range(20, 42))))
    whole = Worker(config, "generate", "transform", "a", 8)
    transform: Any = whole._transform

    def failing_on(*ids: str) -> Any:
        async def fail(table: pa.Table) -> pa.Table:
            if set(ids) & set(table.column("prompt_id").to_pylist()):
                raise KeyError
            return await transform(table)

        return fail

    expected = asyncio.run(transform(numbered(list(range(20, 42)))))
    monkeypatch.setattr(whole, "_transform", failing_on("id-23", "id-30"))
    puts = 0
    put_part = whole._parts._put

    def killed_at_the_third(*arguments: Any) -> None:
        nonlocal puts
        puts += 1
        if puts == 3:
            raise KeyboardInterrupt
        put_part(*arguments)

    monkeypatch.setattr(whole._parts, "_put", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(whole.process("00007.parquet"))
    store = open_folder(config.run_dir)
    kept = [name for name in store.list("state/parts/generate") if name.endswith(".parquet")]
    assert len(kept) == 2
    monkeypatch.undo()
    again = Worker(config, "generate", "transform", "b", 8)
    calls: list[int] = []

    async def counting(table: pa.Table) -> pa.Table:
        calls.append(table.num_rows)
        return await failing_on("id-30")(table)

    monkeypatch.setattr(again, "_transform", counting)
    done = asyncio.run(again.process("00007.parquet"))
    assert done.outcome == "written"
    assert done.dropped == {"teacher_failed": 4}  # the first run had given up id-23 already
    assert 22 not in calls  # what the first run had done was not done again
    assert failed_rows(config) == ["id-23/0", "id-23/1", "id-30/0", "id-30/1"]
    kept_rows = [i for i, row in enumerate(expected.column("prompt_id").to_pylist()) if row not in ("id-23", "id-30")]
    table = shards.read(store, "generate/00007.parquet")
    assert table.equals(expected.take(pa.array(kept_rows)).drop_columns(["drop_reason"]))
    assert store.list("state/parts/generate") == {}


@pytest.mark.parametrize(
    ("num_rows", "told"), [(20, "3 of its 20 rows, each alone"), (1000, "64 of parts of it")], ids=["small", "large"]
)
def test_teacher_that_fails_on_everything_sets_the_shard_aside(
    config: Config, num_rows: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_screened(config, "00008.parquet", numbered(list(range(num_rows))))
    generate = Worker(config, "generate", "transform", "run", 9)
    transform: Any = generate._transform
    calls = 0

    async def fail(table: pa.Table) -> pa.Table:
        nonlocal calls
        calls += table.num_rows > 0
        raise KeyError

    monkeypatch.setattr(generate, "_transform", fail)
    done = asyncio.run(generate.process("00008.parquet"))
    assert calls <= config.resources.max_attempts + 64
    assert done.outcome == "set_aside"
    assert done.message.startswith(f"generate 00008.parquet: set aside after 3 attempts and {told}; last: KeyError at ")
    store = open_folder(config.run_dir)
    assert list(store.list("state/set_aside/generate")) == ["00008.json"]
    assert store.list("generate") == {}
    # Nothing that a sick teacher said of single rows outlives it.
    monkeypatch.setattr(generate, "_transform", transform)
    store.delete("state/set_aside/generate/00008.json")
    monkeypatch.setattr(generate._attempts, "_marks", "state/attempts/next")
    done = asyncio.run(generate.process("00008.parquet"))
    assert (done.dropped, done.rows_out) == ({}, num_rows)


def test_worker_that_dies_whenever_it_starts_is_not_started_for_ever(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        Worker(config, "generate", "transform", "run", 3)

    chat.load_chat(config)
    monkeypatch.setenv("FAKE_TEACHER_FAILS_TO_START", "dies")
    deaths = 0
    while in_child(start) == 1:
        deaths += 1
        assert deaths <= 4
    assert deaths == config.resources.max_attempts + 1
    with pytest.raises(StageError, match=r"generate: its workers died 4 times in a row while starting; see Ray's logs"):
        start()
    monkeypatch.delenv("FAKE_TEACHER_FAILS_TO_START")
    Worker(config, "generate", "transform", "next", 3)
    assert open_folder(config.run_dir).list("state/attempts/next") == {}


def test_contract() -> None:
    before = pa.table({"prompt_id": ["a", "b"], "source_row": [1, 2]})
    after = before.append_column(tables.DROP_REASON, pa.nulls(2, pa.string()))
    check_contract("screen", before, after, 1)
    for broken in (
        before,
        after.slice(0, 1),
        after.take([1, 0]),
        after.drop_columns(["source_row"]),
        after.set_column(1, "source_row", pa.array([1, 3])),
    ):
        with pytest.raises(StageError, match="screen"):
            check_contract("screen", before, broken, 1)
    check_contract("generate", before, after.take([0, 0, 1, 1]), 2)
    with pytest.raises(StageError):
        check_contract("generate", before, after.take([0, 1, 0, 1]), 2)


def test_an_error_is_described_without_its_text() -> None:
    with pytest.raises(KeyError) as caught:
        dict[str, int]()["secret prompt"]
    assert safe_message(caught.value).startswith("KeyError at test_worker.py:")
    assert safe_message(StageError("ours")) == "ours"


def test_losing_a_race_discards_the_copy(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_folder(config.run_dir)
    first = asyncio.run(Worker(config, "generate", "transform", "a", 3).process("00000.parquet"))
    data = store.get("generate/00000.parquet")
    late = Worker(config, "generate", "transform", "b", 3)
    transform: Any = late._transform
    calls = 0

    async def otherwise(table: pa.Table) -> pa.Table:
        nonlocal calls
        calls += 1
        return await transform(table.set_column(1, "user_turns", [["another question"]] * table.num_rows))

    monkeypatch.setattr(late, "_transform", otherwise)
    second = asyncio.run(late.process("00000.parquet"))
    assert (calls, second.outcome) == (0, "others")  # seen before any work
    monkeypatch.setattr(late, "_existing", lambda *_: None)
    second = asyncio.run(late.process("00000.parquet"))
    assert (calls, second.outcome) == (1, "others")  # seen at the commit
    assert store.get("generate/00000.parquet") == data
    assert (second.rows_out, second.num_target_tokens) == (first.rows_out, first.num_target_tokens)
    assert first.outcome == "written"
    assert store.list("state/staged") == {}


def test_full_disk_is_told_and_no_shard_is_blamed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Worker(config, "generate", "transform", "run", 3)
    synced = os.fsync

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 0 and not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    done = asyncio.run(generate.process("00000.parquet"))
    assert done.outcome == "fatal"
    assert done.message == (
        f"{config.run_dir}/generate/00000.parquet: cannot be written (No space left on device); "
        "check disk and permissions, then run again"
    )
    monkeypatch.undo()
    files = [path for path in Path(config.run_dir).rglob("*") if path.is_file()]
    assert sorted(path.parent.name for path in files) == ["screen"] * 3  # no part of a shard, no mark of an attempt
    assert asyncio.run(generate.process("00000.parquet")).outcome == "written"


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "of another stage", "gone"])
def test_damaged_input_is_put_away_and_no_shard_is_blamed(config: Config, damage: str) -> None:
    store = open_folder(config.run_dir)
    generate = Worker(config, "generate", "transform", "run", 3)
    file = Path(config.run_dir, "screen/00001.parquet")
    data = file.read_bytes()
    store.put("ledger/screen/00001.parquet", b"made from the damaged one, for all we know")
    file.write_bytes(
        {
            "cut": data[:-100],
            "flipped": data[:300] + bytes([data[300] ^ 4]) + data[301:],
            "foreign": b"hello",
            "of another stage": store.get("screen/00002.parquet"),
            "gone": b"",
        }[damage]
    )
    if damage == "gone":
        file.unlink()
    done = asyncio.run(generate.process("00001.parquet"))
    assert done.outcome == "redo"
    assert str(file) in done.message
    assert done.damaged == ("screen/00001.parquet",)
    assert not file.exists()
    assert store.list("state/attempts/run") == store.list("state/set_aside/generate") == store.list("generate") == {}
    if damage != "gone":
        (kept,) = store.list("state/damaged/screen")
        assert kept.startswith("00001.parquet.")
        assert kept in done.message
        assert store.list("ledger/screen") == {}


def test_put_away_leaves_what_another_run_has_made_again(config: Config) -> None:
    store = open_folder(config.run_dir)
    expected = ShardId("screen", "00001.parquet", config_hash(config))
    assert quarantine(store, "screen/00001.parquet", expected) == "another run has made it again"
    assert "00001.parquet" in store.list("screen")
