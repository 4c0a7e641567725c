"""Who gets an answer: whoever has the token, from the page itself, by the server's own name."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.view.app import View
from stillhouse.pipeline.look.view.guard import Guard
from stillhouse.schemas.tables import LEDGER
from tests.support.viewing import HOST, PORT


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    file: Path = tmp_path_factory.mktemp("ledger") / "00000.parquet"
    pq.write_table(pa.Table.from_pylist([{"reason": "empty"}], schema=LEDGER), file)
    return Guard(View(open_place(str(file))).app(), PORT)


@pytest.fixture
def client(guard: Guard) -> Iterator[TestClient]:
    with TestClient(guard, base_url=HOST, follow_redirects=False) as client:
        yield client


PATHS = ["/", "/view.js", "/api/place", "/api/rows?stage=ledger", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_there_is_nothing(client: TestClient, path: str) -> None:
    for response in (
        client.get(path),
        client.get(path, params={"token": "x"}),
        client.get(path, headers={"Cookie": f"stillhouse-view-{PORT}=x"}),
    ):
        assert response.status_code == 403
        assert "stillhouse view" in response.text
    assert client.post("/api/sql", json={"sql": "SELECT 1"}).status_code == 403


def test_the_token_becomes_a_cookie_and_leaves_the_address(client: TestClient, guard: Guard) -> None:
    response = client.get("/", params={"stage": "ledger", "token": guard.token, "c.reason": "is:a&b"})
    assert response.status_code == 303
    assert response.headers["location"] == "/?stage=ledger&c.reason=is%3Aa%26b"
    attributes = {part.strip().lower() for part in response.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= attributes
    assert not any(part.startswith("domain") for part in attributes)
    assert client.get("/api/rows?stage=ledger").json()["total"] == 1


def test_two_servers_have_different_tokens(guard: Guard) -> None:
    other = Guard(guard._app, PORT + 1)
    assert len(other.token) >= 32
    assert other.token != guard.token


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": f"localhost:{PORT}", "Origin": f"http://localhost:{PORT}"}, 200),
        ({"Origin": HOST, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": f"evil.example:{PORT}"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": f"127.0.0.1:{PORT + 1}"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": f"http://127.0.0.1:{PORT + 1}"}, 403),
        ({"Origin": f"https://127.0.0.1:{PORT}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/rows?stage=ledger"])
def test_requests_of_others_are_refused_even_with_the_token(
    client: TestClient, guard: Guard, path: str, headers: dict[str, str], status: int
) -> None:
    cookie = {"Cookie": f"stillhouse-view-{PORT}={guard.token}"}
    assert client.get(path, headers=headers | cookie).status_code == status
    post = client.post("/api/sql", json={"sql": "SELECT 1"}, headers=headers | cookie)
    assert post.status_code == status
    if status == 403 and path == "/":
        assert client.get("/", params={"token": guard.token}, headers=headers).status_code == 403


def test_every_answer_has_the_headers(client: TestClient, guard: Guard) -> None:
    refused = client.get("/")
    client.cookies.set(f"stillhouse-view-{PORT}", guard.token)
    for response in (
        refused,
        client.get("/"),
        client.get("/api/place"),
        client.get("/nothing"),
        client.get("/api/rows"),
    ):
        policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert not any(name.startswith("access-control") for name in response.headers)


def test_sql_comes_as_json_alone(client: TestClient, guard: Guard) -> None:
    client.cookies.set(f"stillhouse-view-{PORT}", guard.token)
    body = '{"sql": "SELECT 1"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert client.post("/api/sql", content=body, headers={"Content-Type": kind}).status_code == 415
    assert client.get("/api/sql", params={"sql": "SELECT 1"}).status_code == 405
    for wrong in ("[]", "{}", '{"sql": 1}', "{", '{"sql": "' + "x" * 30_000 + '"}'):
        assert client.post("/api/sql", content=wrong, headers={"Content-Type": "application/json"}).status_code == 400
    assert client.post("/api/sql", json={"sql": "SELECT 1"}).json()["rows"] == [[1]]
