"""The commands about clusters, as a user runs them, from a folder that travels."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.command import Command
from tests.support.data import ROOT


def folder_that_travels(folder: Path, command: Command, **changes: Any) -> Path:
    """A folder with a command's configuration in it, and with the code, the tests' own teacher included. Returns the
    configuration's file."""
    folder.mkdir()
    for name in ("stillhouse", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return configuration(folder, command, **changes)


def configuration(folder: Path, command: Command, **changes: Any) -> Path:
    raw = yaml.safe_load(command.file.read_text())
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def start(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "stillhouse", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", expect: int = 0) -> tuple[dict[str, Any], str]:
    """What `--json` printed, and what people read."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == expect, err
    return (json.loads(out) if out.strip() else {}), err
