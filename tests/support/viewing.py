"""The viewer's routes, asked without a browser and without a port."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.view.app import View
from stillhouse.pipeline.look.view.guard import Guard

PORT = 8427
HOST = f"http://127.0.0.1:{PORT}"


class Viewer:
    """Whoever has opened the page of a place."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def __call__(self, path: str, expect: int = 200, **parameters: Any) -> dict[str, Any]:
        """The JSON of a route; columns' filters are named in `c`."""
        filters = {f"c.{name}": value for name, value in parameters.pop("c", {}).items()}
        response = self.client.get(f"/api/{path}", params=parameters | filters)
        assert response.status_code == expect, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def all_rows(self, **parameters: Any) -> list[dict[str, Any]]:
        """Every row that is asked for, page after page: its cells by column, and its address as "row"."""
        rows = list[dict[str, Any]]()
        while True:
            page = self("rows", page=len(rows) // 100 + 1, **parameters)
            names = [column["name"] for column in page["columns"] if column["has_cells"]]
            rows += [dict(zip(names, row["cells"], strict=True)) | {"row": row["row"]} for row in page["rows"]]
            if len(rows) == page["total"]:
                return rows
            assert len(page["rows"]) == 100

    def sql(self, query: str) -> dict[str, Any]:
        response = self.client.post("/api/sql", json={"sql": query})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@contextlib.contextmanager
def viewing(path: Path | str) -> Iterator[Viewer]:
    """Someone with the token looks at `path`."""
    guard = Guard(View(open_place(str(path))).app(), PORT)
    with TestClient(guard, base_url=HOST) as client:
        assert client.get("/", params={"token": guard.token}).status_code == 200
        yield Viewer(client)
