"""What the page asks for, as routes. Answers are JSON; whoever asks for what is not there gets 400 and a sentence, and
whoever makes a mistake in SQL a sentence."""

import asyncio
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stillhouse.pipeline.console import message
from stillhouse.pipeline.errors import DamagedError, StorageError, safe_message
from stillhouse.pipeline.look.page import asset
from stillhouse.pipeline.look.place import Place
from stillhouse.pipeline.look.tokens import teacher_tokenizer
from stillhouse.pipeline.look.view.engine import Asking, Engine, SQLError
from stillhouse.pipeline.look.view.histograms import histogram
from stillhouse.pipeline.look.view.queries import QueryError, query_of
from stillhouse.pipeline.look.view.rows import ALIASES, PAGE, Rows, Stage, files_of

SECONDS = 30.0
"""What a request may take."""
MAX_SQL = 20_000
"""Characters of a person's query."""
_ASSETS = {
    "/": ("view.html", "text/html"),
    "/view.js": ("view.js", "text/javascript"),
    "/table.js": ("table.js", "text/javascript"),
    "/filters.js": ("filters.js", "text/javascript"),
    "/query.js": ("query.js", "text/javascript"),
    "/view.css": ("view.css", "text/css"),
    "/conversation.js": ("conversation.js", "text/javascript"),
    "/conversation.css": ("conversation.css", "text/css"),
}


class View:
    """The routes of one place, which is as it was when this began."""

    def __init__(self, place: Place, tokenizer: str | None = None) -> None:
        """`tokenizer`: the model whose it is, by default the run's teacher. Raises `ConfigError` where the place has
        nothing that can be viewed."""
        self.place = place
        self._model = tokenizer
        self.files = files_of(place)
        listed = [key for files in self.files.values() for key in files]
        filesystem = None
        if "://" in place.folder.url:
            from stillhouse.pipeline.look.view.remote import FilesOfPlace, duckdb_path

            filesystem, paths = FilesOfPlace(place), {key: duckdb_path(key) for key in listed}
        else:
            paths = {key: place.folder.path(key) for key in listed}
        located = {name: [paths[key] for key in files] for name, files in self.files.items()}
        self.engine = Engine(located, filesystem, ALIASES)
        self.rows = Rows(place, self.files)

    @cached_property
    def tokenizer(self) -> tuple[Any, str | None]:
        return teacher_tokenizer(self.place, self._model)

    def app(self) -> Starlette:
        routes = [Route(path, _asset(*named)) for path, named in _ASSETS.items()]
        answers: dict[str, Callable[[Request, Asking], dict[str, Any]]] = {
            "/api/place": self._place,
            "/api/rows": self._rows,
            "/api/histogram": self._histogram,
            "/api/row": self._row,
        }
        routes += [Route(path, self._route(answer)) for path, answer in answers.items()]
        return Starlette(routes=[*routes, Route("/api/sql", self._sql, methods=["POST"])])

    def _route(self, answer: Callable[[Request, Asking], dict[str, Any]]) -> Any:
        async def route(request: Request) -> Response:
            return await self._answered(request, lambda asking: answer(request, asking))

        return route

    async def _sql(self, request: Request) -> Response:
        # A page elsewhere can send a form or plain text to any port, and no JSON.
        if request.headers.get("content-type") != "application/json":
            return JSONResponse({"error": "send application/json"}, 415)
        try:
            sql = (await request.json())["sql"]
        except (ValueError, KeyError, TypeError):
            sql = None
        if not isinstance(sql, str) or len(sql) > MAX_SQL:
            return JSONResponse({"error": f"send a query of at most {MAX_SQL:,} characters"}, 400)
        return await self._answered(request, lambda asking: _told(asking, sql))

    async def _answered(self, request: Request, answer: Callable[[Asking], dict[str, Any]]) -> Response:
        """What `answer` gives, in a thread; stopped when whoever asked goes away."""
        asking = self.engine.asking(SECONDS)
        began = time.perf_counter()
        work = asyncio.create_task(run_in_threadpool(answer, asking))
        while not (await asyncio.wait([work], timeout=0.2))[0]:
            if await request.is_disconnected():
                asking.stop()
        try:
            return JSONResponse(work.result() | {"seconds": round(time.perf_counter() - began, 3)})
        except (QueryError, SQLError, DamagedError, StorageError) as error:
            return JSONResponse({"error": str(error)}, 400)
        except FileNotFoundError:
            return JSONResponse({"error": "a file has gone since the start; start `stillhouse view` again"}, 400)
        except Exception as error:  # of a library: its message can quote a row, so it goes nowhere
            message(f"stillhouse view: {safe_message(error)}")
            return JSONResponse({"error": f"failed ({safe_message(error)})"}, 500)

    def _place(self, request: Request, asking: Asking) -> dict[str, Any]:
        """{"path", "kind", "page": rows of a page, "notes", "stages": [{"name", "files", "bytes",
        "aliases": further names in SQL}]}."""
        return {
            "path": self.place.path,
            "kind": self.place.kind,
            "page": PAGE,
            "notes": self.place.notes,
            "stages": [
                {
                    "name": name,
                    "files": len(files),
                    "bytes": sum(self.place.sizes[key] for key in files),
                    "aliases": ALIASES.get(name, ()),
                }
                for name, files in self.files.items()
            ],
        }

    def _stage(self, request: Request, asking: Asking) -> Stage:
        return self.rows.stage(request.query_params.get("stage", ""), asking)

    def _rows(self, request: Request, asking: Asking) -> dict[str, Any]:
        stage = self._stage(request, asking)
        query = query_of(stage.columns, request.query_params.multi_items())
        number = request.query_params.get("page", "1")
        if not (number.isascii() and number.isdecimal() and 0 < int(number) < 1 << 40):
            raise QueryError("page: is a number from 1")
        page = self.rows.page(stage, query, int(number) - 1, asking)
        columns = [
            {
                "name": column.name,
                "type": column.type,
                "kind": column.kind,
                "texts": bool(column.contains),
                "has_cells": column.name in page["shown"],
                "heavy": column.heavy,
            }
            for column in stage.columns.values()
        ]
        return page | {"of": stage.total, "columns": columns}

    def _histogram(self, request: Request, asking: Asking) -> dict[str, Any]:
        stage = self._stage(request, asking)
        column = stage.columns.get(request.query_params.get("column", ""))
        if column is None:
            raise QueryError("column: there is no such column in this stage")
        query = query_of(stage.columns, request.query_params.multi_items()).rows_only
        return histogram(stage, column, self.rows.selected(stage, query, asking), asking)

    def _row(self, request: Request, asking: Asking) -> dict[str, Any]:
        stage = self._stage(request, asking)
        tokenizer, note = self.tokenizer if "input_ids" in stage.schema.names else (None, None)
        row = self.rows.row(stage, request.query_params.get("row", ""), tokenizer)
        return row | {"note": note}


def _told(asking: Asking, sql: str) -> dict[str, Any]:
    """A mistake in a query is an answer like others: browsers would write a line about it to their consoles."""
    try:
        return asking.persons_sql(sql)
    except SQLError as error:
        return {"error": str(error)}


def _asset(name: str, media_type: str) -> Any:
    async def route(request: Request) -> Response:
        return Response(asset(name), media_type=media_type)

    return route
