"""Slow: an engine leaves no process behind, however its front end ends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.data import ROOT
from tests.support.engines import left_by_killed_front_end, processes_with

LIFE = """
import os, sys
from pathlib import Path
from stillhouse.stages.teacher import TeacherError
from stillhouse.stages.teacher.engine import VLLMTeacher
from tests.support.engines import engine_config

if __name__ == "__main__":
    end, folder = sys.argv[1:]
    env = {"VLLM_CPU_KVCACHE_SPACE": "100000"} if end == "no memory" else {"VLLM_CPU_KVCACHE_SPACE": "1"}
    try:
        teacher = VLLMTeacher(engine_config(Path(folder), 8, env=env), [2])
    except TeacherError as error:
        print("TeacherError:", error)
    else:
        if end == "shutdown":
            teacher.shutdown()
        print("started")
"""


@pytest.mark.parametrize("end", ["shutdown", "exit", "no memory"])
def test_nothing_is_left_behind(tmp_path: Path, end: str) -> None:
    script = tmp_path / "life.py"
    script.write_text(LIFE)
    mark = f"{tmp_path.name}-{end}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STILLHOUSE_TEST_MARK": mark}
    finished = subprocess.run(
        [sys.executable, str(script), end, str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    if end == "no memory":
        # The reason comes from another process than the one that failed in front of us.
        assert re.fullmatch(r"TeacherError: teacher: vLLM cannot start .*KVCACHE_SPACE.*; change .*", lines[-1])
    else:
        assert lines == ["started"]
        for noise in ("Traceback", "Exception ignored", "ERROR", "INFO", "DEBUG", "force killing", "it/s]"):
            assert noise not in finished.stderr, finished.stderr
    assert not processes_with(mark)


@pytest.mark.parametrize(("awaited", "works"), [("EngineCore", False), ("VLLM::Worker", False), ("VLLM::Worker", True)])
def test_a_killed_front_end_takes_its_engine_along(tmp_path: Path, awaited: str, works: bool) -> None:
    """By default tests/stages/teacher/test_plugin.py kills what starts a process that ends as an engine's do."""
    assert not left_by_killed_front_end(tmp_path, awaited, works)
