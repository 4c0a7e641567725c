"""A cluster of two nodes on which much is wrong, and environments that nodes make: what tests/ray has no time for."""

import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from stillhouse.pipeline.cluster.submission import run_id
from tests.ray.conftest import Head
from tests.support.command import Command, contents, copy_of, without_answers
from tests.support.joining import joined
from tests.support.submitting import ended, folder_that_travels, start

CAN_UNSHARE = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def second_node(head: Head, tmp_path: Path) -> Iterator[Path]:
    """A node that joins the head, with a GPU that it has not and, in a mount namespace of its own, another file system
    at the folder that this returns."""
    place = tmp_path / "mounted"
    place.mkdir()
    with joined(head, "--num-cpus=1", "--num-gpus=1", mounted=place):
        yield place


def problems(head: Head, file: Path, *arguments: object) -> list[str]:
    on = ("--working-dir", file.parent, "--address", head.dashboard)
    result, err = ended(start("check", file, *on, "--json", *arguments, **head.token), expect=1)
    assert [line for line in err.splitlines() if "a run would fail" in line]
    return result["problems"]


@pytest.mark.skipif(not CAN_UNSHARE, reason="needs mount namespaces: root, or a container with CAP_SYS_ADMIN")
def test_what_is_wrong_with_two_nodes_is_said_at_once(
    head: Head,
    second_node: Path,
    finished: Command,
    tmp_path: Path,
) -> None:
    file = folder_that_travels(tmp_path / "w", finished, run_dir=str(second_node / "run"))
    vllm = "stillhouse.stages.teacher.engine:VLLMTeacher"
    found = problems(
        head, file,
        *("--set", f"teacher.backend={vllm}", "--set", "teacher.env.VLLM_CPU_KVCACHE_SPACE='100000'"),
        *("--set", "resources.screen.num_gpus=2", "--set", "source.path=/no/such/rows.jsonl"),
    )  # fmt: skip
    wanted = [
        f"run_dir: {second_node}/run is another folder on node ",
        "resources.screen: each worker needs 1 CPU, 2 GPU, and no node has that",
        "VLLM_CPU_KVCACHE_SPACE) exceed the ",
        "/no/such/rows.jsonl: does not exist",
    ]
    assert sorted(_in(wanted, found)) == sorted(found)

    found = problems(
        head, file,
        *("--set", "run_dir=/proc/no/run", "--set", "teacher.model=/no/such/model"),
        *("--set", f"teacher.backend={vllm}", "--set", "resources.generate.num_gpus=1"),
        *("--set", "teacher.engine.tensor_parallel_size=2"),
    )  # fmt: skip
    wanted = [
        "run_dir, from every node: /proc/no/run",
        "teacher.model: /no/such/model is no folder with a model on node ",
        "resources.generate.num_gpus: 1, and an engine of teacher.engine uses 2",
        "teacher.model: no tokenizer at '/no/such/model'",
    ]
    assert sorted(_in(wanted, found)) == sorted(found)


def _in(wanted: list[str], found: list[str]) -> list[str]:
    """The sentence of each that is wanted."""
    return [next((sentence for sentence in found if part in sentence), f"missing: {part}") for part in wanted]


def test_a_stopped_job_is_submitted_again_and_goes_on(head: Head, finished: Command, tmp_path: Path) -> None:
    """To the same bytes."""
    command = copy_of(finished, tmp_path)
    without_answers(command)
    file = folder_that_travels(tmp_path / "w", command)
    on = ("--working-dir", file.parent, "--address", head.dashboard)
    submit = start("submit", file, *on, "--env", "FAKE_TEACHER_DELAY_S", FAKE_TEACHER_DELAY_S="0.5", **head.token)
    until = time.monotonic() + 180
    while not list(command.run_dir.glob("generate/*")) and time.monotonic() < until:
        time.sleep(0.1)
    ended(start("stop", command.run_dir, "--address", head.dashboard, **head.token))
    ended(submit, expect=130)
    result, _ = ended(start("submit", file, *on, "--json", **head.token))
    assert result["job"] == f"{run_id(str(command.run_dir))}-2"
    mine, theirs = contents(command.run_dir), contents(finished.run_dir)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if mine[key] != theirs[key]] == []


def test_nodes_make_their_environment_from_a_lock(head: Head, finished: Command, tmp_path: Path) -> None:
    """Of one package, which holds the teacher; the rest is the nodes' own. Ray copies that first: gigabytes."""
    wheel = tmp_path / "tiny_teacher-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_teacher.py", "from tests.support.fake_teacher import FakeTeacher\n")
        about = "tiny_teacher-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-teacher\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    lock = tmp_path / "lock.txt"
    lock.write_text(f"# a lock\nray=={ray.__version__}\ntiny-teacher @ file://{wheel}\n")
    command = copy_of(finished, tmp_path)
    shutil.rmtree(command.run_dir)
    file = folder_that_travels(tmp_path / "w", command, teacher={"backend": "tiny_teacher:FakeTeacher"})
    on = ("--working-dir", file.parent, "--address", head.dashboard, "--runtime-env", lock)
    result, err = ended(start("submit", file, *on, "--json", **head.token))
    assert result["state"] == "SUCCEEDED", err
    assert yaml.safe_load((command.run_dir / "run.json").read_text())["config"]["teacher"]["backend"].startswith("tiny")
