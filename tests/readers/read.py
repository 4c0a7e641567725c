"""`read.py READER FOLDER...`: all columns of all rows of each folder's Parquet files, as a reader gives them, in JSON.

A line for each folder. `read.py READER --sql QUERY` prints what a query gives. This runs where one reader is installed,
without this project.
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Rows = Iterable[dict[str, Any]]


def duckdb(path: str) -> Rows:
    return duckdb_sql(f"SELECT * FROM '{path}'")


def duckdb_sql(query: str) -> Rows:
    import duckdb

    result = duckdb.sql(query)
    return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]


def polars(path: str) -> Rows:
    import polars

    return polars.read_parquet(path).to_dicts()


def polars_lazy(path: str) -> Rows:
    import polars

    return polars.scan_parquet(path).collect(engine="streaming").to_dicts()


def pandas(path: str) -> Rows:
    import pandas

    return _records(pandas.read_parquet(path))


def _records(frame: Any) -> Rows:
    """A null is NaN in a column of pandas."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def fastparquet(path: str) -> Rows:
    import fastparquet

    return _records(fastparquet.ParquetFile(path).to_pandas())


def pyarrow(path: str) -> Rows:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def datasets(*paths: str) -> Rows:
    return _datasets(paths, streaming=False)


def datasets_streaming(*paths: str) -> Rows:
    return _datasets(paths, streaming=True)


def _datasets(paths: tuple[str, ...], streaming: bool) -> Rows:
    """All files of a folder at once, as people load one: `datasets` takes no data set without a row."""
    import datasets

    rows: Any = datasets.load_dataset("parquet", data_files=list(paths), split="train", streaming=streaming)
    return list(rows)


def chdb(path: str) -> Rows:
    return chdb_sql(f"SELECT * FROM file('{path}', Parquet)")


def chdb_sql(query: str) -> Rows:
    import chdb

    # Integers of 64 bits are strings in ClickHouse's JSON unless asked for.
    text = str(chdb.query(f"{query} SETTINGS output_format_json_quote_64bit_integers=0", "JSONEachRow"))
    return [json.loads(line) for line in text.split("\n") if line]


def datafusion(path: str) -> Rows:
    import datafusion

    return datafusion.SessionContext().read_parquet(path).to_pylist()


def spark(path: str) -> Rows:
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    return [row.asDict(recursive=True) for row in session.read.parquet(path).collect()]


def plain(value: Any) -> Any:
    """As JSON has it. Infinite values and values that are none stay what they are in JSON as Python writes it."""
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        value = value.tolist()
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bytes | bytearray):
        return bytes(value).hex()
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value


FILE_BY_FILE: tuple[Callable[[str], Rows], ...] = (
    duckdb,
    polars,
    polars_lazy,
    pandas,
    fastparquet,
    pyarrow,
    chdb,
    datafusion,
    spark,
)
SQL = {"duckdb": duckdb_sql, "chdb": chdb_sql}


def rows_of(reader: str, folder: str) -> Rows:
    paths = [str(path) for path in sorted(Path(folder).glob("*.parquet"))]
    if reader == "datasets":
        return datasets(*paths)
    if reader == "datasets_streaming":
        return datasets_streaming(*paths)
    (read,) = (f for f in FILE_BY_FILE if f.__name__ == reader)
    return [row for path in paths for row in read(path)]


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    queried = arguments[0] == "--sql"
    for rows in [SQL[name](arguments[1])] if queried else (rows_of(name, folder) for folder in arguments):
        print(json.dumps([plain(row) for row in rows]))
