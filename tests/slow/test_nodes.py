"""Nodes that leave a run, told or not: what they held goes to others, and only a death without notice is an attempt.

The teacher is the tests' own. tests/slow/test_cluster.py does the same with real engines.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.command import Command, contents, copy_of, without_answers
from tests.support.nodes import Head, Node, joined, wait_for

ENGINE = ("--num-cpus=1", '--resources={"engine": 1}')


@pytest.fixture
def nodes(head: Head) -> Iterator[tuple[Node, Node]]:
    """One whose teacher never ends an answer, and one whose teacher does."""
    with ExitStack() as stack:
        slow: dict[str, Any] = {"FAKE_TEACHER_DELAY_S": "600", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "12"}
        never = stack.enter_context(joined(head, "never", *ENGINE, **slow))
        quick = stack.enter_context(joined(head, "quick", *ENGINE, FAKE_TEACHER_DELAY_S="0.3"))
        yield never, quick


def drained(node: Node) -> None:
    node.drain(12)


def asked_to_end(node: Node) -> None:
    """As Kubernetes does to a pod: `ray start --block` drains then, for as long as it may."""
    node.process.send_signal(signal.SIGTERM)


def shut_down(node: Node) -> None:
    """As a machine does: all processes are asked to end in the same moment."""
    for pid in node.processes():
        os.kill(pid, signal.SIGTERM)


def killed(node: Node) -> None:
    node.kill()


@pytest.mark.parametrize(
    ("leave", "counts"), [(drained, False), (asked_to_end, False), (shut_down, False), (killed, True)]
)
def test_a_node_that_leaves_gives_its_shards_back(
    head: Head,
    nodes: tuple[Node, Node],
    finished: Command,
    tmp_path: Path,
    leave: Callable[[Node], None],
    counts: bool,
) -> None:
    """With one attempt a shard: a second one would be made in parts, and said to be. Before that, the replica that has
    nothing to do has ended."""
    never, quick = nodes
    workers = {"num_cpus": 0, "resources": {"engine": 1}, "max_workers": 2}
    command = copy_of(finished, tmp_path, local=False, resources={"max_attempts": 1, "generate": workers})
    without_answers(command)
    run = command.start("run", **head.driver_environment)
    wait_for(lambda: len(never.replicas()) + len(quick.replicas()) == 2, 90)
    wait_for(lambda: not quick.replicas(), 90)
    assert len(never.replicas()) == 1
    assert run.poll() is None

    left = time.monotonic()
    leave(never)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    mine, theirs = contents(command.run_dir), contents(finished.run_dir)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if mine[key] != theirs[key]] == []
    made = pq.read_table(max(command.run_dir.glob("state/timeline/*.parquet"))).to_pylist()
    assert (max(row["attempts"] for row in made if row["stage"] == "generate") > 1) == counts
    if not counts:
        assert list(command.run_dir.glob("state/attempts/*/generate.*")) == []
        wait_for(lambda: not never.is_alive, 20)
    print(f"\n{leave.__name__}: the run ended {time.monotonic() - left:.0f} s after; attempts counted: {counts}")
