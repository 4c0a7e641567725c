"""What the viewer shows is what the files hold: read here by PyArrow, with filters and counts in plain Python."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.errors import DamagedError
from stillhouse.pipeline.folder import shard
from stillhouse.pipeline.folder.columns import Columns
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.view.app import View
from stillhouse.schemas.config import ConfigError
from tests.support.command import Command, read
from tests.support.data import STAGES
from tests.support.datasets import make_export, write_dataset
from tests.support.viewing import Viewer, viewing

HOSTILE = '<script>alert("canary")</script> \x1b[31m\u202egnp.exe'


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(folder).to_pylist()
    return found


@pytest.fixture(scope="module")
def viewer(finished: Command) -> Any:
    with viewing(finished.run_dir) as viewer:
        yield viewer


def test_stages_and_ledger_have_all_their_rows(viewer: Viewer, finished: Command) -> None:
    place = viewer("place")
    assert [stage["name"] for stage in place["stages"]] == [*STAGES[:-1], "published", "ledger"]
    for stage in STAGES:
        folder = finished.run_dir / ("dataset/data" if stage == "publish" else stage)
        shown = viewer.all_rows(stage="published" if stage == "publish" else stage)
        expected = rows_of(folder)
        assert [row["prompt_id"] for row in shown] == [row["prompt_id"] for row in expected]
        assert [row["source_row"] for row in shown] == [row["source_row"] for row in expected]
        for name in ("input_ids", "labels", "target_ids", "target_logprobs", "target_tail", "token_logprobs"):
            if name in expected[0]:
                assert [row[name] for row in shown] == [len(row[name]) for row in expected]
    dropped = [row["reason"] for stage in STAGES[:-1] for row in rows_of(finished.run_dir / "ledger" / stage)]
    assert [row["reason"] for row in viewer.all_rows(stage="ledger")] == dropped


def content(row: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in row["messages"]).lower()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"num_target_tokens": "10..20"}, lambda row: 10 <= row["num_target_tokens"] < 20),
        ({"num_target_tokens": "20.."}, lambda row: row["num_target_tokens"] >= 20),
        ({"num_target_tokens": "..12.5"}, lambda row: row["num_target_tokens"] < 12.5),
        ({"num_target_tokens": "is:24"}, lambda row: row["num_target_tokens"] == 24),
        ({"prompt_scores.profanity": "0.05..0.1"}, lambda row: 0.05 <= row["prompt_scores"]["profanity"] < 0.1),
        ({"language": "is:unknown", "redacted": "is:false"}, lambda row: not row["redacted"]),
        ({"redacted": "is:true"}, lambda row: row["redacted"]),
        ({"rendering_differs": "null"}, lambda row: row["rendering_differs"] is None),
        ({"rendering_differs": "there"}, lambda row: row["rendering_differs"] is not None),
        ({"sample_id": "has:_0/1"}, lambda row: "_0/1" in row["sample_id"]),
        ({"prompt_id": "length:..10"}, lambda row: len(row["prompt_id"]) < 10),
        ({"messages": "3.."}, lambda row: len(row["messages"]) >= 3),
        ({"target_ids": "100..300"}, lambda row: 100 <= len(row["target_ids"]) < 300),
        ({"finish_reasons": "is:length"}, lambda row: row["finish_reasons"] == ["length"]),
    ],
)
def test_filters(viewer: Viewer, finished: Command, filters: dict[str, str], expected: Any) -> None:
    wanted = [row["sample_id"] for row in rows_of(finished.run_dir / "generate") if expected(row)]
    assert [row["sample_id"] for row in viewer.all_rows(stage="generate", c=filters)] == wanted


@pytest.mark.parametrize("search", ["the", "THE how", '"how to"', "100%", "_", "zzzz-not-there", "(a) OR 1=1 --'"])
def test_search_finds_words_in_any_case(viewer: Viewer, finished: Command, search: str) -> None:
    words = [search.strip('"')] if search.startswith('"') else search.split()
    wanted = [
        row["sample_id"]
        for row in rows_of(finished.run_dir / "generate")
        if all(word.lower() in content(row) or word.lower() in row["sample_id"].lower() for word in words)
    ]
    assert [row["sample_id"] for row in viewer.all_rows(stage="generate", q=search)] == wanted


def test_rows_are_sorted_and_filtered_at_once(viewer: Viewer, finished: Command) -> None:
    rows = [row for row in rows_of(finished.run_dir / "generate") if row["num_target_tokens"] >= 20]
    for sort, sign in (("num_input_tokens", 1), ("-num_input_tokens", -1)):
        shown = viewer.all_rows(stage="generate", sort=sort, c={"num_target_tokens": "20.."})
        expected = sorted(rows, key=lambda row: sign * row["num_input_tokens"])
        assert [row["sample_id"] for row in shown] == [row["sample_id"] for row in expected]


@pytest.mark.parametrize("q", ["", "the"])
@pytest.mark.parametrize("stage", ["ingest", "generate", "published", "ledger"])
@pytest.mark.long
def test_every_bar_of_every_column_selects_its_rows(viewer: Viewer, stage: str, q: str) -> None:
    if stage == "ledger" and q:
        q = "a"
    asked: dict[str, Any] = {"stage": stage} | ({"q": q} if q else {})
    page = viewer("rows", **asked)
    for column in page["columns"]:
        found = viewer("histogram", column=column["name"], **asked)
        assert found["rows"] == page["total"]
        assert sum(bar["count"] for bar in found["bars"]) + found["nulls"] + found["others"] == page["total"]
        assert len(found["bars"]) <= 22
        for bar in found["bars"][:3] + found["bars"][-2:]:
            assert viewer("rows", **asked, c={column["name"]: bar["filter"]})["total"] == bar["count"]


def test_a_row_is_the_conversation_with_its_tokens(viewer: Viewer, finished: Command) -> None:
    expected = rows_of(finished.run_dir / "dataset/data")
    for shown, row in list(zip(viewer.all_rows(stage="published"), expected, strict=True))[::7]:
        found = viewer("row", stage="published", row=shown["row"])
        assert found["sample_id"] == row["sample_id"]
        assert [message["content"] for message in found["messages"]] == [m["content"] for m in row["messages"]]
        assert found["tokens"]["ids"] == row["input_ids"]
        assert not any(text.startswith("#") for text in found["tokens"]["texts"])
        assert found["note"] is None
    prompt = viewer("row", stage="screen", row="00001:2")
    assert (
        prompt["messages"][0]["content"] == rows_of(finished.run_dir / "screen")[0]["user_turns"][0]
        or prompt["messages"]
    )
    assert viewer("row", stage="ledger", row=viewer("rows", stage="ledger")["rows"][0]["row"])["columns"]["reason"]


def test_the_answer_is_beside_the_prompt(viewer: Viewer, finished: Command) -> None:
    page = viewer("rows", stage="generate")
    assert page["shown"][:2] == ["messages", "answer"]
    said = [next(m["content"] for m in row["messages"][::-1] if m["role"] == "assistant")
            for row in rows_of(finished.run_dir / "generate")]  # fmt: skip
    assert [row["answer"] for row in viewer.all_rows(stage="generate")] == [text[:300] for text in said]
    word = next(word for text in said for word in text.split() if len(word) > 4)
    shown = viewer.all_rows(stage="generate", c={"answer": f"has:{word}"})
    assert len(shown) == sum(word.lower() in text.lower() for text in said)


def test_columns_without_a_value_come_last(finished: Command, tmp_path: Path) -> None:
    table = read(finished.run_dir / "generate")
    number = table.schema.get_field_index("language")
    table = table.set_column(number, "language", pa.nulls(table.num_rows, pa.string()))
    info = ShardInfo("generate", "00000.parquet", "", table.num_rows, table.num_rows)
    (tmp_path / "00000.parquet").write_bytes(shard.encode(table, info))
    with viewing(tmp_path) as viewer:
        names = [column["name"] for column in viewer("rows", stage="generate")["columns"]]
    full = {name for name in table.column_names if table[name].null_count < table.num_rows}
    assert names.index("language") > max(names.index(name) for name in full if name in names)


def test_a_query_knows_the_dataset_by_its_names(viewer: Viewer, finished: Command) -> None:
    (stage,) = [stage for stage in viewer("place")["stages"] if stage["name"] == "published"]
    for name in ("published", *stage["aliases"]):
        found = viewer.sql(f"SELECT count(*) FROM {name}")["rows"]
        assert [int(row[0]) for row in found] == [read(finished.run_dir / "dataset/data").num_rows]
    assert stage["aliases"] == ["publish", "dataset"]


def test_a_page_reads_no_heavy_column(finished: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set[str]()
    rows = Columns.rows

    def noted(self: Columns, numbers: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        asked.update(self.schema.names if columns is None else columns)
        return rows(self, numbers, columns)

    monkeypatch.setattr(Columns, "rows", noted)
    with viewing(finished.run_dir) as viewer:
        viewer.all_rows(stage="generate", q="the", sort="-target_ids")
    assert "messages" in asked
    assert not {"target_ids", "target_logprobs", "target_tail", "token_logprobs", "input_ids", "labels"} & asked


@pytest.mark.parametrize(
    ("path", "parameters", "message"),
    [
        ("rows", {"stage": "nothing"}, "choose one of"),
        ("rows", {"stage": "screen", "page": "0"}, "page"),
        ("rows", {"stage": "screen", "page": "x"}, "page"),
        ("rows", {"stage": "screen", "sort": 'prompt_id"; DROP VIEW screen; --'}, "no column"),
        ("rows", {"stage": "screen", "c.nothing": "null"}, "no column"),
        ("rows", {"stage": "screen", "c.num_prompt_tokens": "1 OR 1=1"}, "does not know"),
        ("rows", {"stage": "screen", "c.num_prompt_tokens": "1..x"}, "no number"),
        ("rows", {"stage": "screen", "c.num_prompt_tokens": "nan.."}, "no number"),
        ("rows", {"stage": "screen", "c.num_prompt_tokens": ".."}, "does not know"),
        ("rows", {"stage": "screen", "c.redacted": "is:1"}, "true"),
        ("rows", {"stage": "screen", "q": "x" * 5000}, "longer"),
        ("histogram", {"stage": "screen", "column": "1); DROP"}, "no such column"),
        ("row", {"stage": "screen", "row": "00001:99"}, "no such row"),
        ("row", {"stage": "screen", "row": "../../run.json:0"}, "no such row"),
        ("row", {"stage": "screen", "row": "00001:-1"}, "no such row"),
        ("row", {"stage": "screen"}, "no such row"),
    ],
)
def test_what_is_not_there_is_said(viewer: Viewer, path: str, parameters: dict[str, str], message: str) -> None:
    assert message in viewer(path, expect=400, **parameters)["error"]


def test_a_page_beyond_the_last_is_empty(viewer: Viewer) -> None:
    page = viewer("rows", stage="screen", page=10**9)
    assert page["rows"] == []
    assert page["total"] > 0


def test_texts_and_names_are_data(tmp_path: Path) -> None:
    """Columns with names that SQL, addresses and pages could stumble over, and texts of the same kind."""
    names = ['a"b', "e; DROP VIEW generate", "f'g", "<script>", "ä =&"]
    table = pa.table({name: [HOSTILE, "plain", None] for name in names} | {"n'\"": pa.array([1, 2, 2])})
    info = ShardInfo("generate", "00000.parquet", "", 3, 3)
    (tmp_path / "00000.parquet").write_bytes(shard.encode(table, info))
    with viewing(tmp_path) as viewer:
        (stage,) = (stage["name"] for stage in viewer("place")["stages"])
        for name in names:
            assert [row[name] for row in viewer.all_rows(stage=stage)] == [HOSTILE, "plain", None]
            assert len(viewer.all_rows(stage=stage, c={name: f"is:{HOSTILE}"})) == 1
            assert len(viewer.all_rows(stage=stage, sort=f"-{name}")) == 3
            assert viewer("histogram", stage=stage, column=name)["nulls"] == 1
        assert viewer("rows", stage=stage, q="CANARY")["total"] == 1
        assert viewer("rows", stage=stage, c={"n'\"": "is:2"})["total"] == 2


@pytest.mark.parametrize("layout", ["axolotl", "distillkit", "distillkit-compressed", "verl", "tinker"])
def test_exports(tmp_path: Path, layout: str) -> None:
    write_dataset(tmp_path / "run")
    output, manifest = make_export(tmp_path / "run", layout, **({"kind": "target"}))
    with viewing(output) as viewer:
        rows = viewer.all_rows(stage=layout)
        assert len(rows) == manifest["rows"]
        found = viewer("row", stage=layout, row=rows[0]["row"])
        assert found["tokens"]["ids"] == []
        assert {one["name"] for one in found["lists"]} >= {"input_ids"} & {*viewer("rows", stage=layout)["shown"]}
        assert found["lists"]
        for column in viewer("rows", stage=layout)["columns"]:
            histogram = viewer("histogram", stage=layout, column=column["name"])
            assert histogram["rows"] == len(rows)


def test_json_lines_are_not_viewed(tmp_path: Path) -> None:
    write_dataset(tmp_path / "run")
    output, _ = make_export(tmp_path / "run", "openai")
    with pytest.raises(ConfigError, match="give the dataset that this export was made from"):
        View(open_place(str(output)))


def test_parts_of_runs_and_unfinished_ones(finished: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run_dir, run)
    for path, stage, expected in (
        (run / "dataset", "published", rows_of(run / "dataset/data")),
        (run / "screen", "screen", rows_of(run / "screen")),
        (run / "screen/00002.parquet", "screen", pq.read_table(run / "screen/00002.parquet").to_pylist()),
        (run / "ledger/ingest", "ledger", rows_of(run / "ledger/ingest")),
    ):
        with viewing(path) as viewer:
            assert [s["name"] for s in viewer("place")["stages"]] == [stage]
            assert len(viewer.all_rows(stage=stage)) == len(expected)
            assert viewer.sql(f"SELECT count(*)::INT FROM {stage}")["rows"] == [[len(expected)]]
    for folder in ("dataset", "review", "ledger/review"):
        shutil.rmtree(run / folder)
    (run / "generate/00000.parquet").unlink()
    with viewing(run) as viewer:
        assert [stage["name"] for stage in viewer("place")["stages"]] == [
            "ingest",
            "dedupe",
            "screen",
            "generate",
            "ledger",
        ]
        assert len(viewer.all_rows(stage="generate")) == len(rows_of(run / "generate"))


def test_a_file_that_goes_is_said(finished: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run_dir, run)
    with viewing(run) as viewer:
        assert viewer("rows", stage="screen")["total"]
        shutil.rmtree(run / "screen")
        assert viewer("rows", expect=400, stage="screen")["error"]
        assert viewer("row", expect=400, stage="screen", row="00001:0")["error"]


def test_damaged_files_are_named(finished: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run_dir, run)
    first, *_, last = sorted((run / "screen").glob("*.parquet"))
    last.write_bytes(last.read_bytes()[:-40])
    with viewing(run) as viewer:
        assert last.name in viewer("rows", expect=400, stage="screen")["error"]
        assert viewer("rows", stage="dedupe")["total"]
    first.write_bytes(b"")
    with pytest.raises(DamagedError, match=first.name):
        View(open_place(str(run)))


def test_failures_quote_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "run")

    def fail(*_: Any) -> None:
        raise ValueError("text-canary")

    monkeypatch.setattr("stillhouse.pipeline.look.view.rows.conversation", fail)
    with viewing(tmp_path / "run") as viewer:
        address = viewer("rows", stage="published")["rows"][0]["row"]
        answer = viewer("row", expect=500, stage="published", row=address)
    captured = capfd.readouterr()
    assert "text-canary" not in json.dumps(answer) + captured.out + captured.err
    assert "ValueError" in answer["error"]
