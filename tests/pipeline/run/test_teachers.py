"""Several teachers in one run: each row is that of a run of its teacher alone, whatever happens meanwhile."""

import hashlib
import itertools
import json
import random
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
from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.folder import index, keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.certified import encode_certified
from stillhouse.pipeline.look import check
from stillhouse.pipeline.look.inspect.command import Asked, inspect
from stillhouse.pipeline.run import driver, sharing
from stillhouse.pipeline.run.pool import LocalPool
from stillhouse.pipeline.run.purge import purge
from stillhouse.pipeline.run.worker import Worker
from stillhouse.schemas.config import Config, ConfigError, absolute
from tests.support import fake_teacher
from tests.support.command import contents, read
from tests.support.inline_pool import InlinePool, Kept, run_inline
from tests.support.s3 import bucket  # noqa: F401 (a fixture)
from tests.support.teaching import alone, make_raw_teachers, make_rows
from tests.support.undisturbed import ROWS, assert_nothing_lost_nothing_twice, killed_again_and_again

Raw = dict[str, Any]
NAMES = {"math": "counts", "code": "codes", "poem": None}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Raw:
    return make_raw_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def finished(raw: Raw) -> tuple[Config, dict[str, Any]]:
    config = absolute(Config.model_validate(raw))
    return config, run_inline(config)[0]


@pytest.fixture
def copied(finished: tuple[Config, dict[str, Any]], tmp_path: Path) -> Config:
    """A copy of the finished run, to be spoilt."""
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    return finished[0].model_copy(update={"run_dir": str(tmp_path / "run")})


def rows_of(config: Config) -> dict[str, dict[str, Any]]:
    return {row["sample_id"]: row for row in read(Path(config.run_dir) / "dataset/data").to_pylist()}


def take_answers_back(config: Config) -> None:
    for folder in ("dataset", "review", "generate", "state/review", "ledger/review", "ledger/generate"):
        shutil.rmtree(Path(config.run_dir) / folder)


def of_source(number: int) -> str | None:
    return NAMES[make_rows()[number]["meta"]["task"]]


# ---------------------------------------------------------------------------------------------------------------------
# What comes out


