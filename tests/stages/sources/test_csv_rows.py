"""CSV row by row, as Python and pandas write it: what a bad row costs, and messages that were printed."""

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pytest

from stillhouse.stages.sources import csv_rows
from stillhouse.stages.sources.row import INVALID_CSV, ROW_TOO_LARGE, TRUNCATED_SOURCE, UNDECODABLE, SourceError
from tests.support.ingesting import ingested
from tests.support.source_files import COMPRESS, errors, jsonl, parquet, read, values

TEXTS = ['quoted "twice", comma', "two\nlines\r\nor three", "tab\tand; semicolon", "é 漢 😀", "'", "\\", " spaces "]


def written(rows: list[list[str]], **options: Any) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, **options).writerows(rows)
    return out.getvalue().encode()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_texts_come_back_as_they_were(tmp_path: Path, delimiter: str, end: str, mark: bytes) -> None:
    data = written(
        [["id", "prompt"], *([f"{i}", text] for i, text in enumerate(TEXTS))], delimiter=delimiter, lineterminator=end
    )
    for name, content in {"a.csv": mark + data, "a.tsv.gz": COMPRESS["gz"](mark + data)}.items():
        (tmp_path / name).write_bytes(content)
        assert values(read(tmp_path / name)) == [{"id": f"{i}", "prompt": text} for i, text in enumerate(TEXTS)]


def test_a_row_that_cannot_be_read_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_ROW_BYTES", 5000)
    good = b"1,good\n"
    bad = {
        b"1\n": INVALID_CSV,
        b"1,2,3\n": INVALID_CSV,
        b'1,"a"b\n': INVALID_CSV,
        b'1,"\xff\xfe"\n': UNDECODABLE,
        b"1," + b"x" * 5000 + b"\n": ROW_TOO_LARGE,
        b"1," + b"x" * 50000 + b"\n": ROW_TOO_LARGE,
    }
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,prompt\n" + good + b"".join(row + good for row in bad) + b'\n\n2,"cut')
    rows = read(path)
    assert errors(rows) == [None, *(error for reason in bad.values() for error in (reason, None)), TRUNCATED_SOURCE]
    assert values(rows[:-1:2]) == [{"id": "1", "prompt": "good"}] * (len(bad) + 1)


@pytest.mark.parametrize("num_lines", [3, 4000])
def test_a_quote_without_its_end_takes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_lines: int
) -> None:
    monkeypatch.setattr(csv_rows, "MAX_ROW_BYTES", 5000)
    (tmp_path / "a.csv").write_bytes(b'id,prompt\n1,good\n2,"bad\n' + b"3,lost\n" * num_lines)
    assert errors(read(tmp_path / "a.csv")) == [None, TRUNCATED_SOURCE]


def test_an_empty_field_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,system,prompt\n,"",Hello\n')
    assert values(read(tmp_path / "a.csv")) == [{"id": None, "system": None, "prompt": "Hello"}]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PAR1....", "is Parquet"),
        ("a,b".encode("utf-16"), "UTF-16"),
        (b"<html>", "HTML"),
        (b"\n", "name each column once"),
        (b"prompt,prompt\nx,y\n", "name each column once"),
        (b"prompt,,\nx,y,z\n", "name each column once"),
        (b'"prompt\nx,y,z\n', "name each column once"),
    ],
)
def test_what_is_no_csv_says_what_it_is(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(SourceError, match=what):
        read(tmp_path / "a.csv")


MESSAGES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": 'It\'s "here"\n'}, {"role": "assistant", "content": "Yes."}],
    [{"role": "user", "content": "None, True, \\d [] {}"}, {"role": "assistant", "content": None}],
]


def test_messages_that_pandas_printed_are_messages(tmp_path: Path) -> None:
    pd.DataFrame({"messages": MESSAGES}).to_csv(tmp_path / "a.csv")  # with its index, whose name is empty
    (tmp_path / "b.jsonl").write_bytes(jsonl([{"messages": str(found)} for found in MESSAGES]))
    asked = [[message["content"] for message in found if message["role"] == "user"] for found in MESSAGES]
    assert [row["user_turns"] for row in ingested(read(tmp_path / "a.csv", tmp_path / "b.jsonl"))] == [*asked, *asked]


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': open('/etc/passwd')}]",
        "[{'role': 'user', 'content': 'cut",
        "[{'role': 'user'} {'role': 'user'}]",  # a NumPy array, printed
        "[{'a': " + "-" * 100_000 + "1}]",
        "[{'a': " + "[" * 5_000 + "]" * 5_000 + "}]",
        "{'a': " + "{" * 300_000,
        "[{'a': {[]: 1}}]",
    ],
)
def test_other_texts_of_python_are_no_messages(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"messages": text}, {"prompt": text}]))
    refused, kept = ingested(read(tmp_path / "a.jsonl"))
    assert (refused["drop_reason"], kept["user_turns"]) == ("malformed_conversation", [text])


def test_tables_beside_data_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "statistics.csv").write_text("prompt\nnot this\n")
    assert values(read(tmp_path)) == [{"prompt": "not this"}]
    (tmp_path / "z.parquet").write_bytes(parquet([{"prompt": "this"}]))
    assert values(read(tmp_path)) == [{"prompt": "this"}]
    assert values(read(tmp_path / "*.csv")) == [{"prompt": "not this"}]
