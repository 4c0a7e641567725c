"""Nodes that join a Ray head on this machine, and what its HTTP interface says of the cluster."""

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.ray.conftest import BIN, Head
from tests.support.ports import free_port
from tests.support.processes import descendants, end_all


@contextlib.contextmanager
def joined(head: Head, *options: str, mounted: Path | None = None) -> Iterator[None]:
    """A node with `options` of `ray start`; with `mounted` in a mount namespace of its own, with another file system
    there."""
    before = len(listed(head, "nodes"))
    # A folder of its own: raylets that share one delete each other's working directories.
    folder = tempfile.mkdtemp(prefix="ray-")
    join = [f"{BIN}/ray", "start", f"--address={head.address}", "--block", *options, "--disable-usage-stats",
            f"--temp-dir={folder}", f"--dashboard-agent-listen-port={free_port()}"]  # fmt: skip
    if mounted is not None:
        join = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {mounted} && exec "$@"', "sh", *join]
    process = subprocess.Popen(join, env=head.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: process.poll() is not None or len(listed(head, "nodes")) > before)
        assert process.poll() is None
        yield
    finally:
        family = descendants(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
        end_all(process, family)
        shutil.rmtree(folder, ignore_errors=True)


def listed(head: Head, what: str) -> list[dict[str, Any]]:
    """`nodes` that are up, or `placement_groups` that were not removed."""
    request = urllib.request.Request(
        f"{head.dashboard}/api/v0/{what}?detail=1", headers={"Authorization": f"Bearer {head.token['RAY_AUTH_TOKEN']}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)["data"]["result"]["result"]
    return [one for one in found if one.get("state") not in ("DEAD", "REMOVED")]


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s"
        time.sleep(0.5)
