"""Published files, exports and stages' files in others' readers, each installed alone (`make test-readers`)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.dataset.export import export
from stillhouse.schemas import targets
from stillhouse.stages.layouts import LAYOUTS
from tests.support import snippets
from tests.support.data import ROOT
from tests.support.runs import make_run

INSTALLED = ROOT / "data/readers"
READERS = [
    ("duckdb-1.4", "duckdb"),
    ("duckdb", "duckdb"),
    ("polars", "polars"),
    ("polars", "polars_lazy"),
    ("pandas", "pandas"),
    ("pyarrow-15", "pyarrow"),
    ("pyarrow", "pyarrow"),
    ("datasets", "datasets"),
    ("datasets", "datasets_streaming"),
    ("chdb", "chdb"),
    ("datafusion", "datafusion"),
    ("spark", "spark"),
    ("hyparquet", "hyparquet"),
]
"""Environments, and the functions of read.py (for hyparquet: read.js) that run in them."""
PROGRAMS = {"spark": "java", "hyparquet": "npm"}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """Two runs, each with a shard without rows, and exports of the first one in every layout that has Parquet."""
    folder = tmp_path_factory.mktemp("made")
    run = make_run(folder / "runs/quickstart", {"method": "both", "top_k": 64})
    make_run(folder / "runs/precision", {"precision": 1 / 64, "top_k": 16, "top_p": 0.8})
    for layout in LAYOUTS:
        if layout != "openai":
            export(str(run), layout, str(folder / "exports" / layout), num_workers=1)
    return folder


def folders(made: Path, part: str) -> list[Path]:
    """Those of published files of both runs and of all exports; or of what else a run leaves for people to open."""
    if part == "published":
        return sorted({path.parent for path in made.rglob("data/*.parquet")})
    run = made / "runs/quickstart"
    others = sorted({path.parent for path in run.rglob("*.parquet") if path.relative_to(run).parts[0] != "state"})
    return [folder for folder in others if folder.name != "data"]


def run(environment: str, *arguments: str, home: Path, folder: Path | None = None) -> str:
    """Standard output of read.py or read.js, which sees its own reader and nothing of this environment."""
    program = PROGRAMS.get(environment)
    if program is not None and shutil.which(program) is None:
        pytest.skip(f"{environment} needs {program}, which is not on PATH")
    installed = INSTALLED / environment
    assert installed.exists(), "run `make test-readers`, which installs the readers"
    if environment == "hyparquet":
        shutil.copy(ROOT / "tests/readers/read.js", installed)
        line = ["node", str(installed / "read.js"), *arguments[1:]]
    else:  # -S: without the packages of the interpreter's own environment
        line = [sys.executable, "-S", *arguments]
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{installed}{os.pathsep}{home}",
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    done = subprocess.run(line, cwd=folder or home, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


READ = str(ROOT / "tests/readers/read.py")


@pytest.mark.parametrize("part", ["published", "stages"])
@pytest.mark.parametrize(("environment", "function"), READERS)
def test_every_column_has_its_values(environment: str, function: str, part: str, made: Path, tmp_path: Path) -> None:
    """Compared with what PyArrow, which wrote the files, reads: names, nulls and every bit of every number."""
    tables = {str(folder): pq.ParquetDataset(folder).read() for folder in folders(made, part)}
    if environment == "datasets":  # refuses a data set without a row, such as the ledger of a stage that dropped none
        tables = {folder: table for folder, table in tables.items() if table.num_rows}
    assert len(tables) > 5
    script = [] if environment == "hyparquet" else [READ]
    lines = run(environment, *script, function, *tables, home=tmp_path).removesuffix("\n").split("\n")
    for (folder, table), line in zip(tables.items(), lines, strict=True):
        rows: list[dict[str, Any]] = json.loads(line)
        assert len(rows) == table.num_rows, folder
        for row in rows:
            assert list(row) == table.column_names, folder
        for column in table.schema:
            read = [row[column.name] for row in rows]
            wanted = table.column(column.name).to_pylist()
            if environment == "chdb":
                wanted = [of_clickhouse(value, column.type) for value in wanted]
            assert as_stored(read, column.type) == as_stored(wanted, column.type), (folder, column.name)


def of_clickhouse(value: Any, kind: pa.DataType) -> Any:
    """ClickHouse has no null tuples and no null arrays."""
    if value is None and pa.types.is_struct(kind):
        return dict.fromkeys(kind.names)
    return [] if value is None and pa.types.is_list(kind) else value


def as_stored(values: list[Any], kind: pa.DataType) -> list[Any]:
    """Numbers as the column holds them: a float32 survives text in any spelling. Raises for what does not fit."""
    if pa.types.is_binary(kind):
        return [value.hex() if isinstance(value, bytes) else value for value in values]
    array: list[Any] = pa.array(values, kind).to_pylist()
    return array


def test_what_fastparquet_does_not_read(made: Path, tmp_path: Path) -> None:
    """docs/compatibility.md says so; once it does, the page can change."""
    with pytest.raises(AssertionError, match="NotImplementedError: Encoding 9"):
        run("fastparquet", READ, "fastparquet", str(made / "runs/quickstart/dataset/data"), home=tmp_path)


DECODE = """
import json, sys
import pyarrow.parquet as pq
from stillhouse_targets import decode
for row in decode(pq.read_table(sys.argv[1]), sys.argv[2]):
    print(json.dumps([row.ids.tolist(), row.logprobs.tolist(), row.tail.tolist()]))
