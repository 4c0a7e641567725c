"""Whose a row is: rules in order, columns and paths, what counts as a value."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.schemas.config import Config
from stillhouse.stages.ingest import Ingest
from stillhouse.stages.sources import read_rows
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.row import Row as SourceRow
from stillhouse.stages.sources.rules import Rules, more_columns

Row = dict[str, Any]


def config(source: Any, *whens: Any) -> Config:
    teachers = [
        {"name": f"t{n}", "model": "./teacher", "max_model_len": 1000, "when": when} for n, when in enumerate(whens)
    ]
    raw = {"run_dir": "/nowhere", "source": source, "teachers": teachers, "sampling": {"max_tokens": 10}}
    return Config.model_validate(raw)


def teacher_of(row: Row, *whens: Any, **source: Any) -> str | None:
    made = config({"path": "/x.jsonl", **source}, *whens)
    assert made.teachers is not None
    return Rules(made.teachers, Spelling(made.source), "given name").teacher(row)


@pytest.mark.parametrize(
    ("row", "whens", "expected"),
    [
        ({"task": "math"}, [{"task": ["math"]}], "t0"),
        ({"task": "code"}, [{"task": ["math"]}], None),
        ({}, [{"task": ["math"]}], None),
        ({"task": None}, [{"task": ["None", "null"]}], None),
        ({"task": "code"}, [{"task": ["math"]}, None], "t1"),
        ({"task": "math"}, [{"task": ["math", "x"]}, {"task": ["math"]}], "t0"),
        ({"task": "math", "level": 2}, [{"task": ["math"], "level": ["3"]}, {"level": ["2"]}], "t1"),
        ({"task": "Math"}, [{"task": ["math"]}], None),
        ({"meta": {"task": "math"}}, [{"meta.task": ["math"]}], "t0"),
        ({"meta": '{"task": "math"}'}, [{"meta.task": ["math"]}], "t0"),
        ({"meta.task": "math"}, [{"meta.task": ["math"]}], "t0"),
        ({"tags": ["easy", "math"]}, [{"tags": ["math"]}], "t0"),
        ({"tags": []}, [{"tags": ["math"]}], None),
        ({"hard": True}, [{"hard": ["true"]}], "t0"),
        ({"hard": 1}, [{"hard": ["true"]}], None),
        ({"score": 0.5}, [{"score": ["0.5"]}], "t0"),
        ({"task": {"name": "math"}}, [{"task": ["math"]}], None),
        ({"source": "gsm8k"}, [{"source": ["gsm8k"]}], "t0"),
        ({}, [{"source": ["given name"]}], "t0"),
        ({"source": "gsm8k"}, [{"source": ["given name"]}], None),
        ({"language": "German"}, [{"language": ["German"]}], "t0"),
    ],
)
def test_the_first_rule_that_fits(row: Row, whens: list[Any], expected: str | None) -> None:
    assert teacher_of(row, *whens) == expected


def test_language_is_the_column_that_is_named() -> None:
    assert teacher_of({"lang": "de"}, {"language": ["de"]}, columns={"language": "lang"}) == "t0"


def test_columns_of_rules_are_read(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}], "meta": {"task": "math"}, "other": "y"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    made = config({"path": str(tmp_path / "rows.parquet")}, {"meta.task": ["math"]})
    assert more_columns(made) == ("meta.task",)
    (row,) = read_rows(made.source, more_columns=more_columns(made))
    assert isinstance(row.value, dict)
    assert row.value["meta"] == {"task": "math"}
    assert "other" not in row.value


def test_parquet_and_json_give_a_row_the_same_teacher(tmp_path: Path) -> None:
    """Though a column beside a conversation has fields that look like a message's."""
    rows = [{"question": "Q", "context": {"text": "t", "source": "wiki", "at": {"content": "c", "year": 5}}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    for when in ({"context.source": ["wiki"]}, {"context.at.year": ["5"]}):
        for name in ("a.parquet", "a.jsonl"):
            made = config({"path": str(tmp_path / name)}, when, None)
            (row,) = read_rows(made.source, more_columns=more_columns(made))
            assert isinstance(row.value, dict)
            assert Rules(made.teachers or [], Spelling(made.source), "a").teacher(row.value) == "t0"


def test_a_prompt_is_as_long_as_its_teacher_finds_it() -> None:
    """One of seven tokens to one teacher and of nine to the other, which has less room for it."""
    made = config({"path": "/x.jsonl"}, {"task": ["a"]}, {"task": ["b"]})
    teachers = [
        teacher.model_copy(update={"max_model_len": length})
        for teacher, length in zip(made.teachers or [], (30, 18), strict=True)
    ]
    made = made.model_copy(update={"teachers": teachers})
    counted: dict[str, list[str]] = {"t0": [], "t1": []}

    def count(name: str, tokens: int) -> Any:
        return lambda texts: counted[name].extend(texts) or [tokens] * len(texts)  # type: ignore[func-returns-value]

    rows = [{"prompt": f"question {n}", "task": task} for n, task in enumerate("abacb")]
    (table,) = Ingest(made, {"t0": count("t0", 7), "t1": count("t1", 9)})(SourceRow(row) for row in rows)
    assert counted == {"t0": ["question 0", "question 2"], "t1": ["question 1", "question 4"]}
    assert table["teacher"].to_pylist() == ["t0", None, "t0", None, None]
    assert table["drop_reason"].to_pylist() == [None, "too_long", None, "no_teacher", "too_long"]
    assert table["num_prompt_tokens"].to_pylist() == [7, None, 7, None, None]
