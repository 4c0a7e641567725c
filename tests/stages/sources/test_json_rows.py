"""JSON row by row: what a bad line or element costs, and arrays cut anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.stages.sources import Row, json_rows
from stillhouse.stages.sources.row import INVALID_JSON, ROW_TOO_LARGE, TRUNCATED_SOURCE, UNDECODABLE
from tests.support.source_files import conversation, errors, jsonl, read, values


def test_a_line_that_cannot_be_read_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 5000)
    good = b'{"id": 1}'
    bad = {
        b'{"id": "\xff\xfe"}': UNDECODABLE,
        "{}".encode("utf-16"): UNDECODABLE,
        b'{"id": 1': INVALID_JSON,
        b"{'id': 1}": INVALID_JSON,
        b'{"id": "a\tb"}': INVALID_JSON,
        b'{"id": 1} {"id": 2}': INVALID_JSON,
        b"\x00\x00\x00": INVALID_JSON,
        b'{"id": ' + b"9" * 4500 + b"}": INVALID_JSON,
        b'{"id": ' + b"[" * 101 + b"]" * 101 + b"}": INVALID_JSON,
        b"[" * 4900: INVALID_JSON,
        b'{"id": "' + b"x" * 5000 + b'"}': ROW_TOO_LARGE,
        b'{"id": "' + b"x" * 50000 + b'"}': ROW_TOO_LARGE,
    }
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + b"\n" + b"".join(line + b"\n" + good + b"\n" for line in bad))
    rows = read(path)
    assert errors(rows) == [None, *(error for reason in bad.values() for error in (reason, None))]
    assert values(rows[::2]) == [{"id": 1}] * (len(bad) + 1)


def test_nesting_is_counted_outside_strings(tmp_path: Path) -> None:
    deepest = json.loads("[" * 99 + "]" * 99)
    wide: list[Any] = [[], {}] * 200
    rows = [{"text": '["\\' * 300}, {"wide": wide}, {"deep": deepest}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    assert values(read(tmp_path / "a.jsonl")) == rows


TRICKY: list[Any] = [
    {"a": 'x"],}[{\\'},
    [1, [2, {"b": "]"}]],
    "bare ] , string",
    -12.5e3,
    None,
    {"c": "\\\\", "d": {"e": ["\\\"'", "漢😀\u2028"]}},
    {},
]


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 64, 1 << 20])
def test_an_array_splits_the_same_wherever_its_chunks_end(
    read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    monkeypatch.setattr(json_rows, "READ_BYTES", read_bytes)
    for text in (json.dumps(TRICKY), json.dumps(TRICKY, indent=3, ensure_ascii=False)):
        path.write_text(text)
        assert values(read(path)) == TRICKY


def test_an_array_cut_off_anywhere_gives_its_whole_elements_and_one_last_row(tmp_path: Path) -> None:
    rows = [conversation(i) for i in range(3)]
    text = json.dumps(rows).encode()
    path = tmp_path / "a.json"
    for size in range(1, len(text)):
        path.write_bytes(text[:size])
        *before, last = read(path)
        assert last == Row(None, TRUNCATED_SOURCE)
        assert values(before) == rows[: len(before)]
        num_whole = sum(text[:size].count(json.dumps(row).encode()) for row in rows)
        assert len(before) == num_whole


def test_a_bad_element_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(json_rows, "READ_BYTES", 300)
    large = b'{"a": "' + b"x" * 2000 + b'"}'
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}, {"a": nope}, {"a": "\xff"}, , ' + large + b', {"a": 2}, {"a": }, {"a": 3},]')
    rows = read(path)
    assert errors(rows) == [None, INVALID_JSON, UNDECODABLE, INVALID_JSON, ROW_TOO_LARGE, None, INVALID_JSON, None]
    path.write_bytes(b'[{"a": 1}] \n')
    assert errors(read(path)) == [None]
    path.write_bytes(b'[{"a": 1}][{"a": 2}]' + b" " * 1000)
    assert errors(read(path)) == [None, INVALID_JSON]
    path.write_bytes(b'[{"a": 1}]' + b" " * 1000 + b"x")
    assert errors(read(path)) == [None, INVALID_JSON]