"""


@pytest.mark.parametrize("environment", ["pyarrow-15", "pyarrow"])
@pytest.mark.parametrize(("name", "kind"), [("quickstart", "target"), ("quickstart", "draw"), ("precision", "target")])
def test_the_decoder_runs_where_it_says_that_it_does(
    environment: str, name: str, kind: Any, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "stillhouse_targets").symlink_to(ROOT / "schemas/targets")
    folder = made / "runs" / name / "dataset/data"
    lines = run(environment, "-c", DECODE, str(folder), kind, home=tmp_path).splitlines()
    for line, wanted in zip(lines, targets.decode(pq.ParquetDataset(folder).read(), kind), strict=True):
        ids, logprobs, tail = json.loads(line)
        assert ids == wanted.ids.tolist()
        np.testing.assert_array_equal(np.array(logprobs, np.float32), wanted.logprobs.astype(np.float32))
        np.testing.assert_array_equal(np.array(tail, np.float32), wanted.tail.astype(np.float32))


@pytest.mark.parametrize("environment", ["duckdb-1.4", "duckdb"])
@pytest.mark.parametrize("snippet", snippets.runnable("sql"), ids=str)
def test_sql_of_the_pages_runs(snippet: snippets.Snippet, environment: str, made: Path, tmp_path: Path) -> None:
    line = run(environment, READ, "duckdb", "--sql", snippet.text.rstrip().rstrip(";"), home=tmp_path, folder=made)
    assert json.loads(line)


@pytest.mark.parametrize(
    ("package", "snippet"), [(p, s) for p in snippets.OF_READERS for s in snippets.runnable("python", p)], ids=str
)
def test_python_of_the_pages_runs(package: str, snippet: snippets.Snippet, made: Path, tmp_path: Path) -> None:
    assert run(package, "-c", snippet.text, home=tmp_path, folder=made)


@pytest.mark.parametrize("environment", ["duckdb-1.4", "duckdb"])
def test_the_query_of_targets_md_finds_the_most_probable_tokens(environment: str, made: Path, tmp_path: Path) -> None:
    (snippet,) = (s for s in snippets.runnable("sql") if s.page == "docs/targets.md")
    line = run(environment, READ, "duckdb", "--sql", snippet.text.rstrip().rstrip(";"), home=tmp_path, folder=made)
    found = {(row["sample_id"], row["s"]): (row["ids"], row["logprobs"]) for row in json.loads(line)}
    table = pq.ParquetDataset(made / "runs/quickstart/dataset/data").read()
    wanted = {
        (sample, s): (row.ids[s, :3].tolist(), row.logprobs[s, :3].tolist())
        for sample, row in zip(table["sample_id"].to_pylist(), targets.decode(table, "target"), strict=True)
        for s in range(len(row.ids))
    }
    assert found == wanted
