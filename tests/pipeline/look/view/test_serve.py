"""`stillhouse view` as a process: an address is printed, it answers on 127.0.0.1 alone, and Ctrl-C ends it."""

import contextlib
import http.client
import http.cookiejar
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from stillhouse.stages.sources.object_store import open_store
from tests.support.command import Command
from tests.support.data import ROOT
from tests.support.datasets import write_dataset
from tests.support.ports import free_port
from tests.support.s3 import bucket
from tests.support.viewing import viewing

__all__ = ["bucket"]


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address it prints."""
    with subprocess.Popen(
        [sys.executable, "-m", "stillhouse", "view", "--no-browser", "--json", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            lines = list[str]()
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://\S+", line):
                    yield process, found[0]
                    return
            pytest.fail("".join(lines))
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_interrupted(tmp_path: Path, sign: signal.Signals) -> None:
    write_dataset(tmp_path / "run")
    port = free_port()
    with started(str(tmp_path / "run/dataset"), "--port", str(port)) as (process, address):
        base = f"http://127.0.0.1:{port}/"
        assert re.fullmatch(re.escape(base) + r"\?token=[\w-]{40,}", address)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{base}api/place", timeout=30)
        someone = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        with someone.open(address, timeout=30) as page:
            assert "token" not in page.url
        with someone.open(f"{base}api/rows?stage=published&q=text-canary", timeout=30) as answer:
            assert json.load(answer)["of"] > 0
        own = {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {
            "127.0.0.1",
            "::1",
            "127.0.1.1",
        }
        for other in own:
            with socket.socket() as elsewhere:
                assert elsewhere.connect_ex((other, port)) != 0
        process.send_signal(sign)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert json.loads(out) == {"path": str(tmp_path / "run/dataset"), "url": base}
    assert "Traceback" not in err
    assert "text-canary" not in err


def test_a_query_stops_when_the_browser_has_gone(tmp_path: Path) -> None:
    write_dataset(tmp_path / "run")
    with started(str(tmp_path / "run")) as (process, address):
        someone = http.client.HTTPConnection("127.0.0.1", urllib.parse.urlsplit(address).port, timeout=30)
        someone.request("GET", "/?" + urllib.parse.urlsplit(address).query)
        opened = someone.getresponse()
        cookie = opened.headers["set-cookie"].partition(";")[0]
        opened.read()
        sql = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = 1"
        headers = {"Content-Type": "application/json", "Cookie": cookie}
        someone.request("POST", "/api/sql", json.dumps({"sql": sql}), headers)
        begun = time.monotonic()
        while is_busy(process.pid) is False:
            assert time.monotonic() < begun + 20
        someone.close()
        while is_busy(process.pid):
            assert time.monotonic() < begun + 20, "it would have ended by itself after 30 seconds"


def is_busy(pid: int) -> bool:
    """Whether a process computes, over half a second."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(0.5)
    return ticks() > before + 4


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    write_dataset(tmp_path / "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for number, said in ((port, "choose another"), (70000, "choose another")):
            failed = run_view(str(tmp_path / "run"), "--port", str(number))
            assert failed.returncode == 2
            assert said in failed.stderr
            assert failed.stderr.count("\n") == 1


def test_nothing_to_view(tmp_path: Path) -> None:
    failed = run_view(str(tmp_path))
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert str(tmp_path) in failed.stderr


def run_view(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stillhouse", "view", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_run_in_an_object_store(finished: Command, bucket: str) -> None:
    """The same answers as from the disk."""
    store: Any = open_store(f"{bucket}/run", 60)
    for file in sorted(finished.run_dir.rglob("*")):
        if file.is_file() and "state" not in file.relative_to(finished.run_dir).parts:
            obstore.put(store, str(file.relative_to(finished.run_dir)), file.read_bytes())
    answers = []
    for path in (finished.run_dir, f"{bucket}/run"):
        with viewing(path) as viewer:
            rows = viewer.all_rows(stage="generate", q="the", sort="-num_input_tokens")
            histogram = viewer("histogram", stage="generate", column="target_ids")
            counted = viewer.sql(
                "SELECT language, count(*), sum(len(target_ids)) FROM generate GROUP BY ALL ORDER BY 1"
            )
            row = viewer("row", stage="generate", row=rows[0]["row"])
            refused = viewer.sql("SELECT * FROM read_text('stillhouse://run.json')")
            assert "disabled" in refused["error"]
        answers.append([{**found, "seconds": 0} for found in (histogram, counted, row)] + [rows])
    assert answers[0] == answers[1]
