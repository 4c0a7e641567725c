"""A source read by several processes: the same bytes as by one, whatever is in it and wherever it is cut."""

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.errors import StageError
from stillhouse.pipeline.folder.identity import open_run
from stillhouse.pipeline.in_order import in_processes
from stillhouse.pipeline.run import partition
from stillhouse.pipeline.run.partition import ingest
from stillhouse.pipeline.run.result import ShardResult
from stillhouse.schemas.config import Config, absolute
from stillhouse.stages.personal import PERSONAL
from stillhouse.stages.sources import SourceError, pieces
from stillhouse.stages.sources.files import File
from tests.support.command import contents
from tests.support.data import make_raw_config
from tests.support.source_files import parquet

NUM_ROWS = 60


def row(file: str, i: int) -> dict[str, Any]:
    """Ids restart in each file, or are missing; a fifth are the same in each file; some are too long or hold mail."""
    text = f"Question {i} of {'all' if i % 5 == 0 else file}: {'why ' * (500 if i == 7 else 3)}?"
    text += f" Mail person{i}@web.de" if i % 4 == 0 else ""
    answer = {"role": "assistant", "content": "Because."}
    return {"id": None if i % 3 == 0 else str(i), "messages": [{"role": "user", "content": text}, answer]}


def lines(file: str) -> bytes:
    rows = [json.dumps(row(file, i)) for i in range(NUM_ROWS)]
    rows[11] = rows[11].replace('"role"', "role", 1)
    return "\n".join(rows).encode()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "a.jsonl").write_bytes(lines("a"))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines("b")))
    (folder / "c.parquet").write_bytes(parquet([row("c", i) for i in range(NUM_ROWS)], row_group_size=7))
    (folder / "d.jsonl").write_bytes(lines("d"))
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of some ten rows, so that limits of the source are far from its beginning."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 400)
    monkeypatch.setattr(partition, "MIN_ROWS_APART", 1)


Change = Callable[[dict[str, Any]], Any]


def masked(raw: dict[str, Any]) -> None:
    raw["personal"] = {}


def limited(raw: dict[str, Any]) -> None:
    raw["source"]["limit"] = 2 * NUM_ROWS + 33
    raw["ingest"]["rows_per_shard"] = 100


def drawn(raw: dict[str, Any]) -> None:
    raw["source"]["sample"] = 50


def scored(raw: dict[str, Any]) -> None:
    raw["task"] = "score"
    del raw["sampling"]


def made(config: Config, in_order: Any) -> tuple[dict[str, bytes], list[ShardResult]]:
    open_run(config)
    results = list(ingest(config, in_order=in_order))
    found = contents(Path(config.run_dir))
    return {key: found[key] for key in found if not key.startswith("run.json")}, results


def sent(function: Any, arguments: Any, workers: Any, attempts: int) -> Any:
    """Calls in this process, of what another would get."""
    for given in arguments:
        yield pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(given)))))


@pytest.mark.parametrize(
    ("change", "in_order"),
    [pytest.param(masked, in_processes, marks=pytest.mark.long), (limited, sent), (drawn, sent), (scored, sent)],
)
def test_the_bytes_are_those_of_one_process(
    change: Change, in_order: Any, source: Path, weights: Path, tmp_path: Path
) -> None:
    def configured(name: str) -> Config:
        raw = make_raw_config(tmp_path) | {"run_dir": str(tmp_path / "run" / name)}
        raw["source"] = {"path": str(source), "name": "files"}
        raw["resources"] = {"ingest": {"max_workers": 2, "num_cpus": 0.1}}
        change(raw)
        return absolute(Config.model_validate(raw))

    by_one, _ = made(configured("one"), None)
    num_calls = 0

    def counted(function: Any, arguments: Any, **others: Any) -> Any:
        nonlocal num_calls
        for result in in_order(function, arguments, **others):
            num_calls += 1
            yield result

    apart, results = made(configured("apart"), counted)
    assert apart == by_one
    assert len(by_one) > 3
    assert num_calls > (-1 if change is drawn else 5)
    if change is masked:
        dropped = {reason for result in results for reason in result.dropped}
        assert dropped == {"duplicate_id", "too_long", "invalid_json"}
        assert results[0].filter_seconds[PERSONAL] > 0  # spent elsewhere
        assert not any(b"@web.de" in data for data in apart.values())


def test_what_a_reader_cannot_hold_is_read_by_who_gives_ids(
    source: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(most: int) -> tuple[dict[str, bytes], list[Any]]:
        monkeypatch.setattr(partition, "MAX_JUDGED_BYTES", most)
        raw = make_raw_config(tmp_path) | {"run_dir": str(tmp_path / "run" / str(most)), "personal": {}}
        raw["source"] = {"path": str(source), "name": "files"}
        config, results = Config.model_validate(raw), []

        def kept(*given: Any, **others: Any) -> Any:
            for result in sent(*given, **others):
                results.append(result)
                yield result

        open_run(config)
        list(ingest(config, in_order=kept))
        return contents(Path(config.run_dir)), results

    whole, results = made(10**9)
    assert all(result.is_whole for result in results)
    parts, results = made(1)
    assert all(sum(map(len, result.tables)) <= 10 for result in results)
    assert not all(result.is_whole for result in results)
    assert parts == whole


def test_a_file_that_cannot_be_read_ends_ingest_in_its_turn(source: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.jsonl").write_bytes(lines("a"))
    (tmp_path / "source/b.jsonl").write_bytes(b"<html>")
    raw = make_raw_config(tmp_path)
    raw["source"] = {"path": str(tmp_path / "source")}
    config = Config.model_validate(raw)
    open_run(config)
    made: list[ShardResult] = []
    with pytest.raises(SourceError, match=r"b\.jsonl: is HTML or XML"):
        made.extend(ingest(config, in_order=sent))
    assert len(made) <= NUM_ROWS // 10
    # What was made of it before is there, and says so when the source has become another.
    (tmp_path / "source/a.jsonl").write_bytes(lines("z"))
    with pytest.raises(StageError, match="the source changed since this run began"):
        list(ingest(config, in_order=sent))


def test_a_small_source_or_limit_starts_no_process(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def num_readers(**keys: Any) -> int:
        raw = make_raw_config(source) | {"resources": {"ingest": {"max_workers": 4}}}
        raw["source"] = {"path": str(source), **keys}
        return partition._pieces(Config.model_validate(raw))[1]

    assert num_readers() == 4
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4000)  # of four files the first two have less than twice as much
    assert num_readers() == 4
    monkeypatch.setattr(partition, "MIN_ROWS_APART", 1000)
    assert num_readers(limit=1000) == 4
    assert num_readers(limit=999) == num_readers(sample=2000) == 1
    hub = {"path": None, "dataset": "org/chats", "revision": "main"}
    monkeypatch.setattr(
        pieces, "files_of", lambda source: [File(name, pytest.fail) for name in ("a.parquet", "b.parquet")]
    )
    assert num_readers(**hub) == 2  # of unknown size
    assert num_readers(**hub, limit=1000) == 1
    monkeypatch.undo()
    assert num_readers() == 1  # four small files
