"""`stillhouse inspect`: what it counts, compared with the files; what it shows, and what it never emits or reads."""

import io
import json
import math
import re
import shutil
import statistics
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline import cli
from stillhouse.pipeline.folder import columns, keys, open_folder, shard
from stillhouse.pipeline.folder.local import LocalFolder
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.pipeline.look.inspect import heat
from stillhouse.pipeline.look.inspect.command import Asked, inspect
from stillhouse.pipeline.look.page import asset
from stillhouse.schemas.config import ConfigError
from tests.support.command import read
from tests.support.data import ROOT, STAGES
from tests.support.datasets import make_export
from tests.support.looked_at import OBEYED, SHOWN, UNSAFE, make_looked_at

Shown = Callable[..., tuple[int, str]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shown:
    """Exit code and standard error of the command, at so many columns."""

    def show(*arguments: str, columns: int = 10_000) -> tuple[int, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        code = cli.main(["inspect", *arguments])
        captured = capsys.readouterr()
        assert captured.out == ""
        return code, captured.err

    return show


def asked(path: Path | str, **options: Any) -> dict[str, Any]:
    return inspect(str(path), Asked(**options))


# --- counts ----------------------------------------------------------------------------------------------------------


def test_the_funnel_is_that_of_the_files(looked_at: Path) -> None:
    found = asked(looked_at)
    manifest = json.loads((looked_at / "dataset/manifest.json").read_text())
    assert [*found["stages"]] == [*STAGES]
    for stage in STAGES:
        counts = found["stages"][stage]
        files = sorted((looked_at / keys.stage_folder(stage)).glob("*.parquet"))
        assert (counts["shards"], counts["of"]) == (len(files), 4)
        assert counts["bytes"] == sum(file.stat().st_size for file in files)
        assert counts["rows_out"] == read(looked_at / keys.stage_folder(stage)).num_rows
        if stage != "publish":
            reasons = read(looked_at / f"ledger/{stage}").column("reason").to_pylist()
            assert counts["dropped"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
            assert {name: counts[name] for name in ("rows_in", "rows_out", "dropped")} == manifest["stages"][stage]
    assert found["stages"]["dedupe"]["dropped"] == {"exact_duplicate": 1}
    expected = {name: manifest[name] for name in ("rows", "target_tokens", "bytes", "fidelity", "teacher")}
    assert {name: found[name] for name in expected} == expected
    assert (found["state"], found["kind"], found["stage"]) == ("finished", "run", "publish")
    assert (found["settings"], found["config_hash"]) == (manifest["config"], manifest["config_hash"])
    assert (found["notes"], found["set_aside"]) == ([], [])


def test_distributions_are_those_of_the_columns(looked_at: Path) -> None:
    found = asked(looked_at)
    table = read(looked_at / "dataset/data")
    lengths = table.column("num_input_tokens").to_numpy()
    told = found["numbers"]["num_input_tokens"]
    assert (told["count"], told["nulls"]) == (len(lengths), 0)
    assert told["mean"] == pytest.approx(lengths.mean(), rel=1e-5)
    cuts = statistics.quantiles(lengths.tolist(), n=20, method="inclusive")  # every 5 %
    expected = {"min": lengths.min(), "p5": cuts[0], "p25": cuts[4], "p50": cuts[9], "p75": cuts[14], "p95": cuts[18]}
    for name, value in (expected | {"max": lengths.max()}).items():
        assert told[name] == pytest.approx(value, rel=1e-5), name
    scores = [row["profanity"] for row in table.column("response_scores").to_pylist()]
    assert found["numbers"]["response_scores.profanity"]["max"] == pytest.approx(max(scores), rel=1e-5)
    languages = table.column("language").to_pylist()
    assert found["values"]["language"] == {name: languages.count(name) for name in set(languages)}
    reasons = [reason for row in table.column("finish_reasons").to_pylist() for reason in row]
    assert found["values"]["finish_reasons"] == {name: reasons.count(name) for name in set(reasons)}
    assert "source_row" not in found["numbers"]


def test_many_names_are_counted_together(tmp_path: Path) -> None:
    table = pa.table({"language": [f"l{i // (i % 7 + 1)}" for i in range(100)], "x": pa.array([None, 1.5] * 50)})
    (tmp_path / "00000.parquet").write_bytes(shard.encode(table, ShardInfo("screen", "00000.parquet", "", 100, 100)))
    found = asked(tmp_path)
    assert sum(found["values"]["language"].values()) == 100
    assert len(found["values"]["language"]) == 21
    assert "(others)" in found["values"]["language"]
    assert found["numbers"]["x"] == {
        "count": 50, "nulls": 50, "mean": 1.5, "min": 1.5, "p5": 1.5, "p25": 1.5, "p50": 1.5, "p75": 1.5, "p95": 1.5,
        "max": 1.5,
    }  # fmt: skip
    assert (found["state"], found["settings"], found["teacher"]) == ("unknown", None, None)


def test_columns_in_several_passes(looked_at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.pipeline.look.inspect import distributions

    before = asked(looked_at)
    monkeypatch.setattr(distributions, "MAX_NUMBERS", 1)
    assert asked(looked_at) == before


def test_a_run_that_has_begun(looked_at: Path, tmp_path: Path) -> None:
    run = shutil.copytree(looked_at, tmp_path / "run")
    for folder in ("dataset", "review", "ledger/review", "state/index"):
        shutil.rmtree(run / folder)
    (run / "generate/00001.parquet").write_bytes((run / "generate/00001.parquet").read_bytes()[:1000])
    (run / "generate/00002.parquet").unlink()
    (run / "state/set_aside/generate").mkdir(parents=True)
    (run / "state/set_aside/generate/00002.json").write_text("{}")
    found = asked(run)
    assert (found["state"], found["stage"]) == ("unfinished", "generate")
    assert (found["stages"]["generate"]["shards"], found["stages"]["generate"]["of"]) == (3, 4)
    tables = [pq.read_table(run / f"generate/0000{n}.parquet") for n in (0, 3)]
    assert found["rows"] == sum(table.num_rows for table in tables)
    assert found["fidelity"]["tokens"] == sum(sum(table.column("num_target_tokens").to_pylist()) for table in tables)
    assert found["fidelity_estimated_from"] == {"rows": found["rows"], "of": found["rows"]}
    assert found["set_aside"] == ["generate 00002.parquet"]
    (note,) = found["notes"]
    assert "generate/00001.parquet: is damaged" in note
    assert found["settings"] == json.loads((run / "run.json").read_text())["deciding"]
    assert found["config_hash"] == json.loads((run / "run.json").read_text())["config_hash"]
    whole = {sample for table in tables for sample in table.column("sample_id").to_pylist()}
    assert {row["sample_id"] for row in asked(run, samples=100)["samples"]} == whole
    steps = asked(run, row="id-7")["row"]["steps"]  # of the damaged shard
    assert [(step["stage"], step["status"]) for step in steps[2:]] == [
        ("screen", "kept"), ("generate", "missing"), ("review", "missing"), ("publish", "missing"),
    ]  # fmt: skip
    assert asked(run, against=str(looked_at))["against"]["prompts"]["only_here"] == 0


def test_an_index_of_what_was_there_before_is_not_believed(looked_at: Path, tmp_path: Path) -> None:
    run = shutil.copytree(looked_at, tmp_path / "run")
    path = run / "review/00001.parquet"
    table = pq.read_table(path).slice(0, 2)
    path.write_bytes(shard.encode(table, ShardInfo("review", "00001.parquet", "", 50, 2, 7)))
    before, after = asked(looked_at)["stages"]["review"], asked(run)["stages"]["review"]
    rows = pq.read_metadata(looked_at / "review/00001.parquet").num_rows
    assert after["rows_out"] == before["rows_out"] - rows + 2
    assert asked(path)["target_tokens"] == 7


def test_before_ingest_has_ended(tmp_path: Path, looked_at: Path) -> None:
    shutil.copy(looked_at / "run.json", tmp_path)
    found = asked(tmp_path)
    assert (found["kind"], found["state"], found["stage"], found["rows"]) == ("run", "unfinished", None, 0)
    assert found["stages"] == {}


def test_a_dataset_alone_tells_the_funnel_of_its_manifest(looked_at: Path, tmp_path: Path) -> None:
    shutil.copytree(looked_at / "dataset", tmp_path / "copy")
    found, whole = asked(tmp_path / "copy"), asked(looked_at)
    for name in ("rows", "target_tokens", "numbers", "values", "fidelity", "teacher", "settings", "config_hash"):
        assert found[name] == whole[name], name
    for stage in STAGES[:-1]:
        for name in ("rows_in", "rows_out", "dropped"):
            assert found["stages"][stage][name] == whole["stages"][stage][name]
        assert found["stages"][stage]["shards"] is None
    (tmp_path / "copy/data/train-00001-of-00004.parquet").unlink()
    assert [note.partition(": ")[2] for note in asked(tmp_path / "copy")["notes"]] == [
        "of the manifest's files 1 are missing"
    ]


@pytest.mark.parametrize("layout", ["axolotl", "tinker", "openai"])
def test_exports(looked_at: Path, tmp_path: Path, layout: str, shown: Shown) -> None:
    output, manifest = make_export(shutil.copytree(looked_at, tmp_path / "run"), layout)
    found = asked(output)
    assert (found["kind"], found["layout"], found["stage"]) == ("export", layout, layout)
    assert (found["rows"], found["target_tokens"]) == (manifest["rows"], manifest["target_tokens"])
    assert found["bytes"] == manifest["bytes"]
    assert found["notes"] == []
    assert shown(str(output))[0] == 0


def test_one_shard(looked_at: Path, tmp_path: Path) -> None:
    table = pq.read_table(looked_at / "review/00001.parquet")
    for path in (looked_at / "review/00001.parquet", shutil.copy(looked_at / "review/00001.parquet", tmp_path)):
        found = asked(path)
        assert (found["kind"], found["rows"]) == ("shard", table.num_rows)
        assert [*found["stages"]] == ["review"]
        assert found["numbers"]["num_target_tokens"]["count"] == table.num_rows


def test_a_ledger(looked_at: Path, shown: Shown) -> None:
    found = asked(looked_at / "ledger/screen")
    assert found["stages"]["screen"]["dropped"] == {"unsafe_prompt": 1}
    (row,) = asked(looked_at / "ledger/screen", dropped="unsafe_prompt")["dropped"]
    assert UNSAFE in row["conversation"]["messages"][0]["content"]
    code, said = shown(str(looked_at / "ledger/screen"), "--samples", "1")
    assert (code, "no rows but a ledger's" in said) == (2, True)


def test_object_store(looked_at: Path, bucket: str) -> None:
    folder = open_folder(f"{bucket}/run")
    for path in looked_at.rglob("*"):
        if path.is_file():
            folder.put(path.relative_to(looked_at).as_posix(), path.read_bytes())
    for options in ({"samples": 3}, {"dropped": "unsafe_prompt"}, {"row": "id-7"}):
        found, here = asked(f"{bucket}/run", **options), asked(looked_at, **options)
        assert found | {"path": ""} == here | {"path": ""}


# --- rows ------------------------------------------------------------------------------------------------------------


def test_samples_are_drawn_without_replacement(looked_at: Path) -> None:
    every = read(looked_at / "dataset/data").column("sample_id").to_pylist()
    drawn = [row["sample_id"] for row in asked(looked_at, samples=1000)["samples"]]
    assert drawn == every
    few = [[row["sample_id"] for row in asked(looked_at, samples=4, seed=seed)["samples"]] for seed in (1, 1, 2)]
    assert few[0] == few[1] != few[2]
    assert len(set(few[0])) == 4
    seen = {row["sample_id"] for seed in range(40) for row in asked(looked_at, samples=4, seed=seed)["samples"]}
    assert seen == set(every)


def test_samples_of_a_stage(looked_at: Path) -> None:
    rows = asked(looked_at, samples=100, stage="screen")["samples"]
    table = read(looked_at / "screen")
    assert [row["prompt_id"] for row in rows] == table.column("prompt_id").to_pylist()
    assert [[message["content"] for message in row["messages"]] for row in rows] == table["user_turns"].to_pylist()
    with pytest.raises(ConfigError, match=r"--stage nonsense: .* has no files of it; it has ingest, dedupe"):
        asked(looked_at, stage="nonsense")


def test_dropped_rows_have_their_text_from_the_stage_before(looked_at: Path) -> None:
    (row,) = asked(looked_at, dropped="exact_duplicate")["dropped"]
    assert (row["stage"], row["prompt_id"], row["source_row"]) == ("dedupe", "id-5", 5)
    assert row["conversation"]["messages"][0]["content"] == "What is the 4th prime number, and why?"
    (row,) = asked(looked_at, dropped="unsafe_prompt")["dropped"]
    assert (row["stage"], row["prompt_id"], row["note"]) == ("screen", "id-3", None)
    assert row["conversation"]["messages"][0]["content"].startswith(UNSAFE)
    assert row["scores"]["profanity"] > 0.9
    (row,) = asked(looked_at, dropped="starts_with_assistant")["dropped"]
    assert (row["stage"], row["conversation"], row["source_row"]) == ("ingest", None, 2)
    assert "in the source alone" in row["note"]
    assert asked(looked_at, dropped="too_long")["dropped"] == []
    with pytest.raises(
        ConfigError, match="were dropped for empty_answer, exact_duplicate, starts_with_assistant, unsafe_prompt"
    ):
        asked(looked_at, dropped="nonsense")


def test_dropped_answers(looked_at: Path, tmp_path: Path) -> None:
    """Of two samples of a prompt the one that was dropped."""
    run = make_looked_at(tmp_path, review={"drop_truncated": True}, sampling={"max_tokens": 4})
    ledger = read(run / "ledger/review").to_pylist()
    dropped = {row["sample_id"] for row in ledger if row["reason"] == "truncated_answer"}
    found = asked(run, dropped="truncated_answer", samples=100)["dropped"]
    assert {row["sample_id"] for row in found} == dropped
    assert len(dropped) > 4
    assert all(row["conversation"]["sample_id"] == row["sample_id"] for row in found)
    assert len(asked(run, dropped="truncated_answer", samples=2)["dropped"]) == 2
    shutil.rmtree(run / "generate")
    row = asked(run, dropped="truncated_answer", samples=1)["dropped"][0]
    assert (row["conversation"], "is not here" in row["note"]) == (None, True)


def test_a_walk_ends_with_the_tokens_of_the_answers(looked_at: Path) -> None:
    walk = asked(looked_at, row="id-7")["row"]
    table = read(looked_at / "dataset/data")
    rows = [row for row in table.to_pylist() if row["prompt_id"] == "id-7"]
    assert [row["tokens"]["ids"] for row in walk["conversations"]] == [row["input_ids"] for row in rows]
    assert [step["stage"] for step in walk["steps"]][:4] == ["ingest", "dedupe", "screen", "generate"]
    assert (walk["id"], walk["more"]) == ("id-7", 0)
    (only,) = asked(looked_at, row="id-7/1")["row"]["conversations"]
    assert only["sample_id"] == "id-7/1"
    (dropped,) = asked(looked_at, row="id-3")["row"]["conversations"]
    assert UNSAFE in dropped["messages"][0]["content"]
    with pytest.raises(ConfigError, match="--row 'nobody': no prompt_id or sample_id"):
        asked(looked_at, row="nobody")


def test_a_teacher_that_moved_is_told(looked_at: Path, tmp_path: Path, weights: Path) -> None:
    run = shutil.copytree(looked_at, tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    facts["deciding"]["teacher.model"] = "/nowhere/teacher"
    (run / "run.json").write_text(json.dumps(facts))
    found = asked(run, row="id-7/0")
    assert found["row"]["conversations"][0]["tokens"]["texts"][0].startswith("#")
    assert [note for note in found["notes"] if "/nowhere/teacher cannot be loaded" in note]
    found = asked(run, row="id-7/0", tokenizer=str(weights))
    assert found["row"]["conversations"][0]["tokens"]["texts"][0] == "<|im_start|>"


def test_what_the_template_added_is_shown(looked_at: Path, shown: Shown) -> None:
    (row,) = asked(looked_at, row="id-7/0")["row"]["conversations"]
    assert row["template_added"].startswith("You are a helpful AI assistant named SmolLM")
    _, said = shown(str(looked_at), "--row", "id-7/0")
    assert "added by the chat template, and in no message:\nYou are a helpful AI assistant named SmolLM" in said


def test_rows_that_are_asked_for_come_alone(looked_at: Path, shown: Shown) -> None:
    verdict = asked(looked_at)["verdict"]["sentences"][0]
    assert verdict in shown(str(looked_at))[1]
    assert "settings" in shown(str(looked_at))[1]
    for way in (["--samples", "1"], ["--dropped", "unsafe_prompt"], ["--row", "id-7"]):
        _, said = shown(str(looked_at), *way)
        assert verdict not in said
        assert "settings" not in said
    code, said = shown(str(looked_at), "--dropped", "too_long")
    assert (code, "no row was dropped for this reason" in said) == (0, True)


def test_the_least_likely_tokens_come_first_and_names_stay_whole(looked_at: Path, shown: Shown) -> None:
    rows = read(looked_at / "dataset/data").to_pylist()
    longest = max(rows, key=lambda row: row["num_target_tokens"])["sample_id"]
    _, said = shown(str(looked_at), "--row", longest, columns=80)
    assert re.search(r"^ *publish.* dataset/data/train-\d+-of-00004.parquet row \d+", said, re.M)
    places = [int(n) for n in re.findall(r"^ +(\d+)  ", said.partition("least likely first")[2], re.M)]
    (row,) = asked(looked_at, row=longest)["row"]["conversations"]
    first = row["tokens"]["supervised"].index(1)
    logprobs = [row["tokens"]["logprobs"][place - first] for place in places]
    assert len(places) > 3
    assert logprobs == sorted(logprobs)


def test_tokens_have_the_same_bands_in_the_browser() -> None:
    script = asset("conversation.js")
    assert f"const HEAT = {json.dumps(heat.SHARES)};" in script
    assert f"const BANDS = {json.dumps(heat.BANDS, ensure_ascii=False)};" in script
    limits = [float(n) / 100 for band in heat.BANDS for n in re.findall(r"\d+", band)]
    assert sorted(set(limits)) == sorted(heat.SHARES)  # words and colours agree, and nothing is between two bands
    styles = [heat.style(math.log(1.001 * share)) for share in (0.99, *heat.SHARES)]
    assert styles[0] == styles[1]
    assert len(set(styles)) == len(heat.SHARES)
    assert heat.style(math.log(0.019)) == heat.style(None) not in styles


# --- two runs --------------------------------------------------------------------------------------------------------


def test_against(looked_at: Path, tmp_path: Path, shown: Shown) -> None:
    strict = {
        "max_dropped_fraction": 1.0,
        "classifiers": [{"name": "profanity-check", "thresholds": {"profanity": 0.05}}],
    }
    other = make_looked_at(tmp_path, sampling={"seed": 5}, screen=strict)
    compared = asked(looked_at, against=str(other), samples=2)["against"]
    assert compared["settings"].keys() == {"screen.classifiers[0].thresholds", "sampling.seed", "source.path"}
    assert compared["settings"]["sampling.seed"] == [0, 5]
    assert compared["facts"] == asked(other)
    here, there = (set(read(run / "dataset/data").column("prompt_id").to_pylist()) for run in (looked_at, other))
    assert compared["prompts"] == {
        "both": len(here & there), "only_here": len(here - there), "only_there": len(there - here),
    }  # fmt: skip
    assert len(here - there) > 0
    dropped = [read(run / "ledger/screen").num_rows for run in (looked_at, other)]
    assert compared["stages"]["screen"]["dropped"] == {"unsafe_prompt": dropped}
    assert "ingest" not in compared["stages"]
    assert len(compared["answers"]) == 2
    for pair in compared["answers"]:
        a, b = pair["conversations"]
        assert a["prompt_id"] == b["prompt_id"] == pair["prompt_id"]
        assert a["messages"][0] == b["messages"][0]
        assert a["messages"][1] != b["messages"][1]
    code, said = shown(str(looked_at), "--against", str(other), "--samples", "1")
    assert code == 0
    assert re.search(r"sampling\.seed +A +0\b", said)
    nothing = asked(looked_at, against=str(looked_at))["against"]
    assert (nothing["settings"], nothing["stages"], nothing["answers"]) == ({}, {}, [])
    assert nothing["prompts"] == {"both": len(here), "only_here": 0, "only_there": 0}


# --- what is emitted -------------------------------------------------------------------------------------------------

WAYS = [["--samples", "100"], ["--row", "id-1"], ["--dropped", "unsafe_prompt"], ["--stage", "screen"]]


def obeyed(text: str) -> list[str]:
    """Characters that a terminal, or a reader of text, would obey or not show."""
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]


@pytest.mark.parametrize("way", [*WAYS, ["--against", "", "--samples", "100"]], ids=" ".join)
@pytest.mark.parametrize("width", [80, 10_000])
def test_what_a_terminal_would_obey_is_shown(looked_at: Path, shown: Shown, way: list[str], width: int) -> None:
    code, said = shown(str(looked_at), *(argument or str(looked_at) for argument in way), columns=width)
    assert code == 0
    assert obeyed(said) == []
    if width > 80 and way[0] in ("--samples", "--row"):
        assert SHOWN in said
    if way[0] == "--dropped":
        assert r"canary \x1b[31munsafe" in said


def test_colours_are_ours(looked_at: Path, monkeypatch: pytest.MonkeyPatch, shown: Shown) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    _, said = shown(str(looked_at), "--row", "id-1")
    ours = re.findall(r"\x1b\[[0-9;]*m", said)
    assert len(ours) > 20  # tokens are coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert obeyed(plain) == []
    assert SHOWN in plain


def test_json_escapes_everything_and_is_alone_on_standard_output(looked_at: Path) -> None:
    results = io.StringIO()
    assert cli.main(["inspect", str(looked_at), "--samples", "100", "--json"], results) == 0
    text = results.getvalue()
    assert obeyed(text) == []
    contents = [row["messages"][0]["content"] for row in json.loads(text)["samples"]]
    assert OBEYED in contents


def test_no_text_unless_asked_for(looked_at: Path, shown: Shown) -> None:
    _, said = shown(str(looked_at))
    results = io.StringIO()
    assert cli.main(["inspect", str(looked_at), "--json"], results) == 0
    for text in (said, results.getvalue()):
        assert "canary" not in text
        assert "prime" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits(looked_at: Path, shown: Shown, width: int) -> None:
    for way in ([], *WAYS):
        _, said = shown(str(looked_at), *way, columns=width)
        wide = [line for line in said.splitlines() if len(line.rstrip()) > width]
        assert wide == []


def test_usage(looked_at: Path, shown: Shown) -> None:
    for arguments, words in (
        ([str(looked_at / "nothing")], "holds no run"),
        ([str(looked_at), "--stage", "x"], "--stage x"),
        ([str(looked_at), "--row", "x"], "--row 'x'"),
    ):
        code, said = shown(*arguments)
        assert (code, words in said, said.count("\n")) == (2, True, 1)


# --- what is read ----------------------------------------------------------------------------------------------------


def test_little_is_read_of_a_large_run(looked_at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shutil.copytree(looked_at, tmp_path / "run")
    large = pa.concat_tables([read(looked_at / "generate")] * 1200).combine_chunks()
    random = np.random.default_rng(1)
    for name, column in (
        ("prompt_id", pa.array([f"p-{i}" for i in range(large.num_rows)])),
        ("target_logprobs", _noise(large.column("target_logprobs"), random)),  # or it compresses to nothing
    ):
        large = large.set_column(large.schema.get_field_index(name), name, column)
    monkeypatch.setattr(shard, "ROW_GROUP_BYTES", large.nbytes // 20)
    info = ShardInfo("generate", "00000.parquet", "", large.num_rows, large.num_rows)
    (run / "generate/00000.parquet").write_bytes(shard.encode(large, info))
    size = (run / "generate/00000.parquet").stat().st_size
    assert size > 5_000_000
    monkeypatch.setattr(columns, "_READ_BYTES", 4 << 10)  # row groups are so much smaller than a run's
    counts = [0]

    def bytes_read(**options: Any) -> int:
        counts[0] = 0
        asked(run / "generate/00000.parquet", **options)
        return counts[0]

    def counted(name: str) -> Any:
        method = getattr(LocalFolder, name)

        def call(self: LocalFolder, key: str, *arguments: Any) -> bytes:
            data: bytes = method(self, key, *arguments)
            counts[0] += len(data) if key == "generate/00000.parquet" else 0
            return data

        return call

    for name in ("part", "tail", "get"):
        monkeypatch.setattr(LocalFolder, name, counted(name))
    facts_alone, *others = bytes_read(), bytes_read(samples=1), bytes_read(row="p-777")
    assert facts_alone < 0.25 * size
    assert max(others) < facts_alone + 0.2 * size  # a row group of twenty, and the ids


def _noise(column: pa.ChunkedArray, random: np.random.Generator) -> pa.ListArray:
    lists = column.combine_chunks()
    return pa.ListArray.from_arrays(lists.offsets, pa.array(random.random(len(lists.values), np.float32) * -9))


def test_the_page_has_every_key(looked_at: Path) -> None:
    page = (ROOT / "docs/inspecting.md").read_text()
    found = asked(looked_at, row="id-7", against=str(looked_at))
    for options in ({"samples": 1}, {"dropped": "unsafe_prompt"}, {"filters": True}):
        found |= asked(looked_at, **options)
    cells = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.M)
    assert {name for cell in cells for name in re.findall(r"\w+", cell)} == found.keys()
    (example,) = re.findall(r"^```json\n(.*?)^```$", page, re.M | re.S)
    told, given = json.loads(example), found["row"]["conversations"][0]
    assert [*told] == [*given]
    assert [*told["tokens"]] == [*given["tokens"]]
    assert [*told["messages"][0]] == [*given["messages"][0]]
    for name in ("alternatives", "draws"):
        assert [type(value) for value in told["tokens"][name][0][0]] == [type(v) for v in given["tokens"][name][0][0]]
    one = found["filters"][-1] | next(entry["settings"][0] for entry in found["filters"] if entry["settings"])
    told_of = {"dropped": found["dropped"][0], "row": found["row"], "filters": one, "against": found["against"]}
    for name, keys_of in told_of.items():
        (line,) = re.findall(rf"^\| `{name}` \|(.*)$", page, re.M)
        assert keys_of.keys() <= {*re.findall(r"`(\w+)`", line)}, name
