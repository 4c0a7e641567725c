"""Python on the pages runs as it is written, where a run like the quick start's has finished, and SQL in the locked
DuckDB. tests/readers has other versions of it, and readers that are not here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tests.support import snippets
from tests.support.runs import make_run


@pytest.fixture(scope="module")
def after_make_run(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A checkout's folder as `make run` leaves it."""
    folder = tmp_path_factory.mktemp("checkout")
    make_run(folder / "runs/quickstart", {"method": "both", "top_k": 64})
    return folder


def run(code: str, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("snippet", snippets.runnable("python"), ids=str)
@pytest.mark.long
def test_python_of_the_pages_runs(snippet: snippets.Snippet, after_make_run: Path, tmp_path: Path) -> None:
    done = run(snippets.BEFORE.get(snippet.page, "") + snippet.text, after_make_run, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("snippet", snippets.runnable("sql"), ids=str)
def test_sql_of_the_pages_runs(
    snippet: snippets.Snippet, after_make_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(after_make_run)
    assert duckdb.execute(snippet.text).fetchall()


def test_the_card_loads_its_dataset(after_make_run: Path, tmp_path: Path) -> None:
    dataset = after_make_run / "runs/quickstart/dataset"
    (snippet,) = snippets.of_page("README.md", (dataset / "README.md").read_text())
    done = run(f"{snippet.text}\nprint(dataset.num_rows)", dataset, tmp_path)
    assert (done.returncode, int(done.stdout)) == (0, 13), done.stderr


def test_no_code_hides_from_these_tests() -> None:
    """A block without a language, or indented, is a command or a drawing; a block that is not run says why."""
    for page in snippets.pages():
        text = page.read_text()
        named = snippets.of_page(page.name, text)
        assert all(s.language in ("python", "sql", "yaml", "json") for s in named), page
        for snippet in named:
            text = text.replace(snippet.text, "")
        assert not re.search(r"^\s*(SELECT|import|from \S+ import)\b", text, re.M), page
        assert text.count(snippets.NOT_RUN) == sum(bool(s.reason) for s in named), page


def test_blocks_are_found_as_they_are_written() -> None:
    page = "a\n```python\nx = 1\n```\n<!-- not run: needs a GPU -->\n\n```sql\nSELECT 1\n```\n```\ndrawing\n```\n"
    assert snippets.of_page("p.md", page) == [
        ("p.md", 3, "python", "x = 1\n", ""),
        ("p.md", 8, "sql", "SELECT 1\n", "needs a GPU"),
    ]
    assert [s.page for s in snippets.runnable("sql")] == ["docs/inspecting.md"] * 2 + ["docs/targets.md"]
    assert [s.page for s in snippets.runnable("python", "polars")] == ["docs/inspecting.md"]
