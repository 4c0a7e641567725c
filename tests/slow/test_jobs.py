"""The ways of a job that tests/ray has no time for: detached, followed by another, failed; no head, another token."""

import signal
import time
from pathlib import Path

import pytest

from stillhouse.pipeline.cluster.submission import run_id
from tests.support.command import Command, copy_of, without_answers
from tests.support.nodes import Head
from tests.support.ports import free_port
from tests.support.submitting import ended, folder_that_travels, start


def test_a_detached_job_is_followed_left_and_stopped_by_its_id(head: Head, finished: Command, tmp_path: Path) -> None:
    """While shards are in flight."""
    command = copy_of(finished, tmp_path)
    without_answers(command)
    file = folder_that_travels(tmp_path / "w", command)
    at, job = ("--address", head.dashboard), run_id(str(command.run_dir))
    submit = ("submit", file, "--working-dir", file.parent, *at, "--no-preflight", "--json", "--detach")
    delay = {"FAKE_TEACHER_DELAY_S": "600", **head.token}
    result, err = ended(start(*submit, "--env", "FAKE_TEACHER_DELAY_S", **delay))
    assert (result["job"], result["exit_code"]) == (job, None)
    assert f"{job}: goes on without this terminal; stillhouse logs {job} --address {head.dashboard} follows it" in err

    until = time.monotonic() + 120
    while not list(command.run_dir.glob("state/attempts/*/generate*")) and time.monotonic() < until:
        time.sleep(0.3)
    by_folder = start("logs", command.run_dir, *at, **head.token)
    by_id = start("logs", job, *at, "--json", **head.token)
    assert by_folder.stderr is not None
    while "generate: " not in by_folder.stderr.readline():
        assert by_folder.poll() is None
    by_folder.send_signal(signal.SIGINT)
    _, err = ended(by_folder, expect=130)
    assert f"{job}: goes on without this terminal" in err

    stopped, err = ended(start("stop", job, *at, "--json", **head.token))
    assert (stopped["job"], stopped["state"]) == (job, "STOPPED")
    followed, err = ended(by_id, expect=130)
    assert followed["state"] == "STOPPED"
    assert "interrupted; run the same command again" in err
    assert not list(command.run_dir.glob("generate/*"))


def test_a_job_whose_shards_fail_ends_as_a_run_does(head: Head, finished: Command, tmp_path: Path) -> None:
    """With the exit code of `run`, and the job is listed as failed."""
    command = copy_of(finished, tmp_path)
    without_answers(command)
    file = folder_that_travels(tmp_path / "w", command)
    at, job = ("--address", head.dashboard), run_id(str(command.run_dir))
    submit = ("submit", file, "--working-dir", file.parent, *at, "--no-preflight", "--json")
    fails = {"FAKE_TEACHER_RAISES_ON": "id-,0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f", **head.token}
    result, err = ended(start(*submit, "--env", "FAKE_TEACHER_RAISES_ON", **fails), expect=3)
    assert (result["job"], result["state"], result["exit_code"]) == (job, "FAILED", 3), err
    assert "set aside" in err
    listed, _ = ended(start("jobs", *at, "--json", **head.token))
    assert [(job["state"], job["exit_code"]) for job in listed["jobs"] if job["job"] == result["job"]] == [
        ("FAILED", 3)
    ]


@pytest.mark.parametrize("wrong", ["token", "head"])
def test_no_command_goes_on_without_a_head_or_its_token(
    head: Head, finished: Command, tmp_path: Path, wrong: str
) -> None:
    file = folder_that_travels(tmp_path / "w", copy_of(finished, tmp_path))
    address = head.dashboard if wrong == "token" else f"http://127.0.0.1:{free_port()}"
    token = {**head.token, "RAY_AUTH_TOKEN": "0" * 64} if wrong == "token" else head.token
    on = ("--working-dir", file.parent)
    for words in (("submit", file, *on), ("check", file, *on), ("jobs",), ("logs", "x"), ("stop", "x")):
        began = time.monotonic()
        _, err = ended(start(*words, "--address", address, **token), expect=2)
        assert time.monotonic() - began < 30
        (line,) = [line for line in err.splitlines() if line.startswith("stillhouse: ")]
        said = "does not accept this process's token" if wrong == "token" else "nothing answers"
        assert said in line
        assert "Traceback" not in err
