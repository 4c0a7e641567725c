"""`task: score`: what it needs, what it refuses, and that runs which generate keep their folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.pipeline.dataset.origin import origin_config
from stillhouse.schemas.config import Config, ConfigError, deciding_values, differing_keys, load, validated
from tests.support.scoring import make_raw_rollout_config, make_raw_score_config


@pytest.fixture
def raw(tmp_path: Path, weights: Path) -> dict[str, Any]:
    return make_raw_score_config(tmp_path)


def test_a_run_that_generates_keeps_its_hash(raw_config: dict[str, Any]) -> None:
    values = deciding_values(Config.model_validate(raw_config))
    assert not [key for key in values if key.startswith(("task", "score"))]
    assert Config.model_validate(raw_config | {"task": "generate"}) == Config.model_validate(raw_config)


def test_what_decides_a_run_that_scores(raw: dict[str, Any]) -> None:
    values = deciding_values(Config.model_validate(raw))
    assert values["task"] == "score"
    assert [key for key in values if key.startswith("sampling")] == ["sampling.seed"]
    assert {key for key in values if key.startswith("score.")} == {
        "score.answers",
        "score.ids",
        "score.tokenizer_sha256",
        "score.asked_ids",
        "score.student_logprobs",
        "score.cut_long",
    }
    other = Config.model_validate(raw | {"score": {"cut_long": True}, "sampling": {"seed": 3}})
    assert differing_keys(values, deciding_values(other)) == ["sampling.seed", "score.cut_long"]


def test_the_section_may_be_left_out(raw: dict[str, Any]) -> None:
    del raw["score"]
    config = Config.model_validate(raw)
    assert config.score is not None
    assert config.score.answers == "all"
    assert config.engine_workers == config.resources.score


def test_a_run_folder_and_a_manifest_give_it_again(raw: dict[str, Any]) -> None:
    raw["score"] = {"answers": "last"}
    config = Config.model_validate(raw)
    assert Config.model_validate(json.loads(config.model_dump_json())) == config
    manifest = {"config": json.loads(json.dumps(deciding_values(config))), "license": "other"}
    again = origin_config(manifest)
    assert (again.task, again.score, again.sampling) == (config.task, config.score, config.sampling)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.max_tokens=64", "sampling: max_tokens say how a teacher writes"),
        ("sampling={n: 2, temperature: 0.5}", "sampling: n, temperature say"),
        ("sampling={1: 2, x: 3}", "sampling: 1, x say"),
        ("task=grade", "task: Input should be 'generate' or 'score'"),
        ("task=generate", "sampling"),
        ("score.answers=first", "score.answers"),
        ("score.tokenizer_sha256=teacher", "score: tokenizer_sha256 is about ids that the source gives"),
        ("score.asked_ids=mine", "score: asked_ids belong to tokens that the source gives"),
        ("score.student_logprobs=mine", "score: student_logprobs belong to tokens that the source gives"),
        ("score={ids: source, tokenizer_sha256: abc}", "score.tokenizer_sha256"),
        ("generate.thinking=drop", "generate.thinking: drop is about what a teacher writes"),
        ("teacher.engine={speculative_config: {}}", "nothing is written with task: score"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, raw: dict[str, Any], override: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError) as error:
        load(file, [override])
    assert message in str(error.value)


def test_given_ids_and_masked_prompts_exclude_each_other(raw: dict[str, Any]) -> None:
    raw["score"] |= {"ids": "source"}
    Config.model_validate(raw | {"personal": {"prompts": "drop"}})
    with pytest.raises(ValueError, match="would change words whose ids are given"):
        Config.model_validate(raw | {"personal": {}})


def test_given_ids_and_drawn_system_prompts_exclude_each_other(raw: dict[str, Any]) -> None:
    raw["score"] |= {"ids": "source"}
    Config.model_validate(raw | {"generate": {"system_prompts": "source"}})
    with pytest.raises(ValueError, match="hold the system prompts that they were made with"):
        Config.model_validate(raw | {"generate": {"system_prompts": ["Be brief."]}})
    named = {"name": "a", "system_prompts": [None, "Be brief."], **raw.pop("teacher")}
    with pytest.raises(ValueError, match="hold the system prompts that they were made with"):
        Config.model_validate(raw | {"teachers": [named]})


def test_a_students_folder_is_found_from_everywhere(tmp_path: Path, weights: Path, monkeypatch: Any) -> None:
    raw = make_raw_rollout_config(tmp_path, model="./student")
    monkeypatch.chdir(tmp_path)
    config = validated(raw, "x.yaml")
    assert config.rollout is not None
    assert config.writer.teacher.model == config.rollout.model == str(tmp_path / "student")


def test_the_section_without_the_task_is_refused(raw_config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is read with task: score only"):
        Config.model_validate(raw_config | {"score": {}})
