"""Commands that are printed can be pasted into a shell, whatever the folder is called."""

import shlex
from typing import Any

import pytest

from stillhouse.pipeline import cli
from stillhouse.pipeline.look.dataset import show_withheld
from stillhouse.pipeline.look.summary import summary
from stillhouse.schemas.config import Config

FOLDER = "/no/such folder/$HOME"


def test_printed_commands_are_quoted(raw_config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config = Config.model_validate(raw_config | {"run_dir": FOLDER})
    counts = {"rows": 0, "bytes": 0, "target_tokens": 0}
    summary(
        config,
        {**counts, "stages": {}, "set_aside": []},
        seconds=1.0,
        num_made=0,
        num_others=0,
        generate_seconds=0.0,
        generate_tokens=0,
    )
    show_withheld(FOLDER, {**counts, "withheld": {"ids": False}})
    cli._report_of_run(config, {})
    lines = capsys.readouterr().err.replace("`", "\n").splitlines()
    found = [line.partition("stillhouse ")[2] for line in lines if "stillhouse " in line]
    assert [shlex.split(command)[:2] for command in found] == [[name, FOLDER] for name in ("inspect", "join", "report")]
