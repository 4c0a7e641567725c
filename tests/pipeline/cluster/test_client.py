"""Logs that are read again after a broken connection, and servers that are no job server."""

import asyncio
import contextlib
import http.server
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace

import pytest

from stillhouse.pipeline.cluster import client
from stillhouse.pipeline.cluster.client import Jobs, _Lines, find_address
from stillhouse.schemas.config import ConfigError


@pytest.mark.parametrize("cuts", [[], [3], [1, 2, 9], [4, 4, 4], [11, 3]])
def test_every_line_comes_once_wherever_connections_break(cuts: list[int]) -> None:
    log, said = "one\ntwo\nthree\nlast", list[str]()
    lines = _Lines(said.append)
    for length in cuts:
        lines.begin()
        for chunk in (log[:length][:2], log[:length][2:]):
            lines.read(chunk)
    lines.read_whole(log)
    lines.close()
    assert said == log.split("\n")


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in client.ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="--address: is missing"):
        find_address(None)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert find_address(None) == "http://head:8265"
    assert find_address("https://other/") == "https://other"
    for other in ("ray://head:10001", "head:6379", "auto"):
        with pytest.raises(ConfigError, match="is not where jobs are submitted"):
            find_address(other)


@contextlib.contextmanager
def server(status: int, body: bytes = b"<html>hello</html>") -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_port}"
        finally:
            found.shutdown()
            thread.join()


def test_a_server_of_another_kind_is_one_sentence() -> None:
    with server(404) as address, pytest.raises(ConfigError, match="answers HTTP 404, so it is no Ray dashboard"):
        Jobs(address)
    with server(200) as address, pytest.raises(Exception, match="answers unlike a Ray job server"):
        Jobs(address)


def test_a_server_that_says_nothing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(ConfigError, match="nothing answers at"):
            Jobs(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < 5


def test_the_address_that_is_given_wins_over_rays_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client would take the variable."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    with server(200, b'{"version": "4", "ray_version": "2.60.0"}') as address:
        assert Jobs(address)._client.get_address() == address
    with client._without(client.ADDRESS_VARIABLES):
        assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"


class Silent:
    """A job that runs on, whose log says nothing. An interrupt that reaches the connection ends as a broken connection,
    which is what HTTP clients make of a cancellation at a bad moment."""

    def __init__(self) -> None:
        self.num_connections = 0

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        self.num_connections += 1
        yield "begins\n"
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise ConnectionError from None

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        return SimpleNamespace(status=SimpleNamespace(value="RUNNING"))


def test_ctrl_c_leaves_whatever_the_connection_makes_of_it() -> None:
    jobs, said = Jobs.__new__(Jobs), list[str]()
    jobs._client = Silent()
    jobs.address = "http://head:8265"
    before = signal.getsignal(signal.SIGINT)  # ignored in a background job of a shell
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        jobs.follow("job", said.append)
    timer.join()
    assert time.monotonic() - started < 5
    assert (said, jobs._client.num_connections) == (["begins"], 1)
    assert signal.getsignal(signal.SIGINT) is before
