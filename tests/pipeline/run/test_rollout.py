"""Roll-outs: a student writes and the teacher scores, in one run; and the same in two."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.run import purge
from stillhouse.schemas.config import Config, ConfigError, deciding_values
from tests.support.command import contents, read
from tests.support.data import TEACHER
from tests.support.inline_pool import run_inline
from tests.support.scoring import make_raw_rollout_config

Raw = dict[str, Any]


@pytest.fixture(scope="module")
def rolled_out(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Raw, dict[str, Any]]:
    raw = make_raw_rollout_config(tmp_path_factory.mktemp("rolled_out"))
    raw["generate"] = {"system_prompts": ["Be brief.", "Be kind.", None]}
    raw["rollout"]["asked_top_k"] = 3
    return raw, run_inline(Config.model_validate(raw))[0]


def rows_of(table: Any, names: tuple[str, ...]) -> list[str]:
    return sorted(json.dumps([row[name] for name in names]) for row in table.to_pylist())


def test_every_token_of_the_student_is_scored(rolled_out: tuple[Raw, dict[str, Any]], tmp_path: Path) -> None:
    """What the student writes is what it writes where it stands in the teacher's place."""
    raw, manifest = rolled_out
    assert list(manifest["stages"]) == ["ingest", "dedupe", "screen", "rollout", "score", "review"]
    alone = {key: value for key, value in raw.items() if key not in ("task", "score", "rollout")}
    alone |= {"sampling": raw["rollout"]["sampling"], "run_dir": str(tmp_path), "targets": {"top_k": 3}}
    run_inline(Config.model_validate(alone))
    table, written = read(Path(raw["run_dir"]) / "dataset/data"), read(tmp_path / "dataset/data")
    assert table.num_rows == manifest["rows"] > 20
    names = ("sample_id", "messages", "input_ids", "labels")
    own = rows_of(table, (*names, "student_logprobs", "asked_ids"))
    assert own == rows_of(written, (*names, "token_logprobs", "target_ids"))
    assert any(len(row) > 1 for row in table["finish_reasons"].to_pylist())
    for row in table.to_pylist():
        assert len(row["student_logprobs"]) == len(row["token_logprobs"]) == row["num_target_tokens"]
    assert not np.allclose(table["token_logprobs"][0].as_py(), table["student_logprobs"][0].as_py())


def test_the_dataset_is_what_it_says(rolled_out: tuple[Raw, dict[str, Any]]) -> None:
    raw, _ = rolled_out
    found = verify(raw["run_dir"], num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
    card = (Path(raw["run_dir"]) / "dataset/README.md").read_text()
    assert "those of a student" in card
    for path in (raw["run_dir"], f"{raw['run_dir']}/dataset"):
        assert open_place(path).order == ("ingest", "dedupe", "screen", "rollout", "score", "review", "publish")


def test_what_is_missing_comes_out_the_same(rolled_out: tuple[Raw, dict[str, Any]]) -> None:
    raw, _ = rolled_out
    folder = Path(raw["run_dir"])
    before = contents(folder)
    for made in ("rollout/00001", "score/00001", "score/00002", "dataset/data/train-00001-of-00003"):
        (folder / f"{made}.parquet").unlink()
    run_inline(Config.model_validate(raw))
    assert contents(folder) == before


def test_rows_that_an_engine_fails_on_are_given_up_alone(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that fails each time, of the student (by sample and turn) and of the teacher (by sample)."""
    raw = make_raw_rollout_config(tmp_path)
    raw["source"]["limit"] = 10
    run_inline(Config.model_validate(raw))
    names = read(Path(raw["run_dir"]) / "rollout")["sample_id"].to_pylist()
    other = make_raw_rollout_config(tmp_path / "other")
    other["source"]["limit"] = 10
    monkeypatch.setenv("FAKE_TEACHER_RAISES_ON", names[2])
    manifest, _ = run_inline(Config.model_validate(other))
    assert manifest["stages"]["rollout"]["dropped"] == {"teacher_failed": 2}  # both of the prompt's
    assert manifest["stages"]["score"]["dropped"] == {}
    monkeypatch.setenv("FAKE_TEACHER_RAISES_ON", "")
    for stage in ("score", "dataset/data", "review"):
        for file in (Path(raw["run_dir"]) / stage).glob("*.parquet"):
            file.unlink()
    monkeypatch.setenv("FAKE_TEACHER_RAISES_ON", names[3])
    manifest, _ = run_inline(Config.model_validate(raw))
    assert manifest["stages"]["rollout"]["dropped"] == {}
    assert manifest["stages"]["score"]["dropped"] == {"teacher_failed": 1}
    (ledger,) = (Path(raw["run_dir"]) / "ledger/score").glob("*.parquet")
    assert read(ledger.parent)["sample_id"].to_pylist() == [names[3]]


def test_a_prompt_leaves_every_stage(tmp_path: Path, weights: Path) -> None:
    raw = make_raw_rollout_config(tmp_path)
    raw["source"]["limit"] = 10
    run_inline(Config.model_validate(raw))
    folder = Path(raw["run_dir"])
    name = read(folder / "rollout")["sample_id"].to_pylist()[3]
    result = purge.purge(raw["run_dir"], [name])
    assert result["prompts"] == 1
    for stage in ("rollout", "score", "review", "dataset/data"):
        assert name.rpartition("/")[0] not in read(folder / stage)["prompt_id"].to_pylist()
    assert verify(raw["run_dir"], num_workers=1)["problems"] == []


def test_a_student_with_another_tokenizer_is_refused(tmp_path: Path, weights: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    for file in Path(TEACHER).iterdir():
        if file.name != "tokenizer.json":
            (student / file.name).symlink_to(file)
    tokenizer = json.loads((Path(TEACHER) / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    raw = make_raw_rollout_config(tmp_path, model=str(student))
    raw["source"]["limit"] = 3
    run_inline(Config.model_validate(raw))  # what a trainer leaves in it makes it no other one
    assert "asked_ids" not in read(Path(raw["run_dir"]) / "score").column_names
    tokenizer["added_tokens"][-1]["special"] = not tokenizer["added_tokens"][-1]["special"]
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"rollout.model: .*/student has the tokenizer [0-9a-f]{12}, and the teacher"):
        run_inline(Config.model_validate(raw))
    (student / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer at"):
        run_inline(Config.model_validate(raw))


def test_what_decides_a_roll_out(tmp_path: Path, weights: Path) -> None:
    values = deciding_values(Config.model_validate(make_raw_rollout_config(tmp_path)))
    assert {"rollout.model", "rollout.sampling.n", "rollout.sampling.seed", "rollout.backend"} <= values.keys()
    assert "rollout.env" not in values
    engine = {"enforce_eager": True}
    assert deciding_values(Config.model_validate(make_raw_rollout_config(tmp_path, engine=engine))) == values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "generate", "score": None, "sampling": {"max_tokens": 8}}, "set task to score"),
        ({"score": {"ids": "source"}}, "are of answers that the source has"),
        ({"rollout": {"model": "o/n", "sampling": {"max_tokens": 8}}}, "needs a `revision`"),
        ({"rollout": {"model": "./s", "sampling": {"max_tokens": 512}}}, "rollout.sampling.max_tokens 512 leaves no"),
        ({"rollout": {"model": "./s", "sampling": {"max_tokens": 200}}}, "ingest.max_prompt_tokens .* 600 exceeds"),
        ({"rollout": {"model": "./s"}}, "rollout.sampling"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, weights: Path, change: Raw, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate(make_raw_rollout_config(tmp_path) | change)
