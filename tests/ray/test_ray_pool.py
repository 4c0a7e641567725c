"""What Ray could spoil: the same runs as in tests/pipeline/run/test_run.py, on real clusters."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.pipeline.run.ray_pool import RAYS_LINES
from tests.support.command import Command, contents, copy_of, read, without_answers
from tests.support.data import ROOT, make_raw_config
from tests.support.nodes import Head


@pytest.fixture
def command(tmp_path: Path, raw_config: dict[str, Any]) -> Command:
    """A run that has not begun, on Ray."""
    return Command(tmp_path, raw_config)


@pytest.fixture
def cluster(head: Head) -> dict[str, Any]:
    """What commands need to find the tests' own Ray head."""
    return head.driver_environment


def test_a_cluster_makes_the_same_as_this_machine(finished: Command, tmp_path: Path, cluster: dict[str, Any]) -> None:
    """Byte for byte; and of a cluster that was there before, nothing is left behind but the run."""
    raw = yaml.safe_load(finished.file.read_text()) | {"run_dir": str(tmp_path / "run")}
    command = Command(tmp_path, raw)
    manifest, err = command("run", **cluster)
    assert [line for line in err.splitlines() if re.match(RAYS_LINES, line) or "WARNING" in line] == []
    assert contents(command.run_dir) == contents(finished.run_dir)
    again, err = command("run", **cluster)
    assert again == manifest
    assert "nothing was missing" in err


IN_ORDER = """
import json, os, pathlib, signal, sys
import ray
from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.run.ray_pool import in_tasks
from stillhouse.schemas.config import WorkersConfig

def call(folder, number):
    if number == 4 and not (pathlib.Path(folder) / "died").exists():
        (pathlib.Path(folder) / "died").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 9:
        raise RunError("nine")
    return number, os.getpid()

def die(number):
    os.kill(os.getpid(), signal.SIGKILL)

@ray.remote(num_cpus=2, max_retries=0)
def task(folder):
    taken, results, error = [], [], ""
    def given():
        for number in range(12):
            taken.append(number)
            yield folder, number
    try:
        for result in in_tasks(call, given(), WorkersConfig(max_workers=2), 3):
            results.append((*result, len(taken)))
    except RunError as raised:
        error = str(raised)
    try:
        next(in_tasks(die, [(0,)], WorkersConfig(max_workers=2), 2))
    except RunError as raised:
        return os.getpid(), results, [error, str(raised)]

ray.init(log_to_driver=False, logging_level="ERROR")
print("RESULT", json.dumps(ray.get(task.remote(sys.argv[1]))))
"""


