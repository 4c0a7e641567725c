"""One worker and its shards, without Ray: attempts, who is to blame, the contract of a stage."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import shards, worker
from pipeline.shards import ShardInfo, Store
from pipeline.worker import StageError, Worker, check_contract
from schemas import tables
from schemas.config import Config
from tests.conftest import ROOT
from tests.test_generate import prompts


@pytest.fixture
def config(raw_config: dict[str, Any]) -> Config:
    """A run whose screened shards exist: one prompt each."""
    config = Config.model_validate(raw_config)
    store = Store(config.run_dir)
    for number in range(3):
        name = shards.shard_name(number)
        table = prompts([[f"question {number}"]])
        table = table.set_column(0, "prompt_id", pa.array([f"id-{number}"]))
        store.put_if_absent(f"screen/{name}", shards.encode(table, ShardInfo("screen", name, "", 1, 1)))
    return config


def test_refused_row_costs_one_row(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TEACHER_REFUSES_OVER", "3")
    done = asyncio.run(Worker(config, "generate", "transform", "run", 3).process("00000.parquet"))
    assert (done.error, done.rows_out, done.dropped) == (None, 0, {"teacher_failed": 1})
    ledger = shards.read(Store(config.run_dir), "ledger/generate/00000.parquet").to_pylist()
    assert [(row["prompt_id"], row["sample_id"], row["reason"]) for row in ledger] == [
        ("id-0", "id-0/0", "teacher_failed")
    ]


def test_failing_shard_is_set_aside_after_its_attempts(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Worker(config, "generate", "transform", "run", 3)
    calls = 0

    async def fail(table: pa.Table) -> pa.Table:
        nonlocal calls
        calls += 1
        raise KeyError("a prompt's text")

    monkeypatch.setattr(generate, "_transform", fail)
    done = asyncio.run(generate.process("00001.parquet"))
    assert calls == config.resources.max_attempts == 3
    assert done.error is not None
    assert "KeyError at test_worker.py" in done.error
    assert "text" not in done.error
    assert Store(config.run_dir).list("state/set_aside/generate") == {"00001.json": len(done.error) + 13}


@pytest.mark.parametrize("way", ["DIES", "BREAKS"])
def test_dead_engine_ends_its_process_and_blames_its_shard(config: Config, way: str) -> None:
    code = f"""
import asyncio
from pipeline.worker import Worker
from schemas.config import Config
worker = Worker(Config.model_validate_json({config.model_dump_json()!r}), "generate", "transform", "run", 3)
async def all():
    return await asyncio.gather(*(worker.process(f"0000{{n}}.parquet") for n in range(3)))
print([bool(done.error) for done in asyncio.run(all())])
"""
    environment = {**os.environ, f"FAKE_TEACHER_{way}_ON": "id-1/", "FAKE_TEACHER_DELAY_S": "0.3"}
    outputs = []
    for _ in range(6):
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        outputs.append((result.returncode, result.stdout.strip()))
        if result.returncode == 0:
            break
    # Once beside the others, twice alone; then the others are done and it is set aside.
    assert outputs[-1] == (0, "[False, True, False]"), outputs
    assert [code for code, _ in outputs[:-1]] == [1, 1, 1]
    store = Store(config.run_dir)
    assert list(store.list("generate")) == ["00000.parquet", "00002.parquet"]
    assert list(store.list("state/set_aside/generate")) == ["00001.json"]


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
        {}["secret prompt"]
    assert worker.describe(caught.value).startswith("KeyError at test_worker.py:")
    assert worker.describe(StageError("ours")) == "ours"


def test_losing_a_race_discards_the_copy(config: Config) -> None:
    store = Store(config.run_dir)
    first = asyncio.run(Worker(config, "generate", "transform", "a", 3).process("00000.parquet"))
    data = store.get("generate/00000.parquet")
    other = config.model_copy(update={"sampling": config.sampling.model_copy(update={"seed": 5})})
    second = asyncio.run(Worker(other, "generate", "transform", "b", 3).process("00000.parquet"))
    assert store.get("generate/00000.parquet") == data
    assert (second.rows_out, second.num_target_tokens) == (first.rows_out, first.num_target_tokens)
    assert not [path for path in Path(config.run_dir).rglob(".*") if path.is_file()]
