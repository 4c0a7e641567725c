"""Which files a source has, in which order, and what is said of a source that has none."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import SourceError, formats, read_rows
from tests.support.source_files import ROWS, array, jsonl, parquet, read, values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows 0..5 in sorted files of several kinds, among others that are not data."""
    for i, name in enumerate(
        ["b.jsonl", "c/d/e.jsonl.gz", "c/x y%20é.parquet", "d.json", "p.parquet/part-0.parquet", "z.jsonl"]
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        encode: dict[str, Callable[[list[Any]], bytes]]
        encode = {"parquet": parquet, "gz": lambda rows: gzip.compress(jsonl(rows)), "json": array}
        (tmp_path / name).write_bytes(encode.get(name.rpartition(".")[2], jsonl)([ROWS[i]]))
    for name in [
        "README.md",
        ".hidden.jsonl",
        "_SUCCESS",
        "_tmp/x.jsonl",
        "c/.cache/y.jsonl",
        "x.parquet.gz",
        "Makefile",
        "dataset_infos.json",
        "c/dataset_info.json",
        "c/state.json",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([{"not": "data"}]))
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([""], [0, 1, 2, 3, 4, 5]),
        (["/"], [0, 1, 2, 3, 4, 5]),
        (["/c"], [1, 2]),
        (["/p.parquet"], [4]),
        (["/*.jsonl"], [0, 5]),
        (["/[cz]*/*.parquet"], [2]),
        (["/c/d/*"], [1]),
        (["/z.jsonl", "/c", "/b.jsonl"], [5, 1, 2, 0]),
    ],
)
def test_which_files_and_in_which_order(folder: Path, prefix: str, paths: list[str], expected: list[int]) -> None:
    assert values(read(*(f"{prefix}{folder}{path}" for path in paths))) == [ROWS[i] for i in expected]


def test_a_glob_may_cross_folders_and_a_literal_name_beats_a_glob(folder: Path) -> None:
    assert values(read(f"{folder}/**/*.gz")) == [ROWS[1]]
    (folder / "q[1].jsonl").write_bytes(jsonl([ROWS[9]]))
    assert values(read(f"{folder}/q[1].jsonl")) == [ROWS[9]]


def test_linked_folders_are_read_once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "sub").mkdir()
    (other / "sub/y.jsonl").write_bytes(jsonl([ROWS[7]]))
    (other / "sub/back").symlink_to(folder)
    (folder / "y").symlink_to(other)
    (folder / "a").symlink_to(folder / "c")
    (folder / "c/up").symlink_to(folder)
    (folder / "_no").symlink_to(tmp_path_factory.mktemp("none"))
    (folder / "y2").symlink_to(other)
    assert values(read(folder)) == [ROWS[i] for i in (0, 1, 2, 3, 4, 7, 5)]


def test_a_glob_that_spells_hidden_names_finds_them(folder: Path) -> None:
    for i, name in enumerate((".h.jsonl", "_c1.jsonl", "_c2.txt")):
        (folder / "c" / name).write_bytes(jsonl([ROWS[i]]))
    for prefix in ("", "file://"):
        assert values(read(f"{prefix}{folder}/c/_c*")) == [ROWS[1]]
        assert values(read(f"{prefix}{folder}/c/.h*.jsonl")) == [ROWS[0]]
        with pytest.raises(SourceError, match="hidden or of other kinds"):
            read(f"{prefix}{folder}/c/*c*.jsonl")


def test_a_file_url_is_percent_encoded(folder: Path) -> None:
    assert values(read((folder / "c/x y%20é.parquet").as_uri())) == [ROWS[2]]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}/none.jsonl", "does not exist"),
        ("{}/notes.txt", "no known suffix"),
        ("{}/empty", "matches no data file"),
        ("{}/*.nope", "matches no data file"),
        ("{}/broken.parquet", "footer"),
        ("{}/zero.parquet", "footer"),
        ("{}/plain.jsonl.gz", "not a gzip stream"),
        ("{}/plain.json.zst", "not a zstd stream"),
        ("file://{}/none.jsonl", "matches no data file"),
        ("file://{}/notes.txt", "no known suffix"),
        ("file://{}/*.nope", "matches no data file"),
        ("file://{}/broken.parquet", "footer"),
    ],
)
def test_a_wrong_source_is_one_clear_sentence(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_bytes(b"canary")
    (tmp_path / "broken.parquet").write_bytes(parquet(ROWS)[:-6])
    (tmp_path / "zero.parquet").write_bytes(b"")
    (tmp_path / "plain.jsonl.gz").write_bytes(jsonl(ROWS))
    (tmp_path / "plain.json.zst").write_bytes(array(ROWS))
    with pytest.raises(SourceError, match=message) as caught:
        read(path.format(tmp_path))
    text = str(caught.value)
    assert "; " in text
    assert "\n" not in text
    assert caught.value.__cause__ is None
    assert "turn 1" not in text


def test_a_wrong_path_fails_before_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    with pytest.raises(SourceError, match="does not exist"):
        read_rows(SourceConfig(path=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *(("a.parquet", True), ("A.JSONL", True), ("a.ndjson.GZ", True), ("a.json.zst", True)),
        *(("a.parquet.gz", False), ("a.gz", False), ("a.jsonl.bz2", False), ("jsonl", False), (".jsonl", False)),
    ],
)
def test_suffixes(name: str, known: bool) -> None:
    assert formats.is_known(name) == known
    if not known:
        suffixes = (
            ".parquet, .jsonl, .ndjson, .json, .arrow, .feather, .csv, .tsv (all but .parquet, .arrow, .feather also"
        )
        with pytest.raises(SourceError) as caught:
            formats.format_of(name)
        assert str(caught.value) == f"{name}: has no known suffix; rename it to one of {suffixes} with .gz, .zst)"
