"""What the driver does around an engine, without one."""

import logging
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import TeacherError, engine
from stillhouse.stages.teacher.engine import VLLMTeacher, first_port
from stillhouse.stages.teacher.failures import FailureLog, start_failure


def test_a_failure_is_noted_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    log = logging.Logger("engine")
    log.addHandler(FailureLog(str(path)))
    log.error("no exception")
    try:
        raise ValueError("no room\n  for the cache.")
    except ValueError:
        log.exception("EngineCore failed to start.")
    assert path.read_text() == '"ValueError: no room for the cache"\n'
    assert len(start_failure(ValueError("x" * 10_000))) < 600


def test_engines_of_one_machine_look_for_ports_apart() -> None:
    ports = [first_port(gpus) for gpus in ("0", "1", "2,3", "15")]
    assert ports == [20_000, 20_100, 20_200, 21_500]
    assert [first_port(gpus) for gpus in ("", "GPU-5a3c", "MIG-1")] == [None] * 3


@pytest.mark.parametrize(
    ("reason", "starts"),
    [(OSError(98, "Address already in use"), 2), (SyntaxError("invalid syntax"), 2), (ValueError("no room"), 1)],
)
def test_a_start_that_another_engine_spoilt_is_tried_again(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, reason: Exception, starts: int
) -> None:
    tried = []

    def start(config: Config, failures: Path) -> Any:
        tried.append(failures)
        if len(tried) == 1:
            raise reason
        return "an engine"

    monkeypatch.setattr(engine, "_start_logged", start)
    config = Config.model_validate(raw_config)
    if starts == 2:
        assert engine._start(config) == "an engine"
    else:
        with pytest.raises(TeacherError, match="ValueError: no room"):
            engine._start(config)
    assert len(tried) == starts
    assert not any(file.parent.exists() for file in tried)


def test_a_folder_that_is_not_there_is_said_at_once(raw_config: dict[str, Any]) -> None:
    raw_config["teacher"]["model"] = "./no/such/folder"
    with pytest.raises(TeacherError, match=r"there is no folder '\./no/such/folder'; write"):
        VLLMTeacher(Config.model_validate(raw_config), [2])
