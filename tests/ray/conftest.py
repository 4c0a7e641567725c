"""One Ray head on loopback for all tests that do not kill it."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

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

    @property
    def driver_environment(self) -> dict[str, str]:
        """What a driver on this machine needs beside its own environment."""
        return {"RAY_ADDRESS": self.address, **self.token}

    @property
    def token(self) -> dict[str, str]:
        """With which Ray 2.60 lets its clients in."""
        return {key: self.environment[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Head]:
    """Ended by the process ids of what was started."""
    # Ray keeps sockets below this folder, and a socket's path may have 107 characters: pytest's folders are too deep.
    folder = tempfile.mkdtemp(prefix="ray-")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **token, "PATH": f"{BIN}:{os.environ['PATH']}"}
    dashboard, port = free_port(), free_port()
    log_file = tmp_path_factory.mktemp("head") / "head.log"
    log = log_file.open("w")
    process = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={free_port()}",
         f"--ray-client-server-port={free_port()}", "--disable-usage-stats", f"--temp-dir={folder}"],
        env=environment, stdout=log, stderr=log,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(90):
            try:
                bearer = {"Authorization": f"Bearer {token['RAY_AUTH_TOKEN']}"}
                urllib.request.urlopen(
                    urllib.request.Request(f"{address}/api/version", headers=bearer), timeout=5
                ).close()
                break
            except OSError:
                assert process.poll() is None, log_file.read_text()
                time.sleep(1)
        yield Head(address, f"127.0.0.1:{port}", environment)
    finally:
        # On SIGTERM it would wait half a minute for its own processes, which have nothing to keep.
        family = descendants(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
        end_all(process, family)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