def test_rows_are_those_of_separate_runs(raw: Raw, finished: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = finished
    mixed = rows_of(config)
    singles = {}
    for number, name in enumerate(config.teacher_names):
        single = Config.model_validate(alone(raw, number, name))
        run_inline(single)
        singles[name] = rows_of(single)
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


def test_order_is_the_sources_and_each_row_is_somewhere_once(finished: tuple[Config, dict[str, Any]]) -> None:
    config, _ = finished
    run_dir = Path(config.run_dir)
    for file in sorted((run_dir / "generate").glob("*.parquet")):
        table = pq.read_table(file, columns=["source_row", "sample_id", "teacher"])
        places = list(zip(table["source_row"].to_pylist(), table["sample_id"].to_pylist(), strict=True))
        assert places == sorted(places)
    first = pq.read_table(run_dir / "generate/00000.parquet")
    assert len(list(itertools.groupby(first["teacher"].to_pylist()))) > 2  # in turn, not one after the other
    assert_nothing_lost_nothing_twice(run_dir, run_dir)
    assert open_folder(str(run_dir)).list(keys.PARTS) == {}


def test_several_samples_stay_beside_their_prompt(raw: Raw, tmp_path: Path) -> None:
    raw = raw | {"sampling": {"max_tokens": 8, "n": 3}, "source": {**raw["source"], "limit": 20}}
    mixed = Config.model_validate(raw | {"run_dir": str(tmp_path / "mixed")})
    run_inline(mixed)
    made = read(tmp_path / "mixed/generate").select(["source_row", "sample_id"]).to_pylist()
    kept = [n for n in range(20) if of_source(n) is not None]
    assert made == [{"source_row": n, "sample_id": f"row-{n}/{sample}"} for n in kept for sample in range(3)]


def test_a_row_that_no_rule_takes_is_counted(finished: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = finished
    expected = [n for n in range(ROWS) if of_source(n) is None]
    assert manifest["stages"]["ingest"]["dropped"] == {"no_teacher": len(expected)}
    ledger = [row for file in Path(config.run_dir).glob("ledger/ingest/*") for row in pq.read_table(file).to_pylist()]
    assert sorted(row["source_row"] for row in ledger) == expected
    assert {row["reason"] for row in ledger} == {"no_teacher"}


def test_manifest_and_card_name_all_teachers(finished: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = finished
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


def test_look_shows_the_teacher(finished: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = finished
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
# However it is made


def test_killed_at_any_step(finished: tuple[Config, dict[str, Any]], tmp_path: Path) -> None:
    config = finished[0].model_copy(update={"run_dir": str(tmp_path / "run")})
    steps = random.Random(0)
    kills = killed_again_and_again(config, Path(finished[0].run_dir), iter(lambda: steps.randint(40, 200), None))
    assert kills >= 5


def test_killed_between_the_teachers(
    finished: tuple[Config, dict[str, Any]], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first one has answered is there, and its engine is not started again."""
    take_answers_back(copied)

    def no_teacher(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake_teacher.OtherTeacher, "__init__", no_teacher)
        with pytest.raises(KeyboardInterrupt):
            run_inline(copied)
    parts = sharing.by_shard(open_folder(copied.run_dir).list(keys.PARTS))
    assert len(parts) == 5  # in the last shard it has no rows
    started = []
    original = fake_teacher.FakeTeacher.__init__

    def started_as(self: Any, config: Config, stop: list[int]) -> None:
        started.append(type(self).__name__)
        original(self, config, stop)

    monkeypatch.setattr(fake_teacher.FakeTeacher, "__init__", started_as)
    run_inline(copied)
    assert started == ["OtherTeacher"]
    assert contents(Path(copied.run_dir)) == contents(Path(finished[0].run_dir))


@pytest.mark.long
def test_killed_between_the_teachers_on_an_object_store(
    finished: tuple[Config, dict[str, Any]],
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = finished[0].model_copy(update={"run_dir": f"{bucket}/teachers"})
    with monkeypatch.context() as patch:
        patch.setattr(fake_teacher.OtherTeacher, "__init__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_inline(config)
    store = open_folder(config.run_dir)
    assert len(store.list(keys.PARTS)) == 5
    assert store.list("generate") == {}
    run_inline(config)
    theirs = contents(Path(finished[0].run_dir))
    assert [key for key in theirs if store.get(key) != theirs[key]] == []
    assert store.list(keys.PARTS) == {}


def test_parts_of_other_prompts_are_made_again(
    finished: tuple[Config, dict[str, Any]], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the first teacher that is damaged is found by the last one, and comes back in the next round."""
    take_answers_back(copied)
    with monkeypatch.context() as patch:
        patch.setattr(fake_teacher.OtherTeacher, "__init__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_inline(copied)
    part = next((Path(copied.run_dir) / keys.PARTS).glob("00001.*"))
    data = bytearray(part.read_bytes())
    data[60] ^= 1
    part.write_bytes(data)
    _, told = run_inline(copied)
    assert part.name in told
    assert contents(Path(copied.run_dir)) == contents(Path(finished[0].run_dir))


@pytest.mark.long
def test_number_of_workers_changes_no_byte(finished: tuple[Config, dict[str, Any]], copied: Config) -> None:
    take_answers_back(copied)
    resources = copied.resources.model_dump() | {
        "generate": {"max_workers": 2, "num_cpus": 0.1},
        "teachers": {"codes": {"max_workers": 3, "num_cpus": 0.1, "shards_in_flight": 2}},
    }
    config = copied.model_copy(update={"resources": type(copied.resources).model_validate(resources)})
    kept = Kept()
    driver.run(config, kept, LocalPool())
    assert [step for step, _ in kept.steps if step.startswith("generate")] == ["generate: counts", "generate: codes"]
    mine, theirs = contents(Path(config.run_dir)), contents(Path(finished[0].run_dir))
    assert [key for key in theirs if mine.get(key) != theirs[key]] == []


@pytest.mark.long
def test_a_row_that_kills_its_worker_costs_that_row(
    finished: tuple[Config, dict[str, Any]], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_answers_back(copied)
    victim = next(row["sample_id"] for row in rows_of(finished[0]).values() if row["teacher"] == "counts")
    monkeypatch.setenv("FAKE_TEACHER_DIES_ON", victim)
    resources = copied.resources.model_copy(update={"max_attempts": 1})
    manifest = driver.run(copied.model_copy(update={"resources": resources}), Kept(), LocalPool())
    assert manifest["stages"]["generate"]["dropped"] == {"teacher_failed": 1}
    assert manifest["set_aside"] == []
    lost = rows_of(finished[0]).keys() - rows_of(copied).keys()
    assert {name.rpartition("/")[0] for name in lost} == {victim.rpartition("/")[0]}


def test_a_shard_that_is_set_aside_can_be_tried_again(
    finished: tuple[Config, dict[str, Any]], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last teacher fails on all its rows of one shard: what the first one wrote of it stays for the next try."""
    take_answers_back(copied)
    resources = copied.resources.model_copy(update={"max_attempts": 1})
    config = copied.model_copy(update={"resources": resources})
    first = tuple(f"row-{number}/" for number in range(10))
    answer = fake_teacher.OtherTeacher.answer

    async def refuses(self: Any, prompt_ids: Any, request_id: str, seed: int, max_tokens: int) -> Any:
        if request_id.startswith(first):
            raise RuntimeError("not this shard")
        return await answer(self, prompt_ids, request_id, seed, max_tokens)

    with monkeypatch.context() as patch:
        patch.setattr(fake_teacher.OtherTeacher, "answer", refuses)
        manifest, _ = run_inline(config)
    assert len(manifest["set_aside"]) == 1
    assert sum(name.startswith("00000.") for name in open_folder(config.run_dir).list(keys.PARTS)) == 1
    again = driver.run(config, Kept(), InlinePool(), retry_set_aside=True)
    assert again["set_aside"] == []
    assert contents(Path(config.run_dir)) == contents(Path(finished[0].run_dir))


def test_pieces_that_nobody_puts_together_end_the_run(
    raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in a dataset that lacks a shard, of which nothing says so."""

    async def keeps(self: Any, shard: str, source: Any, part: Any) -> Any:
        return part

    monkeypatch.setattr(Worker, "_joined", keeps)
    raw = raw | {"run_dir": str(tmp_path / "run"), "source": {**raw["source"], "limit": 10}}
    with pytest.raises(RunError, match=r"generate/00000.parquet: is damaged or gone 3 times"):
        run_inline(Config.model_validate(raw))


def test_purge_leaves_the_counts_right(copied: Config) -> None:
    rows = rows_of(copied)
    victim = next(row for row in rows.values() if row["teacher"] == "codes")
    purge(copied.run_dir, [victim["prompt_id"]])
    manifest = json.loads((Path(copied.run_dir) / keys.MANIFEST).read_text())
    left = [row["teacher"] for row in rows_of(copied).values()]
    assert {teacher["name"]: teacher["rows"] for teacher in manifest["teachers"]} == {
        name: left.count(name) for name in ("counts", "codes")
    }
    names = [f"{n:05d}.parquet" for n in range(6)]
    screened = index.read(copied, open_folder(copied.run_dir), "screen", names)
    counted = [count["rows"] for summary in screened.values() for count in summary.teachers.values()]
    assert sum(counted) == sum(summary.rows_out for summary in screened.values())


# ---------------------------------------------------------------------------------------------------------------------
# Scored, and checked before


def test_scored_by_two_teachers(raw: Raw, tmp_path: Path) -> None:
    scored = {key: value for key, value in raw.items() if key != "sampling"}
    scored |= {"task": "score", "run_dir": str(tmp_path / "mixed")}
    mixed = Config.model_validate(scored)
    manifest, _ = run_inline(mixed)
    assert [teacher["rows"] > 5 for teacher in manifest["teachers"]] == [True, True]
    for number, name in enumerate(mixed.teacher_names):
        single = Config.model_validate(alone(scored, number, name))
        run_inline(single)
        theirs = rows_of(single)
        mine = {key: row for key, row in rows_of(mixed).items() if row.pop("teacher") == name}
        assert mine == {key: theirs[key] for key in mine}
    assert verify(mixed.run_dir, num_workers=1)["problems"] == []


def test_check_counts_rows_and_tells_idle_teachers(raw: Raw, tmp_path: Path) -> None:
    raw = raw | {"run_dir": str(tmp_path / "run")}
    tasks = [NAMES[row["meta"]["task"]] for row in make_rows()]
    result = check.check(Config.model_validate(raw), rows=ROWS, tokens_per_second=1000)
    assert result["teachers"] == {name: tasks.count(name) for name in ("counts", "codes")}
    assert result["refused"] == {"no_teacher": tasks.count(None)}
    assert not [note for note in result["notes"] if "teachers" in note]
    raw["teachers"] = [{**raw["teachers"][0], "when": {"meta.tsak": ["math"]}}, raw["teachers"][1]]
    result = check.check(Config.model_validate(raw), rows=ROWS, tokens_per_second=1000)
    assert "counts would get none of the" in "".join(result["notes"])


def test_teachers_with_other_tokenizers_are_refused(raw: Raw, tmp_path: Path, weights: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(weights, other, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    teachers = [raw["teachers"][0], {**raw["teachers"][1], "model": str(other)}]
    config = Config.model_validate(raw | {"teachers": teachers, "run_dir": str(tmp_path / "run")})
    for asked in (lambda: check.check(config, rows=5, tokens_per_second=1000), lambda: run_inline(config)):
        with pytest.raises(ConfigError, match=r"counts has the tokenizer \w{12} and codes \w{12}"):
            asked()
    assert not (tmp_path / "run").exists()
