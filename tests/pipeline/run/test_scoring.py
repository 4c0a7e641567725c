"""A run that scores, from a source with answers to exports, and again from what another run wrote."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.pipeline.cli import main
from stillhouse.pipeline.dataset.export import default_output, export
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.dataset.withhold import withhold
from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.look import check
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.trail import trail
from stillhouse.schemas.config import Config, ConfigError
from tests.support.command import Command, contents, read
from tests.support.data import CONVERSATIONS
from tests.support.inline_pool import run_inline
from tests.support.s3 import bucket
from tests.support.scoring import make_raw_score_config

__all__ = ["bucket"]

Raw = dict[str, Any]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Raw, dict[str, Any]]:
    """A finished run over real conversations, all their answers."""
    raw = make_raw_score_config(tmp_path_factory.mktemp("scored"))
    raw["ingest"]["turns"] = "all"
    raw["targets"] = {"method": "both", "top_k": 8, "num_draws": 8}
    raw["score"]["cut_long"] = True
    raw["source"]["limit"] = 30
    manifest, _ = run_inline(Config.model_validate(raw))
    return raw, manifest


def test_answers_are_the_sources(scored: tuple[Raw, dict[str, Any]]) -> None:
    raw, manifest = scored
    table = read(Path(raw["run_dir"]) / "dataset/data")
    assert table.num_rows == manifest["rows"] > 10
    assert list(manifest["stages"]) == ["ingest", "dedupe", "screen", "score", "review"]
    source = pq.read_table(CONVERSATIONS).slice(0, 30).to_pylist()
    turns = 0
    for row in table.to_pylist():
        given = source[row["source_row"]]["conversation"]
        for said, message in zip(row["messages"], given, strict=False):
            if row["finish_reasons"][-1] == "given" or said is not row["messages"][-1]:
                assert said["content"] == message["content"]
            else:
                assert message["content"].startswith(said["content"].rstrip("\ufffd"))
        turns += len(row["finish_reasons"])
    assert turns > table.num_rows
    assert {reason for row in table["finish_reasons"].to_pylist() for reason in row} == {"given", "length"}


def test_the_dataset_and_its_exports_are_what_they_say(scored: tuple[Raw, dict[str, Any]], tmp_path: Path) -> None:
    raw, _ = scored
    found = verify(raw["run_dir"], num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
    for layout in ("axolotl", "openai"):
        output = default_output(raw["run_dir"], layout)
        export(raw["run_dir"], layout, output, num_workers=1)
        assert verify(output, num_workers=1)["problems"] == []
        alone = tmp_path / layout
        Path(output).rename(alone)
        assert verify(str(alone), num_workers=1)["problems"] == []
    with pytest.raises(ConfigError, match="like its prompts"):
        withhold(raw["run_dir"], str(tmp_path / "no-prompts"))


def test_a_conversation_is_found_in_every_stage(scored: tuple[Raw, dict[str, Any]]) -> None:
    place = open_place(scored[0]["run_dir"])
    prompt_id = read(Path(scored[0]["run_dir"]) / "dataset/data")["prompt_id"][0].as_py()
    stages = ["ingest", "dedupe", "screen", "score", "review", "publish"]
    assert [(entry["stage"], entry["status"]) for entry in trail(place, prompt_id)] == [(s, "kept") for s in stages]


def test_nothing_is_made_twice(scored: tuple[Raw, dict[str, Any]]) -> None:
    raw, _ = scored
    before = contents(Path(raw["run_dir"]))
    run_inline(Config.model_validate(raw))
    assert contents(Path(raw["run_dir"])) == before
    for made in ("score/00001", "review/00001", "dataset/data/train-00001-of-00003"):
        (Path(raw["run_dir"]) / f"{made}.parquet").unlink()
    run_inline(Config.model_validate(raw))
    assert contents(Path(raw["run_dir"])) == before


def test_a_run_folder_of_another_task_is_refused(scored: tuple[Raw, dict[str, Any]]) -> None:
    raw = {key: value for key, value in scored[0].items() if key not in ("task", "score")}
    with pytest.raises(ConfigError, match="task"):
        run_inline(Config.model_validate(raw | {"sampling": {"max_tokens": 8}}))


def of_dataset(folder: Path, source: str, **score: Any) -> Raw:
    raw = make_raw_score_config(folder, ids="source", **score)
    raw["source"] = {"path": source}
    raw["ingest"]["turns"] = "all"
    raw["dedupe"] = {"threshold": 1.0}
    return raw


def test_ids_of_a_dataset_are_scored_as_they_are(finished: Command, tmp_path: Path) -> None:
    """Two samples of each prompt, of several turns: what generate wrote, token for token."""
    source = finished.run_dir / "dataset"
    for path in (str(source), f"{source}/data/*.parquet"):
        raw = of_dataset(tmp_path / path.rpartition("/")[2], path)
        raw["source"]["limit"] = 30
        run_inline(Config.model_validate(raw))
        table = read(Path(raw["run_dir"]) / "dataset/data")
        wanted = {
            json.dumps([row["input_ids"], row["labels"], row["messages"]]) for row in read(source / "data").to_pylist()
        }
        got = {json.dumps([row["input_ids"], row["labels"], row["messages"]]) for row in table.to_pylist()}
        assert got <= wanted
        assert len(got) > 20
        found = verify(raw["run_dir"], num_workers=1)
        assert found["problems"] == []
        assert "the ids are the source's own" in found["not_checked"][0]


def test_ids_need_their_tokenizer(finished: Command, tmp_path: Path) -> None:
    source, loose = str(finished.run_dir / "dataset"), tmp_path / "loose.parquet"
    pq.write_table(read(finished.run_dir / "dataset/data"), loose)
    with pytest.raises(ConfigError, match="would name the tokenizer"):
        run_inline(Config.model_validate(of_dataset(tmp_path, str(loose))))
    with pytest.raises(ConfigError, match="ids are those of the tokenizer ffffffffffff, and the teacher"):
        run_inline(Config.model_validate(of_dataset(tmp_path, source, tokenizer_sha256="f" * 64)))
    manifest = json.loads((finished.run_dir / "dataset/manifest.json").read_text())
    digest = manifest["teacher"]["tokenizer_sha256"]
    for said in (digest, "teacher"):
        raw = of_dataset(tmp_path / said[:7], str(loose), tokenizer_sha256=said)
        assert run_inline(Config.model_validate(raw))[0]["rows"] > 0


def test_only_the_last_answer(tmp_path: Path, weights: Path) -> None:
    raw = make_raw_score_config(tmp_path, answers="last")
    raw["source"]["limit"] = 20
    raw["ingest"]["turns"] = "all"
    run_inline(Config.model_validate(raw))
    found = verify(raw["run_dir"], num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
    rows = read(Path(raw["run_dir"]) / "dataset/data").to_pylist()
    several = [row for row in rows if len(row["finish_reasons"]) > 1]
    assert several
    for row in several:
        runs = np.diff(np.array([-100, *row["labels"]]) != -100)
        assert runs.sum() == 1


def test_check_counts_the_tokens_of_answers(scored: tuple[Raw, dict[str, Any]], tokenizer: Any) -> None:
    raw = {**scored[0], "source": {"path": str(CONVERSATIONS), "limit": 20}}
    raw["run_dir"] += "-other"
    found = check.check(Config.model_validate(raw), 20, 1000.0)
    source = pq.read_table(CONVERSATIONS).slice(0, 20).to_pylist()
    every = [m["content"] for row in source for m in row["conversation"] if m["role"] == "assistant"]
    most = sum(len(tokenizer.encode(text)) + 1 for text in every)
    assert 0.3 * most < found["estimate"]["max_answer_tokens"] <= most
    assert found["problems"] == []


def test_more_ids_come_out_with_their_log_probabilities(finished: Command, tmp_path: Path) -> None:
    table = read(finished.run_dir / "dataset/data").slice(0, 12)
    counts = table["num_target_tokens"].to_pylist()
    asked = [[[row + token, 100 + token] for token in range(count)] for row, count in enumerate(counts)]
    source = tmp_path / "asked.parquet"
    pq.write_table(table.append_column("mine", pa.array(asked)), source)
    raw = of_dataset(tmp_path, str(source), tokenizer_sha256="teacher", asked_ids="mine")
    run_inline(Config.model_validate(raw))
    found = read(Path(raw["run_dir"]) / "dataset/data")
    assert found.num_rows > 6
    for row in found.to_pylist():
        wanted = [number for pair in asked[row["source_row"]] for number in pair]
        assert row["asked_ids"] == wanted
        assert row["asked_logprobs"] == [-1 - number % 7 for number in wanted]
    assert verify(raw["run_dir"], num_workers=1)["problems"] == []


def test_a_students_samples_and_its_own_log_probabilities(finished: Command, tmp_path: Path) -> None:
    """Two runs, the first by the student: the second holds each of its tokens, log-probabilities and most probable
    ids."""
    source = finished.run_dir / "dataset"
    raw = of_dataset(tmp_path, str(source), student_logprobs="token_logprobs", asked_ids="target_ids")
    manifest, _ = run_inline(Config.model_validate(raw))
    own = ("input_ids", "labels", "token_logprobs", "target_ids")
    names = ("input_ids", "labels", "student_logprobs", "asked_ids")
    wanted = {json.dumps([row[name] for name in own]) for row in read(source / "data").to_pylist()}
    table = read(Path(raw["run_dir"]) / "dataset/data")
    got = {json.dumps([row[name] for name in names]) for row in table.to_pylist()}
    assert got == wanted
    assert manifest["rows"] == table.num_rows == len(wanted) > 40
    assert verify(raw["run_dir"], num_workers=1)["problems"] == []


def test_a_trial_of_writing_is_refused(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(make_raw_score_config(tmp_path)))
    assert main(["check", str(file), "--probe"]) == 2
    assert "with task: score it writes nothing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_a_dataset_in_an_object_store_is_scored_into_one(finished: Command, tmp_path: Path, bucket: str) -> None:
    stored, source = open_folder(bucket), finished.run_dir / "dataset"
    for path in [source / "manifest.json", *sorted((source / "data").glob("*.parquet"))[:2]]:
        stored.put(f"there/{path.relative_to(source)}", path.read_bytes())
    with pytest.raises(ConfigError, match="would name the tokenizer"):
        run_inline(Config.model_validate(of_dataset(tmp_path, f"{bucket}/elsewhere/*.parquet")))
    raw = of_dataset(tmp_path, f"{bucket}/there/data/*.parquet") | {"run_dir": f"{bucket}/run"}
    manifest, _ = run_inline(Config.model_validate(raw))
    assert manifest["rows"] > 0
    assert verify(f"{bucket}/run", num_workers=1)["problems"] == []
