"""SQL of people can read the files that are shown, and do nothing else, for a while and within limits."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.look.view.engine import MAX_ROWS, MAX_TEXT, Engine, SQLError

NUM_ROWS = 3000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a name that is not easily quoted, beside one that is not shown."""
    folder = tmp_path_factory.mktemp("files")
    pq.write_table(pa.table({"secret": ["canary"]}), folder / "other.parquet")
    path = folder / 'it\'s "one".parquet'
    lists = pa.array([[float(i)] * 40 for i in range(NUM_ROWS)], pa.list_(pa.float32()))
    pq.write_table(
        pa.table({"n": pa.array(range(NUM_ROWS)), "text": [f"row {i}" for i in range(NUM_ROWS)], "list": lists}), path
    )
    return path


@pytest.fixture(scope="module")
def engine(file: Path) -> Engine:
    return Engine({"published": [str(file)]})


def ask(engine: Engine, sql: str, seconds: float = 20.0) -> list[list[object]]:
    rows: list[list[object]] = engine.asking(seconds).persons_sql(sql)["rows"]
    return rows


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT sum(n), count(*) FROM published", [[str(sum(range(NUM_ROWS))), str(NUM_ROWS)]]),
        ("WITH odd AS (SELECT n FROM published WHERE n % 2 = 1) SELECT count(*)::INT FROM odd; ", [[NUM_ROWS // 2]]),
        ("FROM published SELECT n::INT ORDER BY n DESC LIMIT 2 -- the last", [[NUM_ROWS - 1], [NUM_ROWS - 2]]),
        ("SELECT 1 AS a, 2 AS a", [[1, 2]]),
        ("SHOW TABLES", [["published"]]),
        ("SELECT 9007199254740993, 'nan'::FLOAT", [[9007199254740993, "nan"]]),
    ],
)
def test_what_reads_is_answered(engine: Engine, sql: str, expected: list[list[object]]) -> None:
    found = ask(engine, sql)
    assert [[str(value) for value in row] for row in found] == [[str(value) for value in row] for row in expected]


def test_a_folder_that_is_called_like_a_value_replaces_no_column(tmp_path: Path) -> None:
    path = tmp_path / "language=xx/run/00000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"language": ["en", "de"]}), path)
    engine = Engine({"published": [str(path)]})
    assert ask(engine, "FROM published") == [["en"], ["de"]]
    assert engine.asking(20.0).rows("SELECT language, file_row_number FROM located.published") == [("en", 0), ("de", 1)]


READS_ELSEWHERE = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "FROM '/etc/passwd'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_parquet('{folder}/other.parquet')",
    "SELECT * FROM parquet_metadata('{folder}/other.parquet')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM 'http://127.0.0.1:9/x.parquet'",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM duckdb_secrets()",
    "FROM engine",
]
DOES_SOMETHING = [
    "COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)",
    "COPY (SELECT 1) TO '{folder}/new.csv'",
    "WITH x AS (COPY (SELECT 1 AS a) TO '{file}' (USE_TMP_FILE false)) FROM x",
    "WITH x AS (COPY (SELECT 1 AS a) TO '{folder}/new.csv') FROM x",
    "WITH x AS (INSERT INTO published VALUES (1) RETURNING *) FROM x",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)",
    "PREPARE p AS COPY (SELECT 1) TO '{file}'",
    "SELECT 1; COPY (SELECT 1) TO '{file}'",
    "SELECT 1) AS a; COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false); SELECT * FROM (SELECT 1",
    "CREATE TABLE t AS SELECT 1",
    "CREATE OR REPLACE VIEW published AS SELECT 1",
    "DROP VIEW published",
    "ATTACH '{folder}/new.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET memory_limit = '100GB'",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA enable_profiling",
    "CALL enable_logging()",
    "SELECT * FROM enable_logging(storage = 'file', storage_config = {{'path': '{folder}/log'}})",
    "EXPORT DATABASE '{folder}/new'",
    "",
    "SELECT 1 /*",
]


@pytest.mark.parametrize("sql", [*READS_ELSEWHERE, *DOES_SOMETHING])
def test_nothing_else_is(engine: Engine, file: Path, sql: str) -> None:
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    with pytest.raises(SQLError) as raised:
        ask(engine, sql.format(file=str(file).replace("'", "''"), folder=file.parent))
    assert "canary" not in str(raised.value)
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before
    assert ask(engine, "SELECT max(n)::INT FROM published") == [[NUM_ROWS - 1]]


def test_it_takes_no_longer_than_it_may(engine: Engine) -> None:
    with pytest.raises(SQLError, match="took longer than"):
        ask(engine, "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = 1", 0.3)


def test_it_stops_when_nobody_waits(engine: Engine) -> None:
    asking = engine.asking(60.0)
    asking.stop()
    with pytest.raises(SQLError, match="nobody waits"):
        asking.persons_sql("SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = 1")


def test_memory_has_a_limit(engine: Engine) -> None:
    with pytest.raises(SQLError, match="of memory"):
        ask(engine, "SELECT list(range) FROM range(1000000000)")


def test_long_answers_are_cut_and_say_so(engine: Engine) -> None:
    answer = engine.asking(20.0).persons_sql("SELECT n::INT FROM published ORDER BY n")
    assert [row[0] for row in answer["rows"]] == list(range(MAX_ROWS))
    assert answer["more"]
    answer = engine.asking(20.0).persons_sql(f"SELECT repeat('x', {MAX_TEXT}), repeat('y', {MAX_TEXT + 1})")
    assert answer["rows"] == [["x" * MAX_TEXT, "y" * MAX_TEXT + "…"]]
    assert answer["clipped"]
    assert not answer["more"]
    whole = engine.asking(20.0).persons_sql("SELECT text FROM published LIMIT 3")
    assert not whole["more"]
    assert not whole["clipped"]
    wide = engine.asking(20.0).persons_sql(
        "SELECT repeat('x', 2000), repeat('y', 2000), repeat('z', 2000) FROM published"
    )
    assert 1 < len(wide["rows"]) < MAX_ROWS
    assert wide["more"]
