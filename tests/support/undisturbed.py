"""An undisturbed run, and what a disturbed one must come to: the same bytes."""

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.schemas.config import Config, absolute
from tests.support.children import die_at, in_child
from tests.support.command import contents
from tests.support.data import make_raw_config
from tests.support.inline_pool import run_inline

ROWS = 60


def make_config(folder: Path) -> dict[str, Any]:
    raw = make_raw_config(folder)
    raw["source"]["limit"] = ROWS
    # Our kills are no fault of any shard: none is to be given up for them.
    raw["resources"] = {"max_attempts": 1000}
    return raw


def assert_nothing_lost_nothing_twice(run_dir: Path, undisturbed: Path) -> None:
    mine, theirs = contents(run_dir), contents(undisturbed)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if mine[key] != theirs[key]] == []
    rows = [
        row
        for file in [*run_dir.glob("dataset/data/*.parquet"), *run_dir.glob("ledger/*/*.parquet")]
        for row in pq.read_table(file, columns=["source_row"]).column(0).to_pylist()
    ]
    assert sorted(rows) == list(range(ROWS))


def run_and_die(config: Config, step: int) -> None:
    die_at(step)
    run_inline(config)


def killed_again_and_again(config: Config, undisturbed: Path, steps: Iterator[int]) -> int:
    """Runs, each going on from where the one before was killed, until one comes to its end. Returns the kills."""
    run_dir, num_kills = Path(config.run_dir), 0
    while (status := in_child(partial(run_and_die, config, next(steps)))) != 0:
        assert status == -signal.SIGKILL
        num_kills += 1
        for file in run_dir.rglob("*.parquet"):
            shards.read(open_folder(str(file.parent)), file.name)  # whole, or not there
    assert_nothing_lost_nothing_twice(run_dir, undisturbed)
    return num_kills


def undisturbed_run(folder: Path) -> Config:
    """A run that nothing disturbed; tests copy its folder."""
    config = absolute(Config.model_validate(make_config(folder)))
    run_inline(config)
    return config
