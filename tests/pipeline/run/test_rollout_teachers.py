"""A student's answers, each scored by the teacher that knows its prompt best, or by all of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.dataset.verify import verify
from stillhouse.schemas.config import Config, ConfigError, absolute, validated
from tests.support.command import contents, read
from tests.support.inline_pool import run_inline
from tests.support.teaching import TEMPLATE, make_raw_rolled_out_teachers, published_rows, rows_alone

Raw = dict[str, Any]
OF_STUDENT = ("messages", "input_ids", "labels", "student_logprobs", "asked_ids", "finish_reasons")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Raw:
    return make_raw_rolled_out_teachers(tmp_path_factory.mktemp("rolled_out"))


@pytest.fixture(scope="module")
def rolled_out(raw: Raw) -> tuple[Config, dict[str, Any]]:
    config = absolute(Config.model_validate(raw))
    return config, run_inline(config)[0]


@pytest.mark.long
def test_each_row_is_that_of_a_run_with_its_teacher_alone(raw: Raw, rolled_out: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = rolled_out
    mixed, singles = published_rows(config), rows_alone(raw, config.teacher_names)
    assert list(manifest["stages"]) == ["ingest", "dedupe", "screen", "rollout", "score", "review"]
    seen = dict.fromkeys(config.teacher_names, 0)
    for sample_id, row in mixed.items():
        seen[name := row.pop("teacher")] += 1
        (other,) = singles.keys() - {name}
        assert row == singles[name][sample_id]
        assert {key: row[key] for key in OF_STUDENT} == {key: singles[other][sample_id][key] for key in OF_STUDENT}
        assert row["token_logprobs"] != singles[other][sample_id]["token_logprobs"]
    assert seen == {teacher["name"]: teacher["rows"] for teacher in manifest["teachers"]}
    assert min(seen.values()) > 10
    samples = [row["sample_id"] for row in read(Path(config.run_dir) / "score").to_pylist()]
    assert samples == [row["sample_id"] for row in read(Path(config.run_dir) / "rollout").to_pylist()]


@pytest.mark.long
def test_the_dataset_is_what_it_says(rolled_out: tuple[Config, dict[str, Any]]) -> None:
    config, _ = rolled_out
    found = verify(config.run_dir, num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
    card = (Path(config.run_dir) / "dataset/README.md").read_text()
    assert "those of a student" in card
    assert "`meta.task` is math |" in card


@pytest.mark.long
def test_what_is_missing_comes_out_the_same(rolled_out: tuple[Config, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(rolled_out[0].run_dir, tmp_path / "run")
    for made in ("rollout/00001", "score/00001", "score/00002", "dataset/data/train-00001-of-00003"):
        (tmp_path / f"run/{made}.parquet").unlink()
    run_inline(rolled_out[0].model_copy(update={"run_dir": str(tmp_path / "run")}))
    assert contents(tmp_path / "run") == contents(Path(rolled_out[0].run_dir))


@pytest.mark.long
def test_all_of_them_on_what_the_student_wrote(raw: Raw, tmp_path: Path) -> None:
    """A mixture: the draws of each on every row."""
    names = ("when", "system_prompts")
    teachers = [{key: teacher[key] for key in teacher if key not in names} for teacher in raw["teachers"]]
    mixture = {"mixture": "average", "targets": {"method": "sampled", "num_draws": 8}, "teachers": teachers}
    mixture["source"] = raw["source"] | {"limit": 10}
    config = Config.model_validate(raw | mixture | {"run_dir": str(tmp_path / "run")})
    run_inline(config)
    found = verify(config.run_dir, num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
    rows = published_rows(config)
    assert len(rows) > 15
    for row in rows.values():
        assert sum(row["draw_counts"]) == 8 * row["num_target_tokens"]
        assert len(row["asked_logprobs"]) == 3 * len(row["student_logprobs"])


@pytest.mark.parametrize(
    "change", [{"max_model_len": 400}, {"chat_template": TEMPLATE}, {"system_prompts": ["Write code."]}]
)
def test_a_student_reads_by_one_template(raw: Raw, change: Raw) -> None:
    teachers = [raw["teachers"][0], {**raw["teachers"][1], **change}]
    with pytest.raises(ConfigError, match=f"rollout: .*; {next(iter(change))} of codes is another one than that of"):
        validated(raw | {"teachers": teachers}, "")


@pytest.mark.long
def test_templates_that_models_bring_are_compared(raw: Raw, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(raw["teachers"][0]["model"], other, ignore=shutil.ignore_patterns("*.safetensors", "*.jinja"))
    (other / "chat_template.jinja").write_text(TEMPLATE)
    teachers = [raw["teachers"][0], {**raw["teachers"][1], "model": str(other)}]
    config = Config.model_validate(raw | {"teachers": teachers, "run_dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match="rollout: counts and codes have different chat templates, and the student"):
        run_inline(config)
