"""`stillhouse verify`: for each thing it looks at, a dataset that is wrong in that and nothing else."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline import cli
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.stages.layouts import LAYOUTS
from tests.support.datasets import (
    DATASETS,
    K,
    Row,
    V,
    make_export,
    read_manifest,
    replace_exported,
    replace_published,
    write_dataset,
    write_manifest,
)

FIRST = "dataset/data/train-00000-of-00003.parquet"


@pytest.mark.parametrize("options", DATASETS)
@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_nothing_wrong_is_found_in_what_is_right(tmp_path: Path, options: dict[str, Any], layout: str | None) -> None:
    run = write_dataset(tmp_path, **options)
    folder = run if layout is None else make_export(run, layout)[0]
    result = verify(str(folder), 1)
    assert result["ok"], result["problems"]
    assert (result["rows"], result["target_tokens"]) == (20, read_manifest(run / "dataset")["target_tokens"])
    if layout != "openai":
        before, own, after = result["probability_before_own_after"]
        assert own > 10 * max(before, after)


def shift(values: list[Any]) -> list[Any]:
    return values[1:] + values[:1]


def shift_targets(row: Row) -> None:
    row["target_ids"] = row["target_ids"][K:] + row["target_ids"][:K]
    row["target_logprobs"] = row["target_logprobs"][K:] + row["target_logprobs"][:K]
    row["target_tail"] = shift(row["target_tail"])


def set_at(name: str, index: int, value: Any) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row[name][index] = value

    return change


def unsupervise(row: Row) -> None:
    row["labels"] = [-100] * len(row["labels"])


def break_label(row: Row) -> None:
    place = next(t for t, label in enumerate(row["labels"]) if label != -100)
    row["labels"][place] = (row["labels"][place] + 1) % V


def drop_label(row: Row) -> None:
    place = next(t for t, label in enumerate(row["labels"]) if label != -100)
    row["labels"][place] = -100


DATASET_FAULTS: dict[str, Callable[[Row], None]] = {
    "disagree with token_logprobs": shift_targets,
    "outside of a vocabulary": set_at("target_ids", 0, V),
    "input_ids from": set_at("input_ids", 0, -7),
    "not in order": set_at("target_logprobs", 1, 0.0),
    "sum to": set_at("target_tail", 0, -0.01),
    "do not sum to num_draws": set_at("draw_counts", 0, 1000),
    "labels differ from input_ids": break_label,
    "supervises nothing": unsupervise,
    "supervised tokens": drop_label,
}


@pytest.mark.parametrize("message", DATASET_FAULTS)
def test_faults_of_a_dataset(tmp_path: Path, message: str) -> None:
    run = write_dataset(tmp_path)
    rows = pq.read_table(run / FIRST).to_pylist()
    row = next(n for n, row in enumerate(rows) if row["num_target_tokens"] > 3)
    DATASET_FAULTS[message](rows[row])
    replace_published(run, 0, rows)
    result = verify(str(run), 1)
    assert not result["ok"]
    (problem,) = result["problems"]
    assert problem.startswith(f"{FIRST.removeprefix('dataset/')} row {row} (sample 5-{row}/0): "), problem
    assert message in problem


NAN, INF = float("nan"), float("inf")
NOT_LOGPROBS: dict[str, Callable[[Row], None]] = {
    "one NaN": set_at("target_logprobs", 2, NAN),
    "a row of NaN": lambda row: row.update(target_logprobs=[NAN] * len(row["target_logprobs"])),
    "infinite": set_at("target_logprobs", 0, INF),
    "positive": set_at("target_logprobs", 0, 1.0),
    "a tail of NaN": set_at("target_tail", 0, NAN),
    "a positive tail": set_at("target_tail", 0, 1.0),
    "a written token of NaN": set_at("token_logprobs", 0, NAN),
    "a written token that is impossible": set_at("token_logprobs", 0, -INF),
    "a positive written token": set_at("token_logprobs", 0, 1.0),
}


@pytest.mark.parametrize("kind", NOT_LOGPROBS)
def test_numbers_that_are_no_log_probabilities(tmp_path: Path, kind: str) -> None:
    """One row of them also must not blind the test for shifts."""
    run = write_dataset(tmp_path)
    rows = pq.read_table(run / FIRST).to_pylist()
    NOT_LOGPROBS[kind](rows[1])
    replace_published(run, 0, rows)
    result = verify(str(run), 1)
    assert not result["ok"]
    assert ["row 1 (sample" in text and "no log-probabilities" in text for text in result["problems"]] == [True]
    assert np.isfinite(result["probability_before_own_after"]).all()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("openai", "distillkit-compressed")])
def test_exported_numbers_that_are_no_log_probabilities(tmp_path: Path, layout: str) -> None:
    export, manifest = make_export(write_dataset(tmp_path), layout)
    name, lowest = SHIFTED[layout][1], 0.0 if layout == "tinker" else -100.0
    file = manifest["files"][0]
    rows = pq.read_table(export / file["file"]).to_pylist()
    position = next(j for j, values in enumerate(rows[1][name]) if max(values, default=-INF) > lowest)
    rows[1][name][position][0] = NAN
    replace_exported(export, manifest, file, rows)
    result = verify(str(export), 1)
    (problem,) = result["problems"]
    assert "row 1 (sample 5-1/0): " in problem
    assert "are NaN or infinite" in problem
    assert np.isfinite(result["probability_before_own_after"]).all()


@pytest.mark.parametrize(("draws_from", "num_problems"), [("engine", 1), ("top_k", 0)])
def test_draws_may_be_missing_where_they_are_not_from_the_whole_distribution(
    tmp_path: Path, draws_from: str, num_problems: int
) -> None:
    run = write_dataset(tmp_path, method="sampled", config={"targets.draws_from": draws_from})
    rows = pq.read_table(run / FIRST).to_pylist()
    place = next(i for i, count in enumerate(rows[3]["draw_counts"]) if count > 1)
    rows[3]["draw_counts"][place] -= 1
    replace_published(run, 0, rows)
    problems = verify(str(run), 1)["problems"]
    assert [FIRST.removeprefix("dataset/") + " row 3 (sample 5-3/0): draw_counts" in text for text in problems] == [
        True
    ] * num_problems


def test_shifted_draws(tmp_path: Path) -> None:
    """Draws have no log-probability to compare with: how often the token written was drawn tells."""
    run = write_dataset(tmp_path, method="sampled")
    for number in (0, 1):
        rows = pq.read_table(run / f"dataset/data/train-0000{number}-of-00003.parquet").to_pylist()
        for row in rows:
            ends = np.cumsum(row["draw_lengths"])[0]
            for name in ("draw_ids", "draw_counts"):
                row[name] = row[name][ends:] + row[name][:ends]
            row["draw_lengths"] = shift(row["draw_lengths"])
        replace_published(run, number, rows)
    result = verify(str(run), 1)
    assert ["rows belong to other tokens" in text for text in result["problems"]] == [True] * 2


SHIFTED = {
    "axolotl": ["target_token_ids", "target_logprobs", "target_mask"],
    "distillkit": ["token_ids", "top_values"],
    "distillkit-compressed": ["bytepacked_indices", "compressed_logprobs"],
    "verl": ["teacher_ids", "teacher_logprobs"],
    "tinker": ["target_tokens", "weights"],
}


@pytest.mark.parametrize("layout", SHIFTED)
def test_shifted_exports(tmp_path: Path, layout: str) -> None:
    """Rows as they were before a shift: own-token where next-token belongs."""
    folder, manifest = make_export(write_dataset(tmp_path), layout)
    for file in manifest["files"][:2]:
        rows = pq.read_table(folder / file["file"]).to_pylist()
        for row in rows:
            for name in SHIFTED[layout]:
                row[name] = row[name][-1:] + row[name][:-1]
        replace_exported(folder, manifest, file, rows)
    result = verify(str(folder), 1)
    assert not result["ok"]
    expected = {"axolotl": "other positions", "tinker": "rows before"}.get(layout, "where the mask reads none")
    assert [expected in problem for problem in result["problems"]] == [True] * 2


@pytest.mark.parametrize("layout", SHIFTED)
def test_ids_outside_of_the_vocabulary(tmp_path: Path, layout: str) -> None:
    folder, manifest = make_export(write_dataset(tmp_path), layout)
    manifest["settings"]["vocab_size"] = 290 if layout != "distillkit-compressed" else 260
    write_manifest(folder, manifest)
    result = verify(str(folder), 1)
    assert any("manifest.json: the export was made with other settings" in text for text in result["problems"])
    assert any("target ids from" in text and "outside of a vocabulary" in text for text in result["problems"])


@pytest.mark.parametrize("line", ["{", '{"messages": []}', '{"messages": [{"role": "user", "content": "x"}]}', "[]"])
def test_lines_that_are_no_conversation(tmp_path: Path, line: str) -> None:
    folder, manifest = make_export(write_dataset(tmp_path), "openai")
    file = manifest["files"][0]
    data = (folder / file["file"]).read_bytes().splitlines(keepends=True)
    data[2] = line.encode() + b"\n"
    (folder / file["file"]).write_bytes(b"".join(data))
    changed = b"".join(data)
    manifest["bytes"] += len(changed) - file["bytes"]
    file |= {"sha256": hashlib.sha256(changed).hexdigest(), "bytes": len(changed)}
    write_manifest(folder, manifest)
    (problem,) = verify(str(folder), 1)["problems"]
    assert "train-00000-of-00003.jsonl row 2 (sample 5-2/0): " in problem


def test_damage(tmp_path: Path) -> None:
    run = write_dataset(tmp_path)
    files = [run / "dataset" / file["file"] for file in read_manifest(run / "dataset")["files"]]
    (run / "dataset/data/train-00003-of-00003.parquet").write_bytes(files[0].read_bytes())
    assert "is not in manifest.json" in " ".join(verify(str(run), 1)["problems"])
    (run / "dataset/data/train-00003-of-00003.parquet").unlink()
    data = bytearray(files[0].read_bytes())
    data[100] ^= 1
    files[0].write_bytes(data)
    files[1].unlink()
    first, second = verify(str(run), 1)["problems"]
    assert first.startswith("data/train-00000-of-00003.parquet: is not the file that manifest.json names")
    assert second.startswith("data/train-00001-of-00003.parquet: is missing")
    (run / "dataset/manifest.json").write_text("{}")
    assert cli.main(["verify", str(run)]) == 1
