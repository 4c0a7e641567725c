"""`teachers`: what each of them is to the rest of a run, what is refused, and that a run with one keeps its folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.pipeline.folder.identity import config_of, open_run
from stillhouse.schemas.config import (
    Config,
    ConfigError,
    config_hash,
    deciding_values,
    differing_keys,
    load,
    validated,
    values_of_teacher,
)
from tests.support.data import make_raw_config

Raw = dict[str, Any]


@pytest.fixture
def raw(tmp_path: Path, weights: Path) -> Raw:
    raw = make_raw_config(tmp_path)
    teacher = raw.pop("teacher")
    first = {**teacher, "name": "math", "when": {"task": ["math"]}, "env": {"A": "secret"}}
    second = {**teacher, "name": "rest", "max_model_len": 600, "system_prompts": ["Be brief."], "thinking": "keep"}
    return raw | {"teachers": [first, second], "generate": {"system_prompts": ["Be long.", None]}}


def test_one_teacher_keeps_its_hash(raw_config: Raw) -> None:
    config = Config.model_validate(raw_config)
    assert not [key for key in deciding_values(config) if "teachers" in key]
    # By hand: what the keys were before there could be several.
    assert "teacher.model" in deciding_values(config)
    assert config.views() == [config]
    assert config.teacher_names == ()


def test_each_is_the_only_one_of_its_view(raw: Raw) -> None:
    config = validated(raw, "")
    math, rest = config.views()
    assert (math.teacher.max_model_len, rest.teacher.max_model_len) == (512, 600)
    assert math.generate.system_prompts == ["Be long.", None]
    assert (rest.generate.system_prompts, rest.generate.thinking) == (["Be brief."], "keep")
    assert rest.max_prompt_tokens == math.max_prompt_tokens == 400  # ingest.max_prompt_tokens
    assert [view.teachers for view in (math, rest)] == [None, None]


def test_what_decides_is_said_once_and_without_secrets(raw: Raw) -> None:
    values = deciding_values(validated(raw, ""))
    assert not [key for key in values if key.startswith("teacher.") or key.endswith((".env", ".stall_timeout_s"))]
    raw["teachers"][0] |= {"stall_timeout_s": 5.0, "env": {}, "license": "mit", "engine": {"max_num_seqs": 3}}
    assert deciding_values(validated(raw, "")) == values
    raw["teachers"][1]["when"] = {"task": ["code"]}
    raw["teachers"][0]["engine"] = {"quantization": "fp8"}
    changed = differing_keys(values, deciding_values(validated(raw, "")))
    assert changed == ["teachers[0].engine", "teachers[1].when"]


def test_a_manifest_gives_the_values_of_each(raw: Raw) -> None:
    config = validated(raw, "")
    values = json.loads(json.dumps(deciding_values(config)))
    of_rest = values_of_teacher(values, 1)
    single = {key: value for key, value in raw.items() if key != "teachers"}
    teacher = {key: raw["teachers"][1][key] for key in ("model", "max_model_len", "backend")}
    single |= {"teacher": teacher, "generate": {"system_prompts": ["Be brief."], "thinking": "keep"}}
    assert of_rest == json.loads(json.dumps(deciding_values(validated(single, ""))))


def test_a_run_folder_gives_it_again_without_secrets(raw: Raw) -> None:
    config = validated(raw, "")
    folder = open_run(config)
    assert b"secret" not in folder.get("run.json")
    again = config_of(config.run_dir)
    assert config_hash(again) == config_hash(config)
    assert again.teacher_names == ("math", "rest")


def test_files_are_read_for_each(raw: Raw, tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text("a template")
    (tmp_path / "prompts.yaml").write_text("[One., Two.]")
    raw["teachers"][1] |= {
        "chat_template": str(tmp_path / "template.jinja"),
        "system_prompts": str(tmp_path / "prompts.yaml"),
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(raw))
    config = load(file)
    assert config.teachers is not None
    assert config.teachers[1].chat_template == "a template"
    assert config.teachers[1].system_prompts == ["One.", "Two."]


def test_seeds_of_a_mixture_are_seeds(raw: Raw) -> None:
    for teacher in raw["teachers"]:
        for key in ("when", "system_prompts", "thinking"):
            teacher.pop(key, None)
        teacher["max_model_len"] = 512
    raw |= {"task": "score", "mixture": "average", "sampling": {"seed": 2**32 - 1}, "generate": {}}
    config = validated(raw | {"targets": {"method": "sampled", "num_draws": 4}}, "")
    assert [view.sampling.seed for view in config.views()] == [2**32 - 1, 0]


def test_workers_of_one_teacher(raw: Raw) -> None:
    raw["resources"] = {"generate": {"max_workers": 2}, "teachers": {"rest": {"max_workers": 5, "num_gpus": 4}}}
    math, rest = validated(raw, "").views()
    assert (math.engine_workers.max_workers, rest.engine_workers.max_workers) == (2, 5)
    assert rest.engine_workers.num_gpus == 4
    assert rest.engine_workers.shards_in_flight == math.engine_workers.shards_in_flight == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(teacher={"model": "/x", "max_model_len": 50}), "set one of them"),
        (lambda raw: raw["teachers"].reverse(), "rest has no `when` and takes every row"),
        (lambda raw: raw["teachers"][1].update(name="math"), "math is there twice"),
        (lambda raw: raw["teachers"][1].update(name="a/b"), "teachers.1.name"),
        (lambda raw: raw["teachers"][0].update(when={}), "teachers.0.when"),
        (lambda raw: raw["teachers"][0].update(when={"task": "math"}), "teachers.0.when.task"),
        (lambda raw: raw["teachers"][0].update(when={"task": []}), "teachers.0.when.task"),
        (lambda raw: raw["teachers"][1].update(max_model_len=100), "teachers: of rest: ingest.max_prompt_tokens"),
        (lambda raw: raw["teachers"][0].update(model="hub/name"), "teachers.0: 'hub/name' is not a folder"),
        (lambda raw: raw["teachers"][0].update(modle="x"), "teachers.0.modle: is not a known key"),
        (lambda raw: raw.update(resources={"teachers": {"maths": {}}}), "maths is none of teachers"),
        (lambda raw: raw.update(teachers=[]), "teachers"),
        (lambda raw: raw.update(task="score", sampling={}, generate={}), "generate.thinking: keep"),
    ],
)
def test_what_is_refused(raw: Raw, change: Any, message: str) -> None:
    change(raw)
    with pytest.raises(ConfigError) as refused:
        validated(raw, "x.yaml")
    assert message in str(refused.value)
    assert "; teacher." not in str(refused.value)  # the first one's mistakes are told once
