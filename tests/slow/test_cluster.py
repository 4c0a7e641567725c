"""A cluster of two nodes on which much is wrong, and environments that nodes make: what tests/ray has no time for."""

import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from stillhouse.pipeline.cluster.submission import run_id
from tests.slow.test_engine_faults import make_config, outcome
from tests.support.command import Command, contents, copy_of, without_answers
from tests.support.nodes import Head, Node, joined, wait_for
from tests.support.submitting import ended, folder_that_travels, start

CAN_UNSHARE = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def second_node(head: Head, tmp_path: Path) -> Iterator[Path]:
    """A node that joins the head, with a GPU that it has not and, in a mount namespace of its own, another file system
    at the folder that this returns."""
    place = tmp_path / "mounted"
    place.mkdir()
    with joined(head, "second", "--num-cpus=1", "--num-gpus=1", mounted=place):
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


ENGINE = ("--num-cpus=1", '--resources={"engine": 1}')


def test_nodes_come_and_go_under_a_real_teacher(head: Head, tmp_path: Path) -> None:
    """A head and three nodes, two of them with an engine. One of these is killed amid answers, one is added, and when
    that one answers the other is drained. Until then there is always something to answer. The rows are those of an
    undisturbed run on this machine."""
    (tmp_path / "undisturbed").mkdir()
    undisturbed = Command(tmp_path / "undisturbed", make_config(tmp_path / "undisturbed"), local=True)
    undisturbed("run")
    raw, release = make_config(tmp_path), tmp_path / "release"
    raw["teacher"]["backend"] = "tests.support.held_teacher:HeldTeacher"
    raw["teacher"]["env"] |= {"FREE_ANSWERS": "10", "RELEASE": str(release)}
    workers = {"num_cpus": 0, "resources": {"engine": 1}, "max_workers": 2, "shards_in_flight": 2}
    raw["resources"] = {"generate": workers}
    file = folder_that_travels(tmp_path / "w", Command(tmp_path, raw))
    run_dir = Path(raw["run_dir"])

    def answers(node: Node) -> bool:
        """Whether its engine is past its start: its replica is ready, and holds shards."""
        return bool(node.replicas()) and bool(list(run_dir.glob("state/attempts/*/generate.transform.*")))

    def say(text: str) -> None:
        num_made = len([*run_dir.glob("generate/*.parquet")])
        print(f"{time.monotonic() - began:4.0f} s: {text}; {num_made} of 5 shards are there")

    with ExitStack() as stack:
        # An engine has a core of its own, or two of them wait for each other in every step; and Ray's workers yield to
        # all other processes unless told otherwise.
        alone = {"OMP_WAIT_POLICY": "PASSIVE", "RAY_worker_niceness": "0"}
        first, second = (
            stack.enter_context(joined(head, name, *ENGINE, mounted=None, VLLM_CPU_OMP_THREADS_BIND=core, **alone))
            for name, core in (("first", "0"), ("second", "1"))
        )
        stack.enter_context(joined(head, "curation", "--num-cpus=1"))
        began = time.monotonic()
        print()
        submit = start(
            "submit", file, "--working-dir", file.parent, "--address", head.dashboard, "--json", **head.token
        )
        wait_for(lambda: answers(first) and answers(second), 240)
        time.sleep(3)
        say("two engines answer; the first node is killed")
        first.kill()
        third = stack.enter_context(
            joined(head, "third", *ENGINE, mounted=None, VLLM_CPU_OMP_THREADS_BIND="0", **alone)
        )
        say("a third node with an engine is there")
        wait_for(lambda: answers(third), 240)
        say("its engine answers; the second node is drained, with 15 s")
        second.drain(15)
        wait_for(lambda: not second.is_alive, 30)
        say("it has left")
        release.touch()
        result, err = ended(submit)
        say(f"the run has ended, {result['state']}")
    print(err)
    assert result["state"] == "SUCCEEDED", err
    assert outcome(run_dir) == outcome(undisturbed.run_dir)
    timeline = [row for file in run_dir.glob("state/timeline/*.parquet") for row in pq.read_table(file).to_pylist()]
    made = [row for row in timeline if (row["stage"], row["outcome"]) == ("generate", "written")]
    assert sorted(row["shard"] for row in made) == [f"{n:05d}.parquet" for n in range(5)]
    for row in made:
        print(f"{row['shard']}: attempts {row['attempts']}, by replica {row['worker']}")
    assert max(row["attempts"] for row in made) > 1, "the killed node was not amid a shard"
    assert len({row["worker"] for row in made}) > 1
