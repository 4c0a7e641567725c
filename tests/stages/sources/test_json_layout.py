"""JSON that is not what its name says: read all the same, or refused with what it is."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import Row, SourceError, head, json_layout, json_rows, pieces, read_rows
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.row import INVALID_JSON, TRUNCATED_SOURCE
from tests.support.ingesting import configured, ingested
from tests.support.source_files import ROWS, array, errors, jsonl, parquet, read, values

NAMES = ("a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "a.json.gz")


def pretty(rows: list[Any], between: str = "\n") -> bytes:
    return between.join(json.dumps(row, indent=2, ensure_ascii=False) for row in rows).encode()


def within(key: str, indent: int | None = None, **beside: Any) -> Callable[[list[Any]], bytes]:
    return lambda rows: json.dumps({**beside, key: rows, "after": {"x": [1]}}, indent=indent).encode()


LAYOUTS: dict[str, Callable[[list[Any]], bytes]] = {
    "array": array,
    "array on one line": lambda rows: json.dumps(rows).encode(),
    "array, an element a line": lambda rows: b"[\n" + b",\n".join(json.dumps(row).encode() for row in rows) + b"\n]\n",
    "array after a mark": lambda rows: b"\xef\xbb\xbf  \n" + array(rows),
    "lines": jsonl,
    "lines with commas": lambda rows: b",\n".join(json.dumps(row).encode() for row in rows),
    "lines of Windows": lambda rows: jsonl(rows).replace(b"\n", b"\r\n"),
    "printed objects": pretty,
    "printed objects with commas": lambda rows: pretty(rows, ",\n"),
    "printed objects with blank lines": lambda rows: pretty(rows, "\n\n\n"),
    "printed objects without indentation": lambda rows: b"\n".join(json.dumps(row, indent=0).encode() for row in rows),
    "printed objects of Windows": lambda rows: pretty(rows).replace(b"\n", b"\r\n"),
    "printed objects, opened on the first key's line": lambda rows: pretty(rows).replace(
        b'{\n  "conversation_id"', b'{ "conversation_id"'
    ),
    "data": within("data"),
    "data, printed": within("data", 2),
    "rows after others": within(
        "rows", None, version="1.0", about={"n": [1, 2], "of": None}, tags=[], flags=[{"a": 1}]
    ),
    "under a key of its own": within("chats", 1, version=1),
    "under the name of a column": within("conversations", None, total=23),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str, name: str, tmp_path: Path) -> None:
    data = LAYOUTS[layout](ROWS)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert values(read(tmp_path / name)) == ROWS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_one_row(layout: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LAYOUTS[layout](ROWS[:1]))
    assert values(read(tmp_path / "a.jsonl")) == ROWS[:1]


def test_more_than_the_head_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HEAD_BYTES", 700)
    for layout, write in LAYOUTS.items():
        (tmp_path / "a.json").write_bytes(write(ROWS))
        assert values(read(tmp_path / "a.json")) == ROWS, layout


def test_rows_that_need_a_mapping_are_rows_of_data(tmp_path: Path) -> None:
    rows = [{"q": f"question {i}", "a": "no"} for i in range(4)]
    (tmp_path / "a.json").write_bytes(within("data")(rows))
    config = configured(tmp_path / "a.json", {"columns": {"conversation": "q"}})
    assert [r["user_turns"] for r in ingested(read(tmp_path / "a.json"), config)] == [[row["q"]] for row in rows]


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]
ONE_ROW: dict[str, Any] = {
    "messages": {"messages": MESSAGES},
    "items": {"items": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "no"}]},
    "rounds": {"conversation": [{"prompt": "hi", "response": "no"}]},
    "a batch request": {"body": {"messages": MESSAGES}},
    "a conversation alone": MESSAGES,
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("name", ONE_ROW)
def test_one_conversation_is_not_many_rows(name: str, suffix: str, indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    for count in (1, 2) if indent is None or name != "a conversation alone" else (1,):
        path.write_text("\n".join(json.dumps(ONE_ROW[name], indent=indent) for _ in range(count)))
        assert values(read(path)) == [ONE_ROW[name]] * count
        assert [record["user_turns"] for record in ingested(read(path))] == [["hi"]] * count


INSIDE: dict[str, dict[str, Any]] = {
    "documents before": {"n": 1, "documents": [{"text": "doc"}, {"text": "doc"}], "question": "hi"},
    "sources after": {"messages": MESSAGES, "sources": [{"text": "doc"}]},
    "data and train": {"data": [{"prompt": "doc"}], "prompt": "hi", "train": [{"messages": MESSAGES}]},
    "few shots": {"instruction": "hi", "instances": [{"input": "doc", "output": "no"}]},
    "an object before": {"metadata": {"prompt": "doc"}, "messages": MESSAGES},
    "an object after": {"prompt": "hi", "document": {"text": "doc"}},
    "a batch request": {"examples": [{"question": "doc"}], "body": {"messages": MESSAGES}},
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize("name", INSIDE)
def test_what_is_inside_of_a_row_is_no_row(name: str, suffix: str, indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    for count in (1, 3):
        data = "\n".join(json.dumps(INSIDE[name], indent=indent) for _ in range(count)).encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
        if suffix == "json" and count == 1 and name in ("data and train", "few shots"):
            with pytest.raises(SourceError, match=r"with a text that may be a prompt, and with a list of rows under"):
                values(read(path))
            continue
        assert values(read(path)) == [INSIDE[name]] * count
        assert [record["user_turns"] for record in ingested(read(path))] == [["hi"]] * count


def test_a_first_row_without_a_conversation_costs_one_row(tmp_path: Path) -> None:
    rows = [{"messages": None, "sources": [{"text": "doc"}], "about": {"text": "x"}}, {"messages": MESSAGES}]
    (tmp_path / "a.json").write_bytes(pretty(rows))
    assert [r["drop_reason"] for r in ingested(read(tmp_path / "a.json"))] == ["missing_conversation", None]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson.gz"])
def test_a_first_row_longer_than_the_head(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [{"text": f"DOC {n}" + "x" * 500} for n in range(2_400)]
    rows: list[dict[str, Any]] = [{"documents": documents, "question": "hi"}, *({"question": "hi"} for _ in range(2))]
    if name == "a.json":  # which may as well be an object with rows
        rows[0] = {"about": {"prompt": "x"}, "question": "hi", "documents": documents}
    data = jsonl(rows)
    assert len(data) > head.HEAD_BYTES
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [record["user_turns"] for record in ingested(read(tmp_path / name))] == [["hi"]] * 3
    monkeypatch.setattr(pieces, "PIECE_BYTES", 50_000)
    config = SourceConfig(path=str(tmp_path))
    apart = [row for piece in pieces.pieces_of(config) for row in piece.rows(Spelling(config))]
    assert apart == list(read_rows(config))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("others", [{}, {"text": ""}, {"input": {"lang": "en"}}])
def test_wrapped_rows_of_any_length(others: dict[str, Any], suffix: str, indent: int | None, tmp_path: Path) -> None:
    """Beside fields that hold no conversation."""
    long = {"prompt": "hi", "note": "x" * 1_100_000}
    for rows in ([long, *ROWS], [*ROWS, long], ROWS):
        (tmp_path / f"a.{suffix}").write_text(json.dumps(others | {"data": rows}, indent=indent))
        assert values(read(tmp_path / f"a.{suffix}")) == rows


@pytest.mark.parametrize("head_bytes", [1 << 20, 400])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"en": ROWS, "fr": ROWS}, r"holds lists of rows under en, fr; write .* \(jq -c '\.\[\"en\"\]\[\]'\)"),
        ({"version": 1, "train": [{"q": "a"}] * 99, "test": [{"q": "b"}]}, "holds lists of rows under train, test; "),
        ({"data": ROWS, "about": {"n": 2}, "What is turn 1?": ROWS}, "holds lists of rows under data, …; "),
        ({"data": ROWS, "items": [{"messages": MESSAGES}]}, "holds lists of rows under data, items; "),
    ],
)
def test_a_second_list_of_rows_is_told(
    value: object, message: str, head_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD_BYTES", head_bytes)
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(value, indent=indent))
        with pytest.raises(SourceError, match=rf"a\.json: {message}") as error:
            read(tmp_path / "a.json")
        assert "turn 1" not in str(error.value)


def test_an_object_that_is_not_whole_in_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HEAD_BYTES", 100)
    row = {"about": {"prompt": "x"}, "scores": [1] * 99, "question": "hi"}
    (tmp_path / "a.json").write_bytes(pretty([row, row]))
    assert values(read(tmp_path / "a.json")) == [row, row]
    (tmp_path / "a.json").write_text(json.dumps({n: {"prompt": "x"} for n in "abcdefghi"}))
    with pytest.raises(SourceError, match="rows by key"):
        read(tmp_path / "a.json")


def test_what_follows_wrapped_rows_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "a.json", json.dumps({"data": ROWS, "n": 1}).encode()
    monkeypatch.setattr(head, "HEAD_BYTES", 400)
    for rest in (data, b"\n" + data, b", x", b"\n[]"):
        path.write_bytes(data + rest)
        assert errors(read(path)) == [None] * len(ROWS) + [INVALID_JSON], rest
    for end in (b", nope}", b", 'n': 1}", b'"n": 1}', b"", b"]}"):
        path.write_bytes(json.dumps({"data": ROWS}).encode()[:-1] + end)
        assert errors(read(path)) == [None] * len(ROWS) + [INVALID_JSON], end
    path.write_bytes(data + b" \n" * 1000)
    assert errors(read(path)) == [None] * len(ROWS)
    path.write_text(json.dumps({"documents": [{"text": "turn 1"}] * 99, "question": "turn 1"}))
    with pytest.raises(SourceError, match="is an object with a list like rows under documents, and with a conv") as e:
        read(path)
    assert "turn 1" not in str(e.value)
    monkeypatch.setattr(json_layout, "HEAD_BYTES", 100)  # what is kept of the end
    monkeypatch.setattr(json_rows, "READ_BYTES", 100)
    path.write_text(json.dumps({"data": ROWS, "vectors": [0] * 99_999, "test": ROWS}))
    assert errors(read(path)) == [None] * len(ROWS) + [INVALID_JSON]


def test_objects_with_rows_one_after_the_other_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(pretty([{"data": ROWS}] * 2))
    assert [r["drop_reason"] for r in ingested(read(tmp_path / "a.json"))] == ["missing_conversation"] * 2
    (tmp_path / "a.json").write_text(json.dumps({"data": ROWS}) * 2)
    assert errors(read(tmp_path / "a.json")) == [INVALID_JSON]


def test_a_printed_object_without_an_end_costs_one_row(tmp_path: Path) -> None:
    first, second, third = (pretty([row]) for row in ROWS[:3])
    path = tmp_path / "a.jsonl"
    path.write_bytes(first + b"\n" + second[: len(second) // 2].rpartition(b"\n")[0] + b"\n" + third)
    assert [row.error for row in read(path)] == [None, INVALID_JSON, None]
    path.write_bytes(first + b"\n" + second[:-3])
    assert read(path)[1:] == [Row(None, TRUNCATED_SOURCE)]
    flat = [json.dumps(row, indent=0).encode() for row in ROWS[:3]]
    path.write_bytes(flat[0] + b"\n" + flat[1][:-2] + b"\n" + flat[2])
    assert [row.error for row in read(path)] == [None, INVALID_JSON, None]


def test_a_broken_first_line_is_still_a_line(tmp_path: Path) -> None:
    good = jsonl(ROWS[:2])
    for first in (b'{"a": 1, "b', b'{"a": 1,', b"{", b'{"a": [', b"[", b"{'a': 1}", b'{"conversation": [{"role"'):
        (tmp_path / "a.jsonl").write_bytes(first + b"\n" + good)
        found = read(tmp_path / "a.jsonl")
        if first not in (b'{"a": [', b"["):  # whose next line may be its own
            assert errors(found) == [INVALID_JSON, None, None], first


TABLE = {"prompt": {"0": "a", "1": "b"}, "id": {"0": 1, "1": 2}}
REFUSED: dict[str, tuple[bytes, str]] = {
    "Parquet": (parquet(ROWS), "is Parquet; rename it to .parquet"),
    "gzip": (gzip.compress(jsonl(ROWS)), "is gzip; append .gz to its name"),
    "zip": (b"PK\x03\x04xxxx", "is a zip archive; unpack it"),
    "UTF-16": (jsonl(ROWS).decode().encode("utf-16"), "is UTF-16; convert it to UTF-8"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "is a Git LFS pointer, not the data",
    ),
    "HTML": (b"<!DOCTYPE html>\n<html>", "is HTML or XML, not data"),
    "columns, as pandas": (json.dumps(TABLE).encode(), "is a table by columns"),
    "columns, as lists": (
        json.dumps({"messages": [MESSAGES, MESSAGES], "id": [1, 2]}).encode(),
        "is a table by columns",
    ),
    "rows by key": (json.dumps({"a1": ROWS[0], "a2": ROWS[1]}).encode(), "is an object of rows by key"),
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_told(name: str, suffix: str, tmp_path: Path) -> None:
    data, message = REFUSED[name]
    (tmp_path / f"a.{suffix}").write_bytes(data)
    with pytest.raises(SourceError) as error:
        read(tmp_path / f"a.{suffix}")
    assert str(error.value).startswith(f"{tmp_path}/a.{suffix}: {message}")
    assert "turn 1" not in str(error.value)


@pytest.mark.parametrize("depth", [60, 5_000])
def test_a_line_that_is_too_deep_is_still_a_line(depth: int, tmp_path: Path) -> None:
    """Found by the fuzzer: as the first of a file it was taken for an array of rows."""
    first = b'[{"content": ' * depth + b'"x"' + b"}]" * depth
    path = tmp_path / "a.jsonl"
    path.write_bytes(first + b"\n0\n0\n")
    assert len(read(path)) == 3
