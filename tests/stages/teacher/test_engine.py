"""What the driver does around an engine, without one."""

import logging
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import TeacherError
from stillhouse.stages.teacher.engine import VLLMTeacher
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


def test_a_folder_that_is_not_there_is_said_at_once(raw_config: dict[str, Any]) -> None:
    raw_config["teacher"]["model"] = "./no/such/folder"
    with pytest.raises(TeacherError, match=r"there is no folder '\./no/such/folder'; write"):
        VLLMTeacher(Config.model_validate(raw_config), [2])
