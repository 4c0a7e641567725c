"""What `check` says: of the machine at hand, and whether a run would fail."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.pipeline import cli
from stillhouse.pipeline.look import check, models
from stillhouse.schemas.config import Config
from tests.support.data import TEACHER
from tests.support.source_rows import assistant, lmsys, user

CANARY = "text-canary"
GOOD = [lmsys(i, user(f"question {i} {CANARY}"), assistant()) for i in range(6)]


@pytest.mark.parametrize(
    ("flags", "dtype", "is_slow"),
    [
        ("fma avx avx2", "bfloat16", True),
        ("fma avx avx2", "float16", True),
        ("fma avx avx2", "float32", False),
        ("fma avx2 avx512f avx512_bf16", "bfloat16", False),
    ],
)
def test_dtype_that_is_slow_here_is_named(
    flags: str, dtype: str, is_slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "glob", lambda pattern: [])
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name: x\nflags\t\t: {flags}\n")
    note = models.slow_dtype("teacher", dtype, cpuinfo)
    assert (note is not None) == is_slow
    assert note is None or note.startswith("teacher.dtype: ")
    assert models.slow_dtype("teacher", dtype, tmp_path / "not Linux") is None
    monkeypatch.setattr(models, "glob", lambda pattern: ["/dev/nvidia0"])
    assert models.slow_dtype("teacher", dtype, cpuinfo) is None


@pytest.fixture
def looked(raw_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`stillhouse check` on rows: exit code, result, and what it says."""

    def look(rows: list[Any], suffix: str = "jsonl", **sections: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
        file = tmp_path / f"rows.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        raw_config["ingest"]["max_dropped_fraction"] = 0.5
        raw_config["source"] = {"path": str(file)}
        for name, keys in sections.items():
            raw_config[name] = raw_config.get(name, {}) | keys
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw_config))
        results = io.StringIO()
        code = cli.main(["check", str(tmp_path / "config.yaml"), "--json"], results)
        said = capsys.readouterr().err
        assert CANARY not in said + results.getvalue()
        return code, json.loads(results.getvalue() or "{}"), said

    return look


def test_check_passes_where_a_run_would(looked: Any) -> None:
    code, result, said = looked([*GOOD, *GOOD[:3], {"x": 1}, "text"])
    assert code == 0
    assert result["problems"] == []
    assert result["first_refused_rows"] == {
        "duplicate_id": [6, 7, 8],
        "missing_conversation": [9],
        "not_an_object": [10],
    }
    assert "a run would fail" not in said


def test_check_fails_where_no_row_is_accepted_and_names_the_first(looked: Any) -> None:
    rows = [lmsys(i, {"role": CANARY, "content": "x"}) for i in range(9)]
    code, result, said = looked(rows)
    assert code == 1
    (problem,) = result["problems"]
    assert problem.startswith("source: none of 9 rows is accepted: unknown_role 9 (rows 0, 1, 2, 3, 4, …: a message's")
    assert f"a run would fail: {problem}" in said
    assert "source.roles: name the roles" in said


@pytest.mark.parametrize(
    ("rows", "sections", "problem"),
    [
        ([], {}, "source: has no rows"),
        (
            [*GOOD[:2], {}, {}, {}],
            {},
            "source: 3 of 5 rows are refused, more than ingest.max_dropped_fraction 0.5: missing",
        ),
        (GOOD, {"ingest": {"languages": ["Klingon"]}}, "source: none of 6 rows is accepted: language 6 (rows 0, 1"),
        (GOOD, {"ingest": {"max_prompt_tokens": 1}}, "source: none of 6 rows is accepted: too_long 6 (rows 0, 1"),
        (
            GOOD,
            {"teacher": {"max_model_len": 8193}},
            "teacher.max_model_len: 8193 exceeds the 8192 positions that the teacher was made for "
            "(max_position_embeddings); lower it",
        ),
        (
            GOOD,
            {"targets": {"top_k": 49153}},
            "targets.top_k: 49153 exceeds the teacher's vocabulary of 49152; lower it",
        ),
    ],
)
def test_check_fails_where_a_run_would(rows: list[Any], sections: dict[str, Any], problem: str, looked: Any) -> None:
    code, result, said = looked(rows, **sections)
    assert code == 1
    assert any(found.startswith(problem) for found in result["problems"])
    assert problem in said