def test_tasks_of_a_task_have_their_results_in_order(tmp_path: Path, cluster: dict[str, Any]) -> None:
    """It holds both cores of the cluster until it waits for them; one call's process dies, and one raises."""
    done = subprocess.run(
        [sys.executable, "-c", IN_ORDER, str(tmp_path)],
        env={**os.environ, **cluster, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # Beside it Ray tells of the deaths.
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    mine, results, errors = json.loads(told.removeprefix("RESULT "))
    assert [number for number, _, _ in results] == [*range(9)]
    assert errors[0] == "nine"
    assert errors[1].startswith("a process died 2 times over the same work")
    assert (tmp_path / "died").exists()
    assert mine not in {pid for _, pid, _ in results}
    assert max(taken - number for number, _, taken in results) in (3, 4), "twice as many as there are workers, at most"


@pytest.mark.slow
def test_a_large_source_is_read_by_several_tasks(tmp_path: Path, cluster: dict[str, Any]) -> None:
    (tmp_path / "source").mkdir()
    answer = {"role": "assistant", "content": "Because. " * 70_000}
    for file in "abcd":
        asked = [{"role": "user", "content": f"Question {n} of {file}?"} for n in range(15)]
        rows = [{"id": n, "messages": [message, answer]} for n, message in enumerate(asked)]
        (tmp_path / f"source/{file}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = []
    for where in ("cluster", "here"):
        raw = make_raw_config(tmp_path) | {
            "run_dir": str(tmp_path / where),
            "source": {"path": str(tmp_path / "source")},
        }
        command = Command(tmp_path, raw, local=where == "here")
        summary, _ = command("run", "--until", "ingest", **(cluster if where == "cluster" else {}))
        made.append((summary["stages"], contents(command.run_dir)))
    assert made[0] == made[1]
    assert made[0][0]["ingest"]["rows_out"] == 60


def test_missing_shards_come_back_the_same_with_other_workers(
    finished: Command, tmp_path: Path, cluster: dict[str, Any]
) -> None:
    workers = {"min_workers": 2, "max_workers": 2, "num_cpus": 0.5}
    command = copy_of(
        finished, tmp_path, local=False, resources={"generate": {**workers, "shards_in_flight": 3}, "screen": workers}
    )
    before = contents(command.run_dir)
    lost = """
        dataset/manifest.json dataset/data/train-00004-of-00006.parquet dataset/data/train-00001-of-00006.parquet
        review/00004.parquet review/00002.parquet ledger/review/00002.parquet generate/00004.parquet
        generate/00002.parquet screen/00004.parquet dedupe/00004.parquet ingest/00004.parquet ingest/00005.parquet
        state/partition.json state/dedupe/assignments/00001.parquet state/review/sketches/00002.parquet
    """
    for key in lost.split():
        (command.run_dir / key).unlink()
    status, _ = command("status")
    assert (status["state"], status["stages"]["ingest"]) == ("unfinished", {"done": 4, "of": None})
    command("run", **cluster)
    assert contents(command.run_dir) == before


@pytest.mark.parametrize("begin", [pytest.param("ingest", marks=pytest.mark.slow), "generate"])
def test_two_drivers_on_one_folder_write_every_shard_once(
    finished: Command, tmp_path: Path, cluster: dict[str, Any], begin: str
) -> None:
    command = copy_of(finished, tmp_path, local=False)
    if begin == "ingest":
        shutil.rmtree(command.run_dir)
    else:
        without_answers(command)
    drivers = [command.start("run", FAKE_TEACHER_DELAY_S="0.2", **cluster) for _ in range(2)]
    results = [driver.communicate(timeout=300) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], [err for _, err in results]
    first, second = (json.loads(out) for out, _ in results)
    assert first == second
    assert any("shards were written by another run on this folder meanwhile" in err for _, err in results)
    published = read(command.run_dir / "dataset/data")
    assert len(set(published.column("sample_id").to_pylist())) == published.num_rows == first["rows"]


def test_killed_driver_is_resumed(finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path, local=False)
    without_answers(command)
    driver = command.start("run", FAKE_TEACHER_DELAY_S="0.2")
    assert driver.stderr is not None
    for line in driver.stderr:
        if line.startswith("generate 0000"):
            break
    driver.kill()
    driver.communicate()
    command("run")
    assert contents(command.run_dir).keys() == contents(finished.run_dir).keys()
    mine, theirs = contents(command.run_dir), contents(finished.run_dir)
    assert [key for key in mine if mine[key] != theirs[key]] == []


def test_interrupt_ends_with_130(finished: Command, tmp_path: Path) -> None:
    command = copy_of(finished, tmp_path, local=False)
    without_answers(command)
    driver = command.start("run", FAKE_TEACHER_DELAY_S="30")
    until = time.monotonic() + 60
    while not list(command.run_dir.glob("state/attempts/*/*")) and time.monotonic() < until:
        time.sleep(0.2)  # until a worker has begun a shard
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "run the same command again" in err


def test_teacher_that_cannot_start_fails_the_run_at_once(finished: Command, tmp_path: Path) -> None:
    """On a cluster of its own: one that was there before does not see the driver's environment."""
    command = copy_of(finished, tmp_path, local=False)
    without_answers(command)
    _, err = command("run", expect=1, FAKE_TEACHER_FAILS_TO_START="1")
    # Ray's own processes may say something after us.
    assert "\nstillhouse: teacher: no such weights (--verbose shows where)\n" in "\n" + err
    assert "Traceback" not in err
    assert not (command.run_dir / "state/set_aside").exists()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://127.0.0.1:8265", "RAY_ADDRESS: 'http://127.0.0.1:8265' is where jobs are submitted"),
        ("https://cluster.example", "RAY_ADDRESS: 'https://cluster.example' is where jobs are submitted"),
        ("ray://127.0.0.1:10001", "RAY_ADDRESS: 'ray://127.0.0.1:10001' is where Ray clients connect"),
        ("127.0.0.1:9", "RAY_ADDRESS: nothing listens at '127.0.0.1:9'; start the cluster"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence(command: Command, address: str, sentence: str) -> None:
    started = time.monotonic()
    _, err = command("run", expect=2, RAY_ADDRESS=address, RAY_TMPDIR="/tmp/no-ray-here")
    assert time.monotonic() - started < 15
    (line,) = [line for line in err.splitlines() if line.startswith("stillhouse: ")]
    assert line.startswith(f"stillhouse: {sentence}")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "token",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}],
    ids=["no", "wrong"],
)
def test_a_cluster_that_does_not_know_the_token_says_so_at_once(
    command: Command, head: Head, token: dict[str, str]
) -> None:
    started = time.monotonic()
    _, err = command("run", expect=2, RAY_ADDRESS=head.address, **token)
    assert time.monotonic() - started < 15
    (line,) = err.splitlines()
    assert line.startswith(
        f"stillhouse: RAY_ADDRESS: the cluster at '{head.address}' does not accept this process's token"
    )
    assert not list(command.run_dir.glob("ingest/*"))


def test_resources_that_no_node_has_end_the_run_at_once(command: Command, cluster: dict[str, Any]) -> None:
    """Before ingest, though only a later stage wants them."""
    for setting, needed in (("generate.num_gpus=1", "1 CPU, 1 GPU"), ("review.resources={tpu: 4}", "1 CPU, 4 tpu")):
        _, err = command("run", "--set", f"resources.{setting}", expect=1, **cluster)
        stage = setting.partition(".")[0]
        assert f"stillhouse: resources.{stage}: each worker needs {needed}, and no node has that (2 CPU)" in err
        assert not list(command.run_dir.glob("ingest/*"))


@pytest.mark.slow
def test_a_run_says_what_it_waits_for(finished: Command, tmp_path: Path, head: Head) -> None:
    """Another job has all the cores."""
    hold = (
        "import ray, sys, time; ray.init(log_to_driver=False)\n"
        "@ray.remote(num_cpus=2)\ndef hold(): print('held'); time.sleep(3600)\n"
        "task = hold.remote(); time.sleep(3); print('held', flush=True); time.sleep(3600)"
    )
    environment = {**os.environ, **head.driver_environment}
    command = copy_of(finished, tmp_path, local=False)
    without_answers(command)
    with subprocess.Popen([sys.executable, "-c", hold], env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert "held" in holder.stdout.readline()
        run = command.start("run", **head.driver_environment)
        assert run.stderr is not None
        started = time.monotonic()
        for line in run.stderr:
            if "waits for" in line or time.monotonic() - started > 60:
                break
        holder.kill()
    with run:
        run.stderr.read()
    assert "generate: waits for 1 CPU for a worker (0 CPU free in the whole cluster)" in line
    assert run.wait(120) == 0
