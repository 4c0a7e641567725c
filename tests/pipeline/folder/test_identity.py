"""The day of a run: fixed when it starts, the same for every worker and after a resume."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stillhouse.pipeline import flow
from stillhouse.pipeline.dataset import manifest
from stillhouse.pipeline.dataset.origin import origin_config
from stillhouse.pipeline.folder import identity
from stillhouse.pipeline.folder.identity import compare_with_folder, open_run, run_date
from stillhouse.pipeline.folder.local import LocalFolder
from stillhouse.pipeline.run.partition import ingest
from stillhouse.schemas.config import STORED, Config, ConfigError, GuardConfig, config_hash, deciding_values
from stillhouse.stages.generate import Generate

DATED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }} ({{ strftime_now('%d %B %Y, a %A') }})"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the clock: the one that a run's day is read from, and the one of transformers' templates."""

    def at(text: str) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return datetime.fromisoformat(text).replace(tzinfo=tz)

        monkeypatch.setattr(identity, "datetime", Clock)
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)

    return at


def dated(raw_config: dict[str, Any], template: str = DATED) -> Config:
    raw_config["teacher"]["chat_template"] = template
    return Config.model_validate(raw_config)


def test_a_run_keeps_its_day_over_midnight_and_after_a_resume(raw_config: dict[str, Any], day: Any) -> None:
    config = dated(raw_config)
    day("2026-09-30T23:59")  # a Wednesday; the next day has another length in tokens
    open_run(config)
    assert json.loads((Path(config.run_dir) / "run.json").read_text())["date"] == "2026-09-30"
    shards: Any = ingest(config)
    first = next(shards)
    assert first.outcome == "written", first
    shards.close()
    day("2026-10-03T00:01")
    open_run(config)
    assert run_date(config).isoformat() == "2026-09-30"
    results = list(ingest(config))  # the shard that is there says what the source says now
    assert {result.outcome for result in results} <= {"written", "others"}, results
    generate = flow.stage(config, "generate").build(config)
    assert isinstance(generate, Generate)
    ids = generate._chat.prompt_ids([{"role": "user", "content": "x"}])
    assert "x (30 September 2026, a Wednesday)<|im_end|>" in generate._chat.tokenizer.decode(ids)
    assert manifest._read_teacher(config)["chat_template_date"] == "2026-09-30"


def test_values_of_environment_variables_are_kept_nowhere(raw_config: dict[str, Any]) -> None:
    """Of a teacher, of several, of a roll-out's student, of a guard."""
    env = {"HF_TOKEN": "SECRET"}
    raw_config["teacher"]["env"] = env
    raw_config["rollout"] = {"model": "/student", "env": env, "sampling": {"max_tokens": 8}}
    raw_config["task"] = "score"
    raw_config.pop("sampling")
    guard = {"name": "guard", "model": "/guard", "env": env, "questions": [{"label": "x", "yes": ["a"], "no": ["b"]}]}
    raw_config["screen"] = {"classifiers": [guard]}
    several = raw_config | {"run_dir": f"{raw_config['run_dir']}-several"}
    first, second = raw_config["teacher"], raw_config["teacher"] | {"name": "b"}
    several["teachers"] = [first | {"name": "a", "when": {"language": ["en"]}}, second]
    del several["teacher"]
    for raw, num in ((raw_config, 3), (several, 5)):
        config = Config.model_validate(raw)
        open_run(config)
        text = (Path(config.run_dir) / "run.json").read_text()
        assert "SECRET" not in text
        assert text.count('"HF_TOKEN"') == num
        again = identity.config_of(config.run_dir)
        assert config_hash(again) == config_hash(config)
        assert [one.env for one in again.screen.classifiers if isinstance(one, GuardConfig)] == [{}]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("sampling", "seed", -1), ("sampling", "seed", 2**32), ("targets", "precision", 2**-10)],
)
def test_what_is_refused_since_is_still_the_configuration_of_a_run(
    section: str, key: str, value: float, raw_config: dict[str, Any]
) -> None:
    """Prompts must be purged from it, and others put into its dataset."""
    raw_config[section] = raw_config.get(section, {}) | {key: value}
    with pytest.raises(ValidationError):
        Config.model_validate(raw_config)
    config = Config.model_validate(raw_config, context=STORED)
    open_run(config)
    assert config_hash(identity.config_of(config.run_dir)) == config_hash(config)
    stored = {"config": deciding_values(config)}
    assert getattr(getattr(origin_config(stored), section), key) == value


def test_a_run_folder_is_read_once(raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = dated(raw_config)
    open_run(config)
    read, get = list[str](), LocalFolder.get

    def noted(folder: LocalFolder, key: str) -> bytes:
        read.append(key)
        return get(folder, key)

    monkeypatch.setattr(LocalFolder, "get", noted)
    open_run(config)
    assert read == ["run.json"]


def test_of_two_runs_that_begin_at_once_one_is_first(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one finds nothing there, and then the first one's file."""
    config = dated(raw_config)
    put = LocalFolder.put_if_absent

    def late(folder: LocalFolder, key: str, data: bytes) -> bool:
        put(folder, key, data.replace(b"config_hash", b"another_hash"))
        return put(folder, key, data)

    monkeypatch.setattr(LocalFolder, "put_if_absent", late)
    with pytest.raises(ConfigError, match=r"its run\.json is damaged"):
        open_run(config)


def test_before_a_run_it_is_today(raw_config: dict[str, Any], day: Any) -> None:
    day("2026-09-30T12:00")
    assert run_date(dated(raw_config)).isoformat() == "2026-09-30"
    assert manifest._read_teacher(dated(raw_config))["chat_template_date"] == "2026-09-30"


def test_a_template_without_a_day_has_none_in_the_manifest(raw_config: dict[str, Any]) -> None:
    assert manifest._read_teacher(Config.model_validate(raw_config))["chat_template_date"] is None


def test_a_day_may_be_set(raw_config: dict[str, Any]) -> None:
    unset = config_hash(Config.model_validate(raw_config))
    raw_config["teacher"]["date"] = datetime(2025, 1, 2, tzinfo=UTC).date()  # as YAML reads it without quotes
    config = dated(raw_config)
    assert run_date(config).isoformat() == config.teacher.date == "2025-01-02"
    assert config_hash(config) != unset
    open_run(config)
    raw_config["teacher"]["date"] = "2025-01-03"
    with pytest.raises(ConfigError, match=r"other values of teacher\.date"):
        compare_with_folder(dated(raw_config))
    raw_config["teacher"]["date"] = "tomorrow"
    with pytest.raises(ValidationError, match="is no day"):
        dated(raw_config)


@pytest.mark.parametrize("damage", ['{"config_hash": "0"}', '{"date": 3}', "[", '{"date": "soon"}'])
def test_a_run_that_does_not_say_its_day_is_refused(raw_config: dict[str, Any], damage: str) -> None:
    config = dated(raw_config)
    open_run(config)
    (Path(config.run_dir) / "run.json").write_text(damage)
    with pytest.raises(ConfigError, match="does not say the day"):
        run_date(config)
