"""Whole runs on this machine, with the tests' own teacher: nothing lost, nothing twice, resumed, refused, set aside."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.pipeline.errors import StageError
from stillhouse.pipeline.run.partition import ingest
from stillhouse.schemas.config import Config
from tests.support.command import Command, contents, copy_of, read, without_answers
from tests.support.data import CONVERSATIONS

STAGES = ("ingest", "dedupe", "screen", "generate", "review")


def test_every_source_row_is_published_or_in_the_ledger_once(finished: Command) -> None:
    published = read(finished.run_dir / "dataset/data")
    ledger = pa.concat_tables([read(folder) for folder in sorted((finished.run_dir / "ledger").iterdir())])
    assert ledger.num_rows
    assert published.num_rows
    # Before generate a row is a prompt, after it two samples.
    early = ledger.filter(pc.is_null(ledger.column("sample_id"))).column("source_row").to_pylist()
    late = ledger.filter(pc.is_valid(ledger.column("sample_id"))).column("source_row").to_pylist()
    samples = sorted(late + published.column("source_row").to_pylist())
    assert samples == sorted(samples[::2] * 2)
    assert sorted(early + samples[::2]) == list(range(60))
    assert len(set(published.column("sample_id").to_pylist())) == published.num_rows
    assert set(ledger.column("reason").to_pylist()) >= {"starts_with_assistant", "too_long"}


def test_stages_are_file_for_file_and_add_columns_only(finished: Command) -> None:
    names = [path.name for path in sorted((finished.run_dir / "ingest").glob("*.parquet"))]
    assert names == [f"{n:05d}.parquet" for n in range(6)]
    for before, after in itertools.pairwise(STAGES):
        for name in names:
            old = pq.read_table(finished.run_dir / before / name)
            new = pq.read_table(finished.run_dir / after / name)
            if after != "generate":
                assert new.column_names[: old.num_columns] == old.column_names or after == "review"
                assert set(old.column_names) <= set(new.column_names)
            assert set(new.column("source_row").to_pylist()) <= set(old.column("source_row").to_pylist())
    assert [p.name for p in sorted((finished.run_dir / "dataset/data").iterdir())] == [
        f"train-{n:05d}-of-00006.parquet" for n in range(6)
    ]


def test_source_answers_never_pass_ingest(finished: Command) -> None:
    conversations = pq.read_table(CONVERSATIONS, columns=["conversation"]).column(0)[:60].to_pylist()
    answers = {
        m["content"]
        for messages in conversations
        for m in messages
        if m["role"] == "assistant" and len(m["content"]) > 80
    }
    assert len(answers) > 50
    everything = b"".join(contents(finished.run_dir).values())
    texts = " ".join(read(finished.run_dir / "ingest").column("user_turns").combine_chunks().flatten().to_pylist())
    for answer in answers:
        assert answer not in texts
        assert answer.encode() not in everything
    for messages in read(finished.run_dir / "dataset/data").column("messages").to_pylist():
        assert not {m["content"] for m in messages} & answers


def test_manifest_tells_the_truth(finished: Command) -> None:
    import hashlib

    dataset = finished.run_dir / "dataset"
    manifest = json.loads((dataset / "manifest.json").read_text())
    table = read(dataset / "data")
    assert manifest["rows"] == table.num_rows
    assert manifest["target_tokens"] == pc.sum(table.column("num_target_tokens")).as_py()
    for file in manifest["files"]:
        data = (dataset / file["file"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    for stage, counts in manifest["stages"].items():
        assert counts["rows_in"] - sum(counts["dropped"].values()) == counts["rows_out"]
        assert counts["rows_out"] == read(finished.run_dir / stage).num_rows
    assert manifest["stages"]["ingest"]["rows_in"] == 60
    assert manifest["teacher"]["vocab_size"] == 49152
    assert manifest["targets"] == {
        "method": "top_k", "top_k": 8, "top_p": 1.0, "precision": 0.0, "alignment": "own-token",
        "logprobs": "log-softmax over the whole vocabulary at temperature 1, before sampling settings",
    }  # fmt: skip
    assert manifest["fidelity"]["tokens"] == manifest["target_tokens"]
    assert manifest["fidelity"]["top_k"]["targets_per_token"] == 8
    card = (dataset / "README.md").read_text()
    assert "| mass outside the top K |" in card
    assert yaml.safe_load(card.split("---")[1])["task_categories"] == ["text-generation"]


def test_datasets_reads_the_published_folder(finished: Command, tmp_path: Path) -> None:
    import datasets

    folder = finished.run_dir / "dataset"
    for arguments in (
        {"path": "parquet", "data_files": str(folder / "data/*.parquet")},
        {"path": str(folder)},
    ):
        loaded = datasets.load_dataset(**arguments, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.num_rows == read(folder / "data").num_rows
        assert set(loaded[0]) >= {"input_ids", "labels", "target_ids", "target_logprobs", "messages"}


def test_the_next_run_does_not_load_as_this_one(finished: Command, tmp_path: Path) -> None:
    """Every run publishes a folder called `dataset`. Where its card lists data_files, `datasets` 5.2 caches by that
    name alone, and hands out the rows of whichever it has seen first."""
    import datasets

    def num_rows(folder: Path) -> int:
        return int(datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")).num_rows)

    folder = tmp_path / "another/dataset"
    shutil.copytree(finished.run_dir / "dataset", folder)
    (folder / "data/train-00000-of-00006.parquet").unlink()
    assert num_rows(finished.run_dir / "dataset") == read(finished.run_dir / "dataset/data").num_rows
    assert num_rows(folder) == read(folder / "data").num_rows < num_rows(finished.run_dir / "dataset")


def test_finished_run_does_nothing_again(finished: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("*")}
    manifest, err = finished("run")
    assert "nothing was missing" in err
    assert {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("*")} == before
    status, _ = finished("status")
    assert status["state"] == "finished"
    assert status["stages"]["generate"] == {"done": 6, "of": 6}
    assert status["rows"] == manifest["rows"]


def test_other_configuration_on_the_same_folder_is_refused_with_its_keys(finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path)
    _, err = command("run", "--set", "sampling.seed=9", "--set", "targets.top_k=4", expect=2)
    assert "sampling.seed, targets.top_k" in err
    command("run", "--set", "resources.generate.max_workers=5")


def test_changed_source_under_an_unfinished_ingest_is_refused(raw_config: dict[str, Any], tmp_path: Path) -> None:
    lines = [{"messages": [{"role": "user", "content": f"question number {n}"}]} for n in range(30)]
    source = tmp_path / "source.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    raw_config["source"] = {"path": str(source)}
    config = Config.model_validate(raw_config)

    def count(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    assert [done.rows_out for done in ingest(config, count)] == [10, 10, 10]
    assert [done.rows_out for done in ingest(config, count)] == [10, 10, 10]
    lines[15]["messages"][0]["content"] = "changed"
    source.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(StageError, match=r"00001\.parquet: differs from what the source gives now"):
        list(ingest(config, count))


def test_a_source_with_more_or_fewer_shards_is_refused(raw_config: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    raw_config["source"] = {"path": str(source)}
    config = Config.model_validate(raw_config)
    partition = Path(config.run_dir) / "state/partition.json"

    def ingest_rows(num_rows: int) -> int:
        lines = [{"messages": [{"role": "user", "content": f"question number {n}"}]} for n in range(num_rows)]
        source.write_text("\n".join(map(json.dumps, lines)))
        return len(list(ingest(config, lambda texts: [len(text) for text in texts])))

    assert ingest_rows(30) == 3
    partition.unlink()  # as if the driver had been killed before
    with pytest.raises(StageError, match=r"ingest/00002\.parquet: the source gives another number of shards now"):
        ingest_rows(20)
    assert not partition.exists()
    assert ingest_rows(30) == 3
    (Path(config.run_dir) / "ingest/00002.parquet").unlink()
    for num_rows, name in ((20, "00002"), (40, "00003")):
        with pytest.raises(StageError, match=rf"ingest/{name}\.parquet: the source gives another number of shards now"):
            ingest_rows(num_rows)
    assert ingest_rows(30) == 3
    assert len(list((Path(config.run_dir) / "ingest").iterdir())) == 3


@pytest.mark.long
def test_dropping_more_than_the_budget_fails_and_says_why(command: Command) -> None:
    _, err = command("run", "--set", "ingest.max_dropped_fraction=0.1", expect=1)
    assert "ingest: dropped" in err
    assert "starts_with_assistant" in err
    assert "ingest.max_dropped_fraction 0.1" in err


@pytest.mark.long
def test_row_that_kills_its_worker_costs_one_row(finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path, resources={"generate": {"shards_in_flight": 3}, "max_attempts": 1})
    undisturbed = read(command.run_dir / "generate")
    without_answers(command)
    victim = pq.read_table(command.run_dir / "screen/00003.parquet").column("prompt_id")[0].as_py()
    # Others are under way when it dies, and are not to be blamed.
    manifest, err = command("run", "--verbose", FAKE_TEACHER_DIES_ON=victim, FAKE_TEACHER_DELAY_S="0.1")
    assert manifest["set_aside"] == []
    assert manifest["stages"]["generate"]["dropped"] == {"teacher_failed": 2}  # two samples of one prompt
    lost = read(command.run_dir / "ledger/generate")
    assert lost.column("prompt_id").to_pylist() == [victim] * 2
    kept = undisturbed.filter(pc.not_equal(undisturbed.column("prompt_id"), victim))
    assert read(command.run_dir / "generate").equals(kept)
    # Even where workers die and all is logged, no prompt's text is.
    texts = read(command.run_dir / "screen").column("user_turns").combine_chunks().flatten().to_pylist()
    assert not [text for text in texts if len(text) > 20 and text[:60] in err]


@pytest.mark.long
def test_failing_shard_is_set_aside_and_can_be_tried_again(finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path)
    undisturbed = contents(command.run_dir)
    without_answers(command)
    victims = pq.read_table(command.run_dir / "screen/00003.parquet").column("prompt_id").to_pylist()
    manifest, _ = command("run", expect=3, FAKE_TEACHER_RAISES_ON=",".join(victims))
    assert len(manifest["files"]) == 5
    (line,) = manifest["set_aside"]
    assert line.startswith("generate 00003.parquet: set aside after 3 attempts and 2 of its ")
    status, err = command("status", expect=3)
    assert status["set_aside"] == manifest["set_aside"]
    assert line in err
    manifest, _ = command("run", "--retry-set-aside")
    assert manifest["set_aside"] == []
    assert contents(command.run_dir) == undisturbed


@pytest.mark.long
def test_teacher_that_cannot_start_fails_the_run_at_once(finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path)
    without_answers(command)
    _, err = command("run", expect=1, FAKE_TEACHER_FAILS_TO_START="1")
    # Ray's own processes may say something after us.
    assert "\nstillhouse: teacher: no such weights (--verbose shows where)\n" in "\n" + err
    assert "Traceback" not in err
    assert not (command.run_dir / "state/set_aside").exists()


@pytest.mark.long
def test_full_disk_fails_the_run_with_one_sentence_and_blames_no_shard(finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path)
    without_answers(command)
    _, err = command("run", expect=1, FAKE_TEACHER_DISK_FULL="1")
    (line,) = [line for line in err.splitlines() if line.startswith("stillhouse:")]
    assert "/generate/0000" in line
    assert "cannot be written (No space left on device); check disk and permissions, then run again" in line
    assert not (command.run_dir / "state/set_aside").exists()
    assert not list((command.run_dir / "state/staged").iterdir())


def test_check_estimates_without_writing(command: Command) -> None:
    result, _ = command("check", "--rows", "40", "--set", "source.limit=null")
    assert result["rows_looked_at"] == 40
    assert result["source_rows"] == 17671
    assert result["rows_accepted"] + sum(result["refused"].values()) == 40
    estimate = result["estimate"]
    assert estimate["prompts"] == round(17671 * result["rows_accepted"] / 40)
    assert estimate["max_answer_tokens"] == estimate["prompts"] * 24
    assert not command.run_dir.exists()
