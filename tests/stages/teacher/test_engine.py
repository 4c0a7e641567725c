"""What the driver does around an engine, without one."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import TeacherError
from stillhouse.stages.teacher.engine import FailureLog, VLLMTeacher, start_failure, watch_outputs


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


def test_tokens_are_counted_as_they_come_and_counting_never_fails() -> None:
    seen: list[Any] = []
    engine = SimpleNamespace(output_processor=SimpleNamespace(process_outputs=lambda *a, **k: seen.append((a, k))))
    pulse = watch_outputs(engine)
    process = engine.output_processor.process_outputs
    process([])
    assert (pulse.num_tokens, pulse.last_token_at) == (0, 0.0)
    process(
        [SimpleNamespace(new_token_ids=[1, 2]), SimpleNamespace(new_token_ids=[]), SimpleNamespace(new_token_ids=[3])]
    )
    assert pulse.num_tokens == 3
    assert pulse.last_token_at > 0
    process([SimpleNamespace(new_token_ids=[4])], 1.0, iteration_stats=None)
    for unknown in ([SimpleNamespace()], [SimpleNamespace(new_token_ids=None)], "outputs", 7):
        process(unknown)
    assert pulse.num_tokens == 4
    assert seen[2] == (([SimpleNamespace(new_token_ids=[4])], 1.0), {"iteration_stats": None})
    assert len(seen) == 7, "every output is passed on"
    assert watch_outputs(SimpleNamespace()).num_tokens == 0
