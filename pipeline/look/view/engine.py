"""DuckDB over the files of a place, and nothing else: it reads no other file, writes none, loads nothing, calls nobody.

Three things see to that, because each alone has a hole. The engine may open the listed files and no others, and its
configuration is locked; but DuckDB lets a listed file be written. So SQL of people has to be one SELECT; but a SELECT
can have a COPY or an INSERT in its WITH. So it runs as a subquery, where DuckDB takes neither.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.look.view.columns import quoted

MEMORY = "1GB"
"""What DuckDB may hold; a query that needs more fails, because nothing is written to disk."""
MAX_ROWS = 1000
"""Rows that a person's query gives."""
MAX_TEXT = 2000
"""Characters of a value that it gives."""
MAX_RESULT = 4_000_000
"""Characters of all values that it gives."""
_PLAIN = {"BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT", "UINTEGER", "FLOAT", "DOUBLE"}
"""Types whose values JavaScript can hold; the others go as text."""


class SQLError(ValueError):
    """A query that cannot be answered. The message may quote data, so it is for whoever asked and for no log."""


class Engine:
    """Views by name over lists of files. Use one `asking` for each request."""

    def __init__(
        self, files: Mapping[str, list[str]], filesystem: Any = None, aliases: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """`files` are paths that DuckDB can open, or that `filesystem` (fsspec) can; `aliases` are further names of
        some. Raises `DamagedError` where the first of a list is no Parquet file."""
        self._database = duckdb.connect(config={"python_enable_replacements": "false"})
        run = self._database.execute
        if filesystem is not None:
            self._database.register_filesystem(filesystem)
        allowed = sorted({file for listed in files.values() for file in listed})
        for setting, value in (
            ("allowed_paths", f"[{', '.join(map(_literal, allowed))}]"),
            ("memory_limit", _literal(MEMORY)),
            ("threads", str(os.cpu_count() or 1)),
            ("temp_directory", "''"),
            ("parquet_metadata_cache", "true"),
            ("autoinstall_known_extensions", "false"),
            ("autoload_known_extensions", "false"),
            ("allow_community_extensions", "false"),
            ("enable_external_access", "false"),
        ):
            run(f"SET {setting} = {value}")
        run("CREATE SCHEMA located")
        for name, listed in files.items():
            if not listed:
                continue
            # A folder's name may read like a column's value (language=en), and is none here.
            scan = f"read_parquet([{', '.join(map(_literal, listed))}], hive_partitioning = false)"
            try:
                run(f"CREATE VIEW {quoted(name)} AS SELECT * FROM {scan}")
            except duckdb.Error:  # this opens the first file alone
                raise DamagedError(
                    f"{listed[0]}: is damaged or no Parquet file; run again to make it anew, or view another stage"
                ) from None
            for alias in (aliases or {}).get(name, ()):
                run(f"CREATE VIEW {quoted(alias)} AS FROM {quoted(name)}")
            run(f"CREATE VIEW {located(name)} AS SELECT *, file_index, file_row_number FROM {scan}")
        run("SET lock_configuration = true")

    def asking(self, seconds: float) -> "Asking":
        """For one request, which may take so long."""
        return Asking(self._database.cursor(), seconds)


def located(name: str) -> str:
    """The view that also says where a row is: columns file_index and file_row_number, both from 0."""
    return f"located.{quoted(name)}"


class Asking:
    """Queries of one request, which end together: in time, or when whoever asked has gone (`stop`)."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, seconds: float) -> None:
        self._cursor = cursor
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._stopped = threading.Event()
        self._ended = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def rows(
        self, sql: str, parameters: Any = (), tables: Mapping[str, pa.Table] | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of our own SQL. `tables` are there under their names. Raises `SQLError`."""
        with self._watched(tables):
            return self._cursor.execute(sql, parameters).fetchall()

    def integers(self, sql: str, parameters: Any = ()) -> npt.NDArray[np.int64]:
        """The one column of our own SQL, int64 [rows]."""
        with self._watched(None):
            (column,) = self._cursor.execute(sql, parameters).fetchnumpy().values()
            return np.asarray(column, np.int64)

    def persons_sql(self, sql: str) -> dict[str, Any]:
        """The answer to SQL that a person wrote: {"columns": [{"name", "type"}], "rows": [[value, …]], "more": bool,
        "clipped": bool}. At most `MAX_ROWS` rows, `MAX_TEXT` characters of a value, `MAX_RESULT` in all."""
        with self._watched(None):
            query = _one_select(self._cursor, sql)
            described = self._cursor.execute(f"DESCRIBE SELECT * FROM (\n{query}\n)").fetchall()
            names = [f"c{i}" for i in range(len(described))]
            cells = [
                name if kind in _PLAIN else f"left(CAST({name} AS VARCHAR), {MAX_TEXT + 1})"
                for name, (_, kind, *_) in zip(names, described, strict=True)
            ]
            self._cursor.execute(
                f"SELECT {', '.join(cells)} FROM (\n{query}\n) AS result({', '.join(names)}) LIMIT {MAX_ROWS + 1}"
            )
            rows, size, clipped = list[list[Any]](), 0, False
            while size < MAX_RESULT and len(rows) <= MAX_ROWS and (row := self._cursor.fetchone()):
                clipped = clipped or any(isinstance(value, str) and len(value) > MAX_TEXT for value in row)
                rows.append([_cell(value) for value in row])
                size += sum(len(value) if isinstance(value, str) else 8 for value in row)
        return {
            "columns": [{"name": name, "type": kind} for name, kind, *_ in described],
            "rows": rows[:MAX_ROWS],
            "more": len(rows) > MAX_ROWS or size >= MAX_RESULT,
            "clipped": clipped,
        }

    @contextlib.contextmanager
    def _watched(self, tables: Mapping[str, pa.Table] | None) -> Iterator[None]:
        """Interrupts what runs inside when it is time, and says in words what goes wrong."""
        self._ended.clear()
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        try:
            for name, table in (tables or {}).items():
                self._cursor.register(name, table)
            yield
        except duckdb.InterruptException:
            if self._stopped.is_set():
                raise SQLError("stopped, because nobody waits for the answer") from None
            raise SQLError(
                f"took longer than {self._seconds:g} seconds and was stopped; ask for less, such as one file or fewer "
                "columns"
            ) from None
        except duckdb.OutOfMemoryException:
            raise SQLError(
                f"needs more than {MEMORY} of memory; ask for less, such as fewer columns or groups"
            ) from None
        except duckdb.Error as error:
            raise SQLError(str(error)) from None
        finally:
            self._ended.set()
            watch.join()

    def _watch(self) -> None:
        # Repeated: an interruption between two queries is forgotten when the next one begins.
        while not self._ended.wait(0.05):
            if self._stopped.is_set() or time.monotonic() > self._deadline:
                self._cursor.interrupt()


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _one_select(cursor: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The text of the only statement in `sql`. Raises `SQLError` where that is not a SELECT (or a DESCRIBE, SHOW or
    SUMMARIZE, which DuckDB takes for one)."""
    statements = cursor.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise SQLError("only one query that reads can be asked: SELECT, WITH … SELECT, DESCRIBE, SHOW or SUMMARIZE")
    return str(statements[0].query).strip().rstrip(";")


def _cell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return value[:MAX_TEXT] + "…"
    return value