def like_the_teacher(folder: Path, *without: str, **facts: int) -> str:
    """A folder with the teacher's files but for some, and other facts in its config.json."""
    folder.mkdir()
    for file in TEACHER.iterdir():
        if file.name not in (*without, "config.json"):
            (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text(json.dumps(json.loads((TEACHER / "config.json").read_text()) | facts))
    return str(folder)


def test_a_student_is_looked_at(looked: Any, raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config |= {"task": "score", "sampling": {}}
    student = {
        "model": like_the_teacher(tmp_path / "student", max_position_embeddings=256, vocab_size=300),
        "dtype": "bfloat16",
        "sampling": {"max_tokens": 24},
    }
    code, result, _ = looked(GOOD, rollout=student | {"asked_top_k": 301})
    assert code == 1
    assert result["problems"] == [
        "rollout.asked_top_k: 301 exceeds the student's vocabulary of 300; lower it",
        "teacher.max_model_len: 512 exceeds the 256 positions that the student was made for (max_position_embeddings); "
        "lower it",
    ]


def test_a_students_engine_counts(raw_config: dict[str, Any], tmp_path: Path) -> None:
    student = {"model": like_the_teacher(tmp_path / "student"), "sampling": {"max_tokens": 24}}
    hours = []
    for parallel in (1, 4):
        rollout = {**student, "engine": {"tensor_parallel_size": parallel}}
        config = Config.model_validate(raw_config | {"task": "score", "sampling": {}, "rollout": rollout})
        hours.append(check.check(config, rows=60, tokens_per_second=0.01)["estimate"]["max_gpu_hours"])
    assert hours[1] == pytest.approx(5 / 2 * hours[0], rel=0.01)


GUARD = {"name": "guard", "preset": "llama-guard-3", "model": str(TEACHER), "max_model_len": 512}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": "half a guard"}, ": model: no tokenizer at '"),
        ({"max_model_len": 8193}, ".max_model_len: 8193 exceeds the 8192 positions that the guard was made for"),
        ({"max_model_len": 128, "max_tokens": 60}, ": max_model_len: 128 leaves "),
        ({"chat_template": "template"}, ": chat_template: it does not write all of the answers that the guard is to"),
        ({"thresholds": {"llama_gard": 0.5}}, ": `thresholds` names llama_gard; the labels are "),
    ],
)
def test_a_guard_is_looked_at(changes: dict[str, Any], problem: str, looked: Any, tmp_path: Path) -> None:
    half = like_the_teacher(tmp_path / "guard", "tokenizer.json", "vocab.json", "merges.txt")
    (tmp_path / "template").write_text(
        "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.role }}: {{ m.content }}{% endif %}{% endfor %}"
    )
    places = {"half a guard": half, "template": str(tmp_path / "template")}
    if (name := next(iter(changes))) in ("model", "chat_template"):
        changes = {name: places[changes[name]]}
    code, result, _ = looked(GOOD, screen={"classifiers": [GUARD | changes]})
    assert code == 1
    (found,) = result["problems"]
    assert found.startswith(f"screen.classifiers (guard llama_guard){problem}")


def test_a_guard_that_is_right_is_no_problem(looked: Any) -> None:
    assert looked(GOOD, screen={"classifiers": [GUARD]})[0] == 0


def test_top_k_of_the_whole_vocabulary_is_fine(looked: Any) -> None:
    assert looked(GOOD, targets={"top_k": 49152})[0] == 0
    assert looked(GOOD, targets={"top_k": 49153, "method": "sampled"})[0] == 0


ODD: dict[str, tuple[list[Any], dict[str, str]]] = {
    "messages": (
        [
            {"nr": i, "log": [{"wer": "user", "was": f"{CANARY} {i}"}, {"wer": "assistant", "was": "x" * 50}]}
            for i in range(3)
        ],
        {"conversation": "log", "role": "wer", "content": "was"},
    ),
    "nested": (
        [{"key": f"k{i}", "d": {"chat": [{"m": {"by": "human"}, "said": f"{CANARY} {i}"}]}} for i in range(3)],
        {"conversation": "d.chat", "role": "m.by", "content": "said", "id": "key"},
    ),
    "a text": (
        [{"uid": i, "user_prompt": f"{CANARY} {i}", "model_reply": "long " * 50} for i in range(3)],
        {"conversation": "user_prompt", "id": "uid"},
    ),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ODD)
def test_check_proposes_columns_that_then_work(name: str, suffix: str, looked: Any, raw_config: dict[str, Any]) -> None:
    rows, expected = ODD[name]
    code, result, said = looked(rows, suffix)
    assert code == 1
    assert "source: the columns of row 0 are " in said
    (line,) = [line for line in said.splitlines() if "source.columns: try " in line]
    proposed = yaml.safe_load(line.partition("try ")[2].rpartition(" (")[0])
    assert proposed == expected
    code, result, _ = looked(rows, suffix, source={"path": raw_config["source"]["path"], "columns": proposed})
    assert (code, result["rows_accepted"]) == (0, 3)


def test_check_counts_the_sources_system_prompts(looked: Any) -> None:
    system = {"role": "system", "content": f"{CANARY} Be brief."}
    rows = [*GOOD[:4], lmsys("a", system, user("x")), {"id": "b", "system": "Rhyme.", "prompt": "y"}]
    code, result, said = looked(rows)
    assert (code, result["rows_with_system_prompt"]) == (0, 2)
    assert "source: 2 of 6 accepted rows have a system prompt, which is set aside and not used; set generate" in said
    before = result["mean_prompt_tokens"]
    code, result, said = looked(rows, generate={"system_prompts": "source"})
    assert (code, result["rows_with_system_prompt"]) == (0, 2)
    assert "system prompts: 2 accepted rows bring one, and it is used" in said
    assert result["mean_prompt_tokens"] != before  # they are counted
