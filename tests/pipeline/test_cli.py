"""Standard output holds the result and nothing else, whoever speaks, and when."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.pipeline import cli
from tests.support.data import ROOT

NOISE = """
import atexit, os, sys, threading
from pathlib import Path
from stillhouse.pipeline import cli, console
from stillhouse.pipeline.look import status

def speak():
    print("a library prints")
    os.write(1, b"so does its C++ code\\n")

def noisy(config):
    speak()
    threading.Timer(0.3, speak).start()  # after the result
    atexit.register(speak)
    return found

found = {"run_dir": "x", "state": "unfinished", "now": [], "stages": {}, "set_aside": [], "damaged": [], "put_away": {},
         "rows": None, "target_tokens": None}
status.status = noisy
sys.argv = ["stillhouse", "status", "configs/quickstart.yaml", "--json"]
code = cli.command()
speak()
sys.exit(code)
"""
DROPS = """
import os, sys
from stillhouse.pipeline import console
from stillhouse.pipeline.run.ray_pool import RAYS_LINES

console.drop_lines(RAYS_LINES)
os.write(2, b"[2026-11-25 20:01:03,806 E 319 319] core_worker.cc:2465: from C++\\n(raylet) Task failed\\nkept\\n")
RAYLET = b"\\x1b[33m(raylet)\\x1b[0m "
os.write(2, RAYLET + b"Raylet is terminated. Its log:\\n    [2026-11-25 20:01:03,806 I 319 319] x.cc:1: y\\n")
os.write(2, b"    [state-dump] \\tNodeManager.GC - 1 total\\n    [state-dump] \\n")
os.write(2, RAYLET + b"The node: \\t(1) raylet crashes\\n\\t(2) raylet has lagging heartbeats\\n  kept too\\n")
console.message("[ours] is not dropped, whatever it looks like: (raylet)")
os.write(2, b"last words")
os.abort()
"""

UNREAD = """
import logging, sys
from pathlib import Path
from stillhouse.pipeline import cli
from stillhouse.pipeline.run.progress import Progress

def speak(config, arguments):
    progress = Progress()
    for _ in range(3):
        progress.trouble("to nobody")
        logging.warning("nor is this read")
    progress.close()
    Path({done!r}).touch()
    return dict(long="x" * 1_000_000), 0

cli._status = speak
sys.argv = ["stillhouse", "status", "configs/quickstart.yaml", *{json}]
sys.exit(cli.command())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_standard_output_is_the_result() -> None:
    result = python(NOISE)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["state"] == "unfinished"
    assert result.stdout.count("\n") == 1
    assert result.stderr.count("a library prints") == result.stderr.count("so does its C++ code") == 4


def test_lines_of_a_library_are_dropped_and_last_words_are_not() -> None:
    result = python(DROPS)
    assert result.returncode == -6
    lines = set(result.stderr.splitlines())
    assert lines == {"kept", "  kept too", "last words", "[ours] is not dropped, whatever it looks like: (raylet)"}


@pytest.mark.parametrize("asks", [True, False])
def test_work_does_not_end_for_want_of_a_reader(tmp_path: Path, asks: bool) -> None:
    """As `2>&1 | head -1` leaves a command."""
    reads, writes = os.pipe()
    os.close(reads)
    code = UNREAD.format(done=str(tmp_path / "done"), json=["--json"] * asks)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writes, stderr=writes, check=False)
    os.close(writes)
    assert (tmp_path / "done").exists()
    assert ended.returncode == (141 if asks else 0)


def test_a_result_that_is_read_in_part_ends_quietly(tmp_path: Path) -> None:
    code = UNREAD.format(done=str(tmp_path / "done"), json=["--json"])
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None
    assert command.stderr is not None
    assert command.stdout.read(10) == b'{"long": "'
    command.stdout.close()
    said = set(command.stderr.read().decode().splitlines())
    command.stderr.close()
    assert command.wait() == 141
    assert said == {"to nobody", "WARNING:root:nor is this read"}


@pytest.mark.parametrize("arguments", [["run"], ["export", "runs/x", "--to", "openai"]])
def test_nothing_is_written_into_rays_copy_of_a_working_directory(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:  # fmt: skip
    folder = tmp_path / "session_1/runtime_resources/working_dir_files/_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    if arguments == ["run"]:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw_config | {"run_dir": "runs/x"}))
        arguments = ["run", str(tmp_path / "c.yaml"), "--local"]
    assert cli.main(arguments) == 2
    assert "is in Ray's copy of the job's working directory, which Ray deletes" in capsys.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--address", "http://127.0.0.1:9", "--probe"],
            "--probe: measures this machine, and --address asks",
        ),
        (["--env", "HOME"], "--env: is said of a cluster's job, and check without --address looks at this machine"),
        (["--working-dir", "/tmp"], "--working-dir: is said of a cluster's job"),
        (["--runtime-env", "cpu"], "--runtime-env: is said of a cluster's job"),
    ],
)
def test_check_refuses_what_it_would_ignore(
    raw_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw_config))
    assert cli.main(["check", str(tmp_path / "c.yaml"), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"stillhouse: {message}")
