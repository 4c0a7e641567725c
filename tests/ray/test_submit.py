"""Jobs of a real head: submitted, followed, left, attached to, stopped; and clusters that do not take us in."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.cluster.submission import run_id
from tests.support.command import Command, contents, copy_of, read, without_answers
from tests.support.data import ROOT
from tests.support.nodes import BIN, Head
from tests.support.submitting import configuration, ended, folder_that_travels, start


def job_of(head: Head, submission_id: str) -> dict[str, Any]:
    """As the head's own HTTP interface has it."""
    with urllib.request.urlopen(head.request(f"api/jobs/{submission_id}"), timeout=30) as answer:
        return json.load(answer)


def test_a_run_is_submitted_after_a_look_at_the_cluster(head: Head, finished: Command, tmp_path: Path) -> None:
    """From a folder without the code, which travels by itself. The line that is printed does the same."""
    command = copy_of(finished, tmp_path)
    before = contents(command.run_dir)
    (tmp_path / "w").mkdir()
    file = configuration(tmp_path / "w", command)
    on = ("--working-dir", file.parent, "--address", head.dashboard)
    result, err = ended(start("submit", file, *on, "--json", **head.token))
    first = run_id(str(command.run_dir))
    assert (result["job"], result["state"], result["exit_code"]) == (first, "SUCCEEDED", 0)
    assert "cluster: nodes: 1; replicas of the teacher that fit: 1" in err
    assert "nothing was missing" in err
    assert "INFO" not in err
    assert job_of(head, first)["runtime_env"]["py_modules"]
    assert contents(command.run_dir) == before
    assert not (command.run_dir / "state/preflight").exists()

    (line,) = [line for line in err.splitlines() if line.startswith("  ray job submit ")]
    line = line.replace(f"--submission-id {first} ", f"--submission-id {first}-2 ")
    shell = {**head.environment, "PATH": f"{BIN}:{head.environment['PATH']}"}
    again = subprocess.run(line, shell=True, env=shell, capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing was missing" in again.stdout

    listed, _ = ended(start("jobs", "--address", head.dashboard, "--json", **head.token))
    mine = [job for job in listed["jobs"] if job["run_dir"] == str(command.run_dir)]
    assert [(job["job"], job["state"]) for job in mine] == [(f"{first}-2", "SUCCEEDED"), (first, "SUCCEEDED")]
    assert not [job for job in listed["jobs"] if "preflight" in job["job"]]
    log, err = ended(start("logs", command.run_dir, "--address", head.dashboard, "--json", **head.token))
    assert (log["job"], "nothing was missing" in log["log"]) == (f"{first}-2", True)
    assert "nothing was missing" in err


def test_a_terminal_may_leave_and_a_job_may_be_stopped(head: Head, finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path)
    without_answers(command)
    file = folder_that_travels(tmp_path / "w", command)
    on = ("--working-dir", file.parent, "--address", head.dashboard)
    delay = {"FAKE_TEACHER_DELAY_S": "600", **head.token}
    submit = ("submit", file, *on, "--no-preflight", "--json")
    first = run_id(str(command.run_dir))

    leaving = start(*submit, "--env", "FAKE_TEACHER_DELAY_S", **delay)
    until = time.monotonic() + 120
    while not list(command.run_dir.glob("state/attempts/*/generate*")) and time.monotonic() < until:
        time.sleep(0.3)  # until a worker has begun a shard
    leaving.send_signal(signal.SIGINT)
    _, err = ended(leaving, expect=130)
    assert f"{first}: goes on without this terminal; stillhouse logs {first} " in err
    assert job_of(head, first)["status"] == "RUNNING"

    _, err = ended(start(*submit, "--set", "sampling.seed=99", **delay), expect=2)
    assert f"{first} is running there with other values of keys that decide the data" in err

    following = start(*submit, **delay)
    assert following.stderr is not None
    assert following.stderr.readline() == f"{first}: is running already; this command follows it\n"
    stopped, err = ended(start("stop", command.run_dir, "--address", head.dashboard, "--json", **head.token))
    assert (stopped["job"], stopped["state"]) == (first, "STOPPED")
    assert "every shard that is finished stays" in err
    _, err = ended(following, expect=130)
    assert "interrupted; run the same command again" in err, "the run ended by itself, before Ray would kill it"
    assert list(command.run_dir.glob("state/staged/*")) == []
    _, err = ended(start("stop", first, "--address", head.dashboard, **head.token))
    assert "has ended already (stopped)" in err


@pytest.mark.slow
def test_a_preview_is_submitted_up_to_a_stage(head: Head, command: Command, tmp_path: Path) -> None:
    """In a folder of its own."""
    file = folder_that_travels(tmp_path / "w", command)
    asked = ("submit", file, "--sample", 20, "--until", "screen", "--working-dir", file.parent)
    result, _ = ended(start(*asked, "--address", head.dashboard, "--json", **head.token))
    folder = f"{command.run_dir}-sample-20"
    assert (result["job"], result["state"]) == (run_id(folder), "SUCCEEDED")
    assert read(Path(folder) / "ingest").num_rows <= 20
    assert sorted(path.name for path in Path(folder).iterdir() if path.is_dir()) == [
        "dedupe", "ingest", "ledger", "screen", "state",
    ]  # fmt: skip
    assert not command.run_dir.exists()


TWICE = """
import sys
from stillhouse.pipeline.cluster.client import Jobs
cluster = Jobs(sys.argv[1])
print(cluster.submit("true", "same", {}, {}), cluster.submit("true", "same", {}, {}))
try:
    cluster.job("other")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_an_id_is_taken_once_and_a_refusal_is_one_sentence(head: Head) -> None:
    command = [sys.executable, "-c", TWICE, head.dashboard]
    out = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **head.token}, capture_output=True, text=True, check=True, timeout=120
    ).stdout.splitlines()
    assert out[0] == "True False"
    assert out[1].startswith(f"RunError --address: {head.dashboard} refuses a request: Request failed with ")


@pytest.mark.parametrize(
    "token",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}],
    ids=["no", "wrong"],
)
def test_a_token_that_is_not_the_heads_is_one_sentence(head: Head, token: dict[str, str]) -> None:
    started = time.monotonic()
    _, err = ended(start("jobs", "--address", head.dashboard, **token), expect=2)
    assert time.monotonic() - started < 30
    assert re.fullmatch(r"stillhouse: --address: the cluster at \S+ does not accept this process's token; .*\n", err)


def test_a_job_that_is_not_there_is_one_sentence(head: Head, tmp_path: Path) -> None:
    _, err = ended(start("stop", tmp_path, "--address", head.dashboard, **head.token), expect=2)
    assert err == (
        f"stillhouse: {tmp_path}: {head.dashboard} has no such job, nor one of that run folder; see `stillhouse jobs`\n"
    )
