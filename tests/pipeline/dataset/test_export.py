"""`stillhouse export`: its files, resume, what is refused. What each layout holds is in tests/stages/layouts."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.pipeline import cli
from stillhouse.pipeline.dataset import export
from stillhouse.pipeline.dataset.target import STAGED
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.folder import open_folder, shard
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.schemas.config import ConfigError
from stillhouse.stages.layouts import LAYOUTS
from tests.support.children import die_at, in_child
from tests.support.datasets import (
    DATASETS,
    K,
    exported_rows,
    make_export,
    published_rows,
    read_manifest,
    replace_published,
    write_dataset,
    write_manifest,
)


def test_files_hold_the_layouts_rows(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    folder, manifest = make_export(run, "axolotl")
    assert manifest["rows"] == len(exported_rows(folder)) == 20
    assert [row["input_ids"] for row in exported_rows(folder)] == [row["input_ids"] for row in published_rows(run)]


@pytest.mark.parametrize("kind", ["target", "draw", None])
def test_settings_are_taken_from_the_dataset(tmp_path: Path, kind: Any) -> None:
    run = write_dataset(tmp_path)
    rows = published_rows(run)
    settings = make_export(run, "distillkit", kind=kind)[1]["settings"]
    assert settings["max_length"] == max(row["num_input_tokens"] for row in rows)
    assert settings["width"] == (K if kind != "draw" else max(max(row["draw_lengths"]) for row in rows))
    assert make_export(run, "tinker", kind=kind)[1]["settings"]["kind"] == (kind or "draw")


def test_openai(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    folder, manifest = make_export(run, "openai")
    lines = [line for file in sorted((folder / "data").glob("*.jsonl")) for line in file.read_bytes().split(b"\n")[:-1]]
    assert [json.loads(line) for line in lines] == [
        {"messages": [{"role": m["role"], "content": m["content"]} for m in row["messages"]]}
        for row in published_rows(run)
    ]
    assert manifest["rows"] == 20


def test_longer_conversations_are_left_out_and_counted(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    lengths = sorted(row["num_input_tokens"] for row in published_rows(run))
    folder, manifest = make_export(run, "distillkit", max_length=lengths[5])
    kept = [length for length in lengths if length <= lengths[5]]
    assert manifest["rows"] == len(exported_rows(folder)) == len(kept) < 20
    assert manifest["rows_too_long"] == 20 - len(kept)
    assert verify(str(folder), 1)["ok"]


@pytest.mark.parametrize("options", DATASETS)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "openai"])
def test_a_part_at_a_time_is_the_same_as_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, options: dict[str, Any]
) -> None:
    run = write_dataset(tmp_path, **options)
    whole = exported_rows(make_export(run, layout)[0])
    monkeypatch.setattr("stillhouse.stages.layouts.rows.BATCH_BYTES", 10)  # one conversation
    parts = export.export(str(run), layout, str(tmp_path / "parts"), num_workers=1)
    assert exported_rows(tmp_path / "parts") == whole
    file = pq.ParquetFile(tmp_path / "parts" / parts["files"][0]["file"])
    assert file.num_row_groups > 1


def test_resume_makes_what_is_missing_and_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_dataset(tmp_path)
    folder, manifest = make_export(run, "axolotl")
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in (folder / "data").iterdir()}
    assert not list(folder.glob(".*"))
    (folder / "manifest.json").unlink()
    gone = folder / manifest["files"][1]["file"]
    gone.unlink()
    assert make_export(run, "axolotl")[1] == manifest
    for file in (folder / "data").iterdir():
        assert file.read_bytes() == before[file.name][1]
        assert (file.stat().st_mtime_ns == before[file.name][0]) == (file != gone)
    monkeypatch.setattr(export, "_make", None)  # nothing is looked at once it is finished
    assert make_export(run, "axolotl")[1] == manifest


@pytest.mark.parametrize("layout", ["axolotl", "openai", "distillkit-compressed"])
def test_a_finished_export_that_has_lost_files_is_made_whole(tmp_path: Path, layout: str) -> None:
    run = write_dataset(tmp_path)
    folder, manifest = make_export(run, layout)
    before = {file.name: file.read_bytes() for file in folder.rglob("*.*")}
    gone, cut = (folder / file["file"] for file in manifest["files"][:2])
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-9])
    assert not verify(str(folder), 1)["ok"]
    assert make_export(run, layout)[1] == manifest
    for file in folder.glob("*.yaml"):  # DistillKit's own, beside the data
        file.unlink()
        assert not verify(str(folder), 1)["ok"]
    assert make_export(run, layout)[1] == manifest
    assert {file.name: file.read_bytes() for file in folder.rglob("*.*")} == before


def test_what_killed_exports_have_staged_is_swept(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    folder, _ = make_export(run, "axolotl")
    (folder / STAGED).mkdir()
    for name, age_s in (("old", 3700), ("new", 60)):
        (folder / STAGED / name).touch()
        os.utime(folder / STAGED / name, (time.time() - age_s,) * 2)
    make_export(run, "axolotl")
    assert [file.name for file in (folder / STAGED).iterdir()] == ["new"]


def test_killed_at_every_step_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # slow, and what a process has written outlives it anyway
    run = write_dataset(tmp_path / "run", num_rows=(2, 0))
    undisturbed = make_export(run, "distillkit-compressed")[1]
    output = tmp_path / "killed"

    def export_and_die(step: int) -> None:
        die_at(step)
        export.export(str(run), "distillkit-compressed", str(output), num_workers=1)

    step = 0
    while True:
        step += 1
        shutil.rmtree(output, ignore_errors=True)
        if in_child(lambda step=step: export_and_die(step)) == 0:  # type: ignore[misc]
            break
        for file in output.glob("data/*.parquet"):
            shard.read(open_folder(str(output)), f"data/{file.name}")  # whole, or not there
        assert export.export(str(run), "distillkit-compressed", str(output), num_workers=1) == undisturbed
        assert verify(str(output), 1)["ok"]
    assert step > 20


def test_processes_make_the_same(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    alone = make_export(run, "axolotl")[1]
    together = export.export(str(run), "axolotl", str(tmp_path / "two"), num_workers=2)
    assert [file["sha256"] for file in alone["files"]] == [file["sha256"] for file in together["files"]]


@pytest.mark.parametrize("layout", ["axolotl", "openai"])
def test_a_damaged_file_is_not_taken_for_done(tmp_path: Path, layout: str) -> None:
    run = write_dataset(tmp_path)
    folder, manifest = make_export(run, layout)
    (folder / "manifest.json").unlink()
    file = folder / manifest["files"][0]["file"]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ShardError, match=r"train-00000-of-00003.*delete it"):
        make_export(run, layout)


def test_another_export_is_not_mixed_in(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    folder, _ = make_export(run, "axolotl", kind="target")
    with pytest.raises(ConfigError, match="other settings"):
        make_export(run, "axolotl", kind="draw")
    (folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match="not axolotl"):
        make_export(run, "axolotl", kind="draw")


def test_a_source_file_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    table = pq.read_table(run / "dataset/data/train-00000-of-00003.parquet")
    data = shard.encode(table.slice(1), ShardInfo("publish", "x", "0" * 64, 6, 6))
    (run / "dataset/data/train-00000-of-00003.parquet").write_bytes(data)
    with pytest.raises(ShardError, match="is not the file that manifest"):
        make_export(run, "axolotl")


def test_a_supervised_first_token_is_refused(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    rows = pq.read_table(run / "dataset/data/train-00000-of-00003.parquet").to_pylist()
    first = rows[1]["labels"]
    place = next(t for t, label in enumerate(first) if label != -100)
    first[0], first[place] = rows[1]["input_ids"][0], -100
    replace_published(run, 0, rows)
    with pytest.raises(ValueError, match="nothing predicts it"):
        make_export(run, "verl")


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("top_k", ["--to", "axolotl", "--targets", "sampled"], "has no sampled targets"),
        ("sampled", ["--to", "axolotl", "--targets", "top_k"], "has no top-K targets"),
        ("both", ["--to", "axolotl", "--max-length", "99"], "means nothing for axolotl"),
        ("both", ["--to", "distillkit", "--max-length", "1"], "hold no prompt and answer"),
    ],
)
def test_what_cannot_be_made_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, arguments: list[str], message: str
) -> None:
    run = write_dataset(tmp_path, method=method)
    assert cli.main(["export", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--to", "trl"], ["--to", "verl", "--workers", "0"], []])
def test_wrong_arguments_are_usage_errors(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(tmp_path), *arguments])
    assert ended.value.code == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layout in LAYOUTS:
        assert cli.main(["export", str(tmp_path / "nothing"), "--to", layout]) == 2
        assert "holds no finished dataset" in capsys.readouterr().err
    run = write_dataset(tmp_path / "run")
    assert cli.main(["export", str(run), "--to", "distillkit-compressed", "--json", "--workers", "1"]) == 0
    captured = capsys.readouterr()
    output = json.loads(captured.out)
    folder = run / "exports/distillkit-compressed"
    assert output == read_manifest(folder)
    assert "distillkit-compressed data/train-00000-of-00003.parquet: 14 rows, " in captured.err
    assert "distillkit-compressed: 20 conversations, " in captured.err
    assert "note: Set missing_probability_handling: zero." in captured.err
    assert yaml.safe_load((folder / "compression_config.yaml").read_text())["k"] == K
    assert "missing_probability_handling: zero" in (folder / "README.md").read_text()
    assert cli.main(["verify", str(folder), "--workers", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ok"]
    assert "a row gives its own token a mean probability of 0." in captured.err
    assert captured.err.endswith("no problems found\n")


def test_loads_as_a_hugging_face_dataset(tmp_path: Path) -> None:
    import datasets

    folder, manifest = make_export(write_dataset(tmp_path / "run"), "axolotl")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == manifest["rows"]
    assert loaded[0]["target_token_ids"] == exported_rows(folder)[0]["target_token_ids"]


def test_exports_of_two_runs_load_as_themselves(tmp_path: Path) -> None:
    """Their folders have one name, and `datasets` caches by it where a card lists data_files."""
    import datasets

    inputs = []
    for seed, name in enumerate(("first", "second")):
        folder, _ = make_export(write_dataset(tmp_path / name, seed=seed), "axolotl")
        loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        inputs.append([row["input_ids"] for row in published_rows(tmp_path / name)])
        assert loaded["input_ids"][:] == inputs[-1]
    assert inputs[0] != inputs[1]


def test_a_softcapped_teacher_is_warned_of(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    manifest = read_manifest(run / "dataset")
    manifest["teacher"]["final_logit_softcapping"] = 30.0
    write_manifest(run / "dataset", manifest)
    folder, made = make_export(run, "axolotl")
    assert "caps its logits at 30" in made["notes"][0]
    assert "caps its logits at 30" in (folder / "README.md").read_text()
