"""A real S3 server on loopback (moto's), and a proxy before it that fails on demand."""

import http.client
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.ports import free_port

BUCKET = "stillhouse-test"


Fault = int | str | None
LATE_S = 1.0


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        for _ in range(60):
            try:
                request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.5)
        yield f"s3://{BUCKET}"
    finally:
        process.terminate()
        process.wait(30)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Proxy(ThreadingHTTPServer):
    """Stands before the store and fails on demand. `fault` is asked for each request (method, path); it is answered by
    that status, `cut` off before it is passed on, passed on `unconditional`, or its answer is `lost`, `late` or cut in
    `half`."""

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.endpoint = endpoint
        self.requests: list[str] = []
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self.is_google = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(self.command)
        fault = self.server.fault(self.command, self.path)
        if fault == "cut":
            self.close_connection = True
            return
        if isinstance(fault, int):
            text = b"<Error>\n<Code>SomeReason</Code><Message>for secret-canary</Message></Error>"
            self.send_response(fault)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text if self.command != "HEAD" else b"")
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        if fault == "unconditional":
            headers.pop("if-none-match", None)
        if self.server.is_google:
            headers["authorization"] = "AWS test:test"
            if headers.pop("x-goog-if-generation-match", None) == "0":
                headers["if-none-match"] = "*"
        connection = http.client.HTTPConnection(self.server.endpoint.removeprefix("http://"), timeout=30)
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        if fault == "late":
            time.sleep(LATE_S)
        if fault == "lost":
            self.close_connection = True
            return
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "server", "date", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "half" and data:
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(os.environ["AWS_ENDPOINT_URL"])
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    yield proxy
    proxy.shutdown()
    thread.join()
    proxy.server_close()
