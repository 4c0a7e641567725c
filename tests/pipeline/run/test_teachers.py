"""Several teachers in one run: each row is that of a run of its teacher alone, and everything says whose it is."""

import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.dataset.export import default_output, export
from stillhouse.pipeline.dataset.manifest import open_dataset
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.dataset.withhold import withhold
from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.certified import encode_certified
from stillhouse.pipeline.look import check
from stillhouse.pipeline.look.inspect.command import Asked, inspect
from stillhouse.schemas.config import Config, ConfigError
from tests.support.command import read
from tests.support.inline_pool import run_inline
from tests.support.teaching import make_rows, published_rows, rows_alone
from tests.support.undisturbed import ROWS, assert_nothing_lost_nothing_twice

Raw = dict[str, Any]
NAMES = {"math": "counts", "code": "codes", "poem": None}


def of_source(number: int) -> str | None:
    return NAMES[make_rows()[number]["meta"]["task"]]


# ---------------------------------------------------------------------------------------------------------------------
# What comes out


def test_rows_are_those_of_separate_runs(raw_teachers: Raw, taught: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = taught
    mixed = published_rows(config)
    singles = rows_alone(raw_teachers, config.teacher_names)
    seen = dict.fromkeys(config.teacher_names, 0)
    for sample_id, row in mixed.items():
        name = row.pop("teacher")
        assert name == of_source(row["source_row"])
        assert row == singles[name][sample_id]
        seen[name] += 1
    assert seen == {teacher["name"]: teacher["rows"] for teacher in manifest["teachers"]}
    assert min(seen.values()) > 10
    # And the two are different teachers.
    twice = singles["counts"].keys() & singles["codes"].keys()
    assert all(singles["counts"][key]["labels"] != singles["codes"][key]["labels"] for key in twice)


def test_order_is_the_sources_and_each_row_is_somewhere_once(taught: tuple[Config, dict[str, Any]]) -> None:
    config, _ = taught
    run_dir = Path(config.run_dir)
    for file in sorted((run_dir / "generate").glob("*.parquet")):
        table = pq.read_table(file, columns=["source_row", "sample_id", "teacher"])
        places = list(zip(table["source_row"].to_pylist(), table["sample_id"].to_pylist(), strict=True))
        assert places == sorted(places)
    first = pq.read_table(run_dir / "generate/00000.parquet")
    assert len(list(itertools.groupby(first["teacher"].to_pylist()))) > 2  # in turn, not one after the other
    assert_nothing_lost_nothing_twice(run_dir, run_dir)
    assert open_folder(str(run_dir)).list(keys.parts("generate")) == {}


def test_several_samples_stay_beside_their_prompt(raw_teachers: Raw, tmp_path: Path) -> None:
    raw = raw_teachers | {"sampling": {"max_tokens": 8, "n": 3}, "source": {**raw_teachers["source"], "limit": 20}}
    mixed = Config.model_validate(raw | {"run_dir": str(tmp_path / "mixed")})
    run_inline(mixed)
    made = read(tmp_path / "mixed/generate").select(["source_row", "sample_id"]).to_pylist()
    kept = [n for n in range(20) if of_source(n) is not None]
    assert made == [{"source_row": n, "sample_id": f"row-{n}/{sample}"} for n in kept for sample in range(3)]


def test_a_row_that_no_rule_takes_is_counted(taught: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = taught
    expected = [n for n in range(ROWS) if of_source(n) is None]
    assert manifest["stages"]["ingest"]["dropped"] == {"no_teacher": len(expected)}
    ledger = [row for file in Path(config.run_dir).glob("ledger/ingest/*") for row in pq.read_table(file).to_pylist()]
    assert sorted(row["source_row"] for row in ledger) == expected
    assert {row["reason"] for row in ledger} == {"no_teacher"}


def test_manifest_and_card_name_all_teachers(taught: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = taught
    counts, codes = manifest["teachers"]
    assert (counts["license"], codes["license"]) == ("apache-2.0", None)
    assert (counts["dtype"], codes["dtype"], manifest["teacher"]["dtype"]) == ("bfloat16", "float32", None)
    assert counts["tokenizer_sha256"] == codes["tokenizer_sha256"] == manifest["teacher"]["tokenizer_sha256"]
    assert counts["rows"] + codes["rows"] == manifest["rows"]
    assert counts["target_tokens"] + codes["target_tokens"] == manifest["target_tokens"]
    card = (Path(config.run_dir) / "dataset/README.md").read_text()
    for row in (f"| apache-2.0 | {counts['rows']} |", f"| not said | {codes['rows']} |", "`meta.task` is math |"):
        assert row in card


def test_a_licence_that_changes_is_written_again(copied: Config) -> None:
    teachers = [teacher.model_copy(update={"license": "mit"}) for teacher in copied.teachers or []]
    again, _ = run_inline(copied.model_copy(update={"teachers": teachers}))
    assert [teacher["license"] for teacher in again["teachers"]] == ["mit", "mit"]
    assert "| mit |" in (Path(copied.run_dir) / "dataset/README.md").read_text()


def test_verify_uses_the_template_of_each(copied: Config) -> None:
    found = verify(copied.run_dir, num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
    # One with another template cannot have read this, and who is not named wrote nothing.
    written_by(copied, {"counts": "codes", "codes": "codes"})
    assert "ids before answer 1 are not what the template makes" in "".join(verify(copied.run_dir, 1)["problems"])
    written_by(copied, {"counts": "counts", "codes": "nobody"})
    assert "its teacher is 'nobody'" in "".join(verify(copied.run_dir, 1)["problems"])
    written_by(copied, {"counts": "counts", "codes": "codes"}, rows=1)
    (problem,) = verify(copied.run_dir, 1)["problems"]
    assert re.fullmatch(r"manifest.json: says \d+ rows of counts, the files hold \d+", problem)


def written_by(config: Config, names: dict[str, str], rows: int = 0) -> None:
    """Writes the first published file again with other teachers, every checksum and sum right; and the manifest with so
    many more `rows` of the first teacher."""
    folder, key = open_folder(config.run_dir), "dataset/data/train-00000-of-00006.parquet"
    original = folder.get("publish-kept") if folder.exists("publish-kept") else folder.get(key)
    folder.put("publish-kept", original)
    found = shards.decode(original, key)
    table, place = found.table, found.table.schema.get_field_index("teacher")
    changed = pa.array([names[name] for name in table["teacher"].to_pylist()])
    data = shards.encode(table.set_column(place, "teacher", changed), found.info)
    folder.put(key, data)
    manifest = open_dataset(config.run_dir).manifest
    manifest["files"][0] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["bytes"] = sum(file["bytes"] for file in manifest["files"])
    manifest["teachers"][0]["rows"] += rows
    folder.put(keys.MANIFEST, encode_certified({k: v for k, v in manifest.items() if k != "sha256"}, indent=1))


def test_look_shows_the_teacher(taught: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = taught
    found = inspect(config.run_dir, Asked(samples=1))
    rows = {teacher["name"]: teacher["rows"] for teacher in manifest["teachers"]}
    assert found["values"]["teacher"] == dict(sorted(rows.items(), key=lambda item: -item[1]))
    assert [teacher["name"] for teacher in found["teachers"]] == ["counts", "codes"]


def test_exports_name_them_and_prompts_cannot_be_withheld(copied: Config) -> None:
    output = default_output(copied.run_dir, "axolotl")
    made = export(copied.run_dir, "axolotl", output, None, None, 1)
    assert [teacher["name"] for teacher in made["teachers"]] == ["counts", "codes"]
    assert verify(output, num_workers=1)["problems"] == []
    with pytest.raises(ConfigError, match="several teachers"):
        withhold(copied.run_dir, f"{copied.run_dir}/exports/no-prompts", 1)


# ---------------------------------------------------------------------------------------------------------------------
# Scored, and checked before


def test_scored_by_two_teachers(raw_teachers: Raw, tmp_path: Path) -> None:
    scored = {key: value for key, value in raw_teachers.items() if key != "sampling"}
    scored |= {"task": "score", "run_dir": str(tmp_path / "mixed")}
    mixed = Config.model_validate(scored)
    manifest, _ = run_inline(mixed)
    assert [teacher["rows"] > 5 for teacher in manifest["teachers"]] == [True, True]
    for name, theirs in rows_alone(scored, mixed.teacher_names).items():
        mine = {key: row for key, row in published_rows(mixed).items() if row.pop("teacher") == name}
        assert mine == {key: theirs[key] for key in mine}
    assert verify(mixed.run_dir, num_workers=1)["problems"] == []


def test_check_counts_rows_and_tells_idle_teachers(raw_teachers: Raw, tmp_path: Path) -> None:
    raw = raw_teachers | {"run_dir": str(tmp_path / "run")}
    tasks = [NAMES[row["meta"]["task"]] for row in make_rows()]
    result = check.check(Config.model_validate(raw), rows=ROWS, tokens_per_second=1000)
    assert result["teachers"] == {name: tasks.count(name) for name in ("counts", "codes")}
    assert result["refused"] == {"no_teacher": tasks.count(None)}
    assert not [note for note in result["notes"] if "teachers" in note]
    raw["teachers"] = [{**raw["teachers"][0], "when": {"meta.tsak": ["math"]}}, raw["teachers"][1]]
    result = check.check(Config.model_validate(raw), rows=ROWS, tokens_per_second=1000)
    assert "counts would get none of the" in "".join(result["notes"])


def test_teachers_with_other_tokenizers_are_refused(raw_teachers: Raw, tmp_path: Path, weights: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(weights, other, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    teachers = [raw_teachers["teachers"][0], {**raw_teachers["teachers"][1], "model": str(other)}]
    config = Config.model_validate(raw_teachers | {"teachers": teachers, "run_dir": str(tmp_path / "run")})
    for asked in (lambda: check.check(config, rows=5, tokens_per_second=1000), lambda: run_inline(config)):
        with pytest.raises(ConfigError, match=r"counts has the tokenizer \w{12} and codes \w{12}"):
            asked()
    assert not (tmp_path / "run").exists()
