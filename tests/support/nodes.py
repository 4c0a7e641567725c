"""A Ray head on loopback, and nodes that join it and leave it: each with its own ports, folder and resources."""

import contextlib
import functools
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.ports import free_port
from tests.support.processes import descendants, end_all

BIN = Path(sys.executable).parent


class Head(NamedTuple):
    """A running cluster of one node."""

    dashboard: str
    """Where jobs are submitted."""
    address: str
    """Where drivers connect."""
    environment: dict[str, str]
    """Of its clients."""

    def request(self, path: str) -> urllib.request.Request:
        """One of its HTTP interface."""
        bearer = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return urllib.request.Request(f"{self.dashboard}/{path}", headers=bearer)

    @property
    def driver_environment(self) -> dict[str, Any]:
        """What a driver on this machine needs beside its own environment."""
        return {"RAY_ADDRESS": self.address, **self.token}

    @property
    def token(self) -> dict[str, str]:
        """With which Ray 2.60 lets its clients in."""
        return {key: self.environment[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}


class Node:
    """One of them."""

    def __init__(self, head: Head, name: str, process: "subprocess.Popen[Any]") -> None:
        self._head, self.name, self.process = head, name, process

    @functools.cached_property
    def id(self) -> str:
        return str(next(node["node_id"] for node in listed(self._head, "nodes") if node["node_name"] == self.name))

    @property
    def is_alive(self) -> bool:
        return any(node["node_name"] == self.name for node in listed(self._head, "nodes"))

    def replicas(self) -> list[int]:
        """Process ids of those of a run's that are here, once they have started."""
        actors = listed(self._head, "actors")
        return [
            int(actor["pid"])
            for actor in actors
            if actor["class_name"] == "StageWorker" and actor["state"] == "ALIVE" and actor["node_id"] == self.id
        ]

    def drain(self, notice_s: int) -> None:
        """As an autoscaler does that has heard of a spot machine's end."""
        subprocess.run(
            [BIN / "ray", "drain-node", f"--address={self._head.address}", f"--node-id={self.id}",
             "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
             f"--deadline-remaining-seconds={notice_s}"],
            env=self._head.environment, check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def processes(self) -> dict[int, str]:
        """All that is below it, by process id."""
        return descendants(self.process.pid)

    def kill(self) -> None:
        """Exactly its processes, with no warning."""
        end_all(self.process, self.processes())


@contextlib.contextmanager
def started_head(log_file: Path, *options: str, **environment: str) -> Iterator[Head]:
    """A head with `ray start`'s `options`. Ended by the process ids of what was started."""
    # Ray keeps sockets below this folder, and a socket's path may have 107 characters: pytest's folders are too deep.
    folder = tempfile.mkdtemp(prefix="ray-")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    variables = {**os.environ, **token, "PATH": f"{BIN}:{os.environ['PATH']}", **environment}
    dashboard, port = free_port(), free_port()
    log = log_file.open("w")
    process = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={free_port()}",
         f"--ray-client-server-port={free_port()}", "--disable-usage-stats", f"--temp-dir={folder}", *options],
        env=variables, stdout=log, stderr=log,
    )  # fmt: skip
    head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", variables)
    try:
        for _ in range(90):
            try:
                urllib.request.urlopen(head.request("api/version"), timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log_file.read_text()
                time.sleep(1)
        yield head
    finally:
        # On SIGTERM it would wait half a minute for its own processes, which have nothing to keep.
        _end(process)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def joined(head: Head, name: str, *options: str, mounted: Path | None = None, **environment: str) -> Iterator[Node]:
    """A node with `ray start`'s `options`, and a file system of its own at `mounted`, in a namespace of its own."""
    # Folders of their own, because nodes of one machine delete each other's environments.
    folder = tempfile.mkdtemp(prefix="ray-")
    command = [
        f"{BIN}/ray", "start", f"--address={head.address}", "--block", "--node-ip-address=127.0.0.1",
        f"--node-name={name}", "--disable-usage-stats", f"--temp-dir={folder}",
        f"--dashboard-agent-listen-port={free_port()}", *options,
    ]  # fmt: skip
    if mounted is not None:
        command = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {mounted} && exec {shlex.join(command)}"]
    process = subprocess.Popen(
        command, env={**head.environment, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    node = Node(head, name, process)
    try:
        wait_for(lambda: process.poll() is not None or node.is_alive, 90)
        assert process.poll() is None
        yield node
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: "subprocess.Popen[Any]") -> None:
    family = descendants(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(3)
    end_all(process, family)


def listed(head: Head, what: str) -> list[dict[str, Any]]:
    """What the head's HTTP interface says: `nodes`, `actors` or `placement_groups` that are there."""
    with urllib.request.urlopen(head.request(f"api/v0/{what}?detail=1&limit=1000"), timeout=30) as answer:
        found = json.load(answer)["data"]["result"]["result"]
    return [one for one in found if one.get("state") not in ("DEAD", "REMOVED")]


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s"
        time.sleep(0.5)
