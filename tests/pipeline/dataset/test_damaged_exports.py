"""Exports damaged in one way and certified again, as a faulty exporter would leave them: beside their dataset, and
alone where numbers are enough."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.dataset.withhold import withhold
from stillhouse.schemas.config import ConfigError
from stillhouse.stages.layouts import LAYOUTS
from tests.support.damage import TARGETS, Folder, Rows, copied, positions, tokens_of
from tests.support.data import TEACHER
from tests.support.datasets import Row, make_export, write_dataset, write_manifest

Damage = Callable[[Folder], None]
LISTS = [*TARGETS]
MASKED = ["axolotl", "distillkit", "distillkit-compressed"]
PADDED = ["distillkit", "distillkit-compressed", "verl"]


def in_row(change: Callable[[Row, str], Any]) -> Damage:
    """`change` of the longest conversation of the largest file."""

    def damage(folder: Folder) -> None:
        def change_row(rows: Rows) -> None:
            change(max(rows, key=lambda row: len(positions(row, folder.layout))), folder.layout)

        folder.change(folder.largest(), change_row)

    return damage


def in_file(change: Callable[[Rows, str], Any]) -> Damage:
    return lambda folder: folder.change(folder.largest(), lambda rows: change(rows, folder.layout))


def shift_file(rows: Rows, layout: str) -> None:
    """Every row of targets goes a token on, inside of the mask, so that only the numbers tell."""
    for row in rows:
        at = positions(row, layout)
        for name in TARGETS[layout]:
            values = [row[name][j] for j in at]
            for j, value in zip(at, values[-1:] + values[:-1], strict=True):
                row[name][j] = value


def exchange_targets(rows: Rows, layout: str) -> None:
    """The two longest conversations exchange targets, as far as both have tokens."""
    first, second = sorted(rows, key=lambda row: len(positions(row, layout)))[-2:]
    for i, j in zip(positions(first, layout), positions(second, layout), strict=False):
        for name in TARGETS[layout]:
            first[name][i], second[name][j] = second[name][j], first[name][i]


def exchange_rows(rows: Rows, layout: str) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def replace_token(row: Row, layout: str, *, of_answer: bool) -> None:
    first = positions(row, layout)[0] + 1
    tokens, place = tokens_of(row, layout, first if of_answer else 7)
    tokens[place] = 4321
    if layout == "axolotl" and of_answer:
        row["labels"][place] = 4321
    if layout.startswith("distillkit") and of_answer and row["labels"][place] >= 0:
        row["labels"][place] = 4321


def answer_token(row: Row, layout: str) -> None:
    replace_token(row, layout, of_answer=True)


def prompt_token(row: Row, layout: str) -> None:
    replace_token(row, layout, of_answer=False)


def set_number(value: float) -> Callable[[Row, str], None]:
    def change(row: Row, layout: str) -> None:
        values = row[TARGETS[layout][1]][positions(row, layout)[1]]
        if layout == "distillkit-compressed":
            values[:2] = np.array([value], "<f2").view(np.uint8).tolist()
        else:
            values[0] = value

    return change


def masked_number(row: Row, layout: str) -> None:
    """NaN where no target is: times a mask of 0 it is NaN again."""
    values = row[TARGETS[layout][1]][0]
    if layout == "distillkit-compressed":
        values[:2] = np.array([np.nan], "<f2").view(np.uint8).tolist()
    else:
        values[0] = np.nan


def id_outside(row: Row, layout: str) -> None:
    """In a masked place, where a trainer looks it up all the same."""
    row[TARGETS[layout][0]][0][0] = 60_000


def id_twice(row: Row, layout: str) -> None:
    ids = row[TARGETS[layout][0]][positions(row, layout)[2]]
    if layout == "distillkit-compressed":  # 16 bits an id
        ids[2:4] = ids[:2]
    else:
        ids[1] = ids[0]


def cool(row: Row, layout: str) -> None:
    """Another temperature, the mass kept within 1."""
    for j in positions(row, layout):
        values = row[TARGETS[layout][1]][j]
        if layout == "distillkit-compressed":
            logprobs = np.array(values, np.uint8).view("<f2") * 2
            row[TARGETS[layout][1]][j] = logprobs.astype("<f2").view(np.uint8).tolist()
        elif layout == "tinker":
            row["weights"][j] = (np.square(values) / np.square(values).sum()).tolist()
        else:
            row[TARGETS[layout][1]][j] = [2 * value for value in values]


def disorder(row: Row, layout: str) -> None:
    width = 2 if layout == "distillkit-compressed" else 1
    for name in TARGETS[layout]:
        values = row[name][positions(row, layout)[1]]
        values[:width], values[-width:] = values[-width:], values[:width]


def stray_targets(row: Row, layout: str) -> None:
    """Targets where the mask reads none."""
    source = positions(row, layout)[0]
    for name in TARGETS[layout]:
        row[name][1] = row[name][source]


def hide(row: Row, layout: str) -> None:
    row["attention_mask"] = [0] * len(row["attention_mask"])


def other_label(row: Row, layout: str) -> None:
    place = next(t for t, label in enumerate(row["labels"]) if label != -100)
    row["labels"][place] += 1


def label_too_few(row: Row, layout: str) -> None:
    place = next(t for t, label in enumerate(row["labels"]) if label != -100)
    row["labels"][place] = -100


def unmask(row: Row, layout: str) -> None:
    row["response_mask"][0] = 0


def too_heavy(row: Row, layout: str) -> None:
    j = positions(row, layout)[0]
    row["weights"][j] = [2 * weight for weight in row["weights"][j]]


def of_64_bits(folder: Folder) -> None:
    table = pq.read_table(folder.file(0))
    name = "prompts" if folder.layout == "verl" else "input_ids"
    column = table.column(name).cast(pa.list_(pa.int64()))
    folder.replace(0, table.set_column(table.column_names.index(name), name, column))


def with_column(folder: Folder) -> None:
    table = pq.read_table(folder.file(0))
    folder.replace(0, table.append_column("sample_id", pa.array(["x"] * table.num_rows)))


def of_another_export(folder: Folder) -> None:
    folder.replace(0, pq.read_table(folder.file(0)), config_hash="f" * 64)


def miscounted(folder: Folder) -> None:
    folder.manifest["files"][0]["target_tokens"] += 1
    folder.save()


BIG = r"data/train-\d{5}-of-00008\.parquet"
ROW = BIG + r" row \d+( \(sample \S+\))?: "
READ = ROW + "cannot be learned from as .* reads it: "
ANYWHERE: dict[str, tuple[Damage, str, list[str]]] = {
    "a file dropped": (lambda folder: folder.drop(2), "lists 7 files, .* missing", LISTS),
    "a file in another's place": (lambda folder: folder.double(0, 2), "00002.*: its footer says", LISTS),
    "a file of another export": (of_another_export, r"00000.*: its footer says .* ffffffffffff", LISTS),
    "ids of 64 bits": (of_64_bits, "00000.*: column .* has type list<.*int64>", LISTS),
    "a column too many": (with_column, "00000.*: has a column too many: sample_id", LISTS),
    "tokens miscounted": (miscounted, "00000.*: holds .* supervised tokens, its footer says", LISTS),
    "a file shifted": (in_file(shift_file), BIG + "(: alignment: rows give| row .*not the dataset's)", LISTS),
    "NaN": (in_row(set_number(np.nan)), READ + "1 of .* are NaN or infinite", LISTS),
    "minus infinity": (in_row(set_number(-np.inf)), READ + "1 of .* are NaN or infinite", LISTS),
    "NaN in a masked place": (in_row(masked_number), READ + "1 of .* are NaN or infinite", LISTS),
    "an id outside of the vocabulary": (
        in_row(id_outside),
        READ + "target ids from .* to 60000, outside",
        [name for name in LISTS if name != "distillkit-compressed"],
    ),
    "an id twice": (in_row(id_twice), ROW + "target ids of 1 tokens hold an id twice", LISTS),
    "targets not in order": (in_row(disorder), ROW + "targets are not in order, most probable first", LISTS),
    "a probability above 1": (
        in_row(set_number(0.5)),
        ROW + "rows whose probabilities sum to",
        [name for name in LISTS if name != "tinker"],
    ),
    "targets where none are read": (in_row(stray_targets), READ + "1 rows of .* hold targets where", PADDED),
    "every token hidden": (in_row(hide), READ + ".*attention_mask", MASKED),
    "a label of another token": (in_row(other_label), READ + "labels differ from input_ids at 1 tokens", MASKED),
    "a label too few": (in_row(label_too_few), "holds .* supervised tokens|the mask marks|hold targets", MASKED),
    "a response that begins masked": (in_row(unmask), READ + "response_mask is not made of 0 and 1", ["verl"]),
    "weights of more than 1": (in_row(too_heavy), READ + "weights of a token from .* sums of", ["tinker"]),
}
ALONE: dict[str, tuple[Damage, str, list[str]]] = {
    "targets of two rows exchanged": (
        in_file(exchange_targets),
        ROW + "alignment: rows give .* the same is wrong in 1 more",
        [name for name in LISTS if name != "tinker"],  # whose weights do not say what is outside of them
    ),
}
COMPARED: dict[str, tuple[Damage, str, list[str]]] = {
    "a file twice, certified": (lambda f: f.double(0, 2, recertified=True), "00002.*: holds", LISTS),
    "a row dropped": (in_file(lambda rows, layout: rows.pop()), BIG + ": holds .* the dataset's file has", LISTS),
    "a row twice": (
        in_file(lambda rows, layout: rows.append(rows[0])),
        BIG + ": holds .* the dataset's file has",
        LISTS,
    ),
    "rows exchanged": (in_file(exchange_rows), ROW, LISTS),
    "targets of two rows exchanged": (
        in_file(exchange_targets),
        ROW + "target ids of .* the same is wrong in 1 more",
        LISTS,
    ),
    "an answer token replaced": (in_row(answer_token), ROW + "input_ids differ from the dataset's at 1 tokens", LISTS),
    "a prompt token replaced": (in_row(prompt_token), ROW + "input_ids differ .* at 1 tokens, first at 7", LISTS),
    "another temperature": (in_row(cool), ROW + "probabilities of .* are not the dataset's, by up to", LISTS),
}


def cases(damages: dict[str, tuple[Damage, str, list[str]]]) -> list[Any]:
    return [pytest.param(layout, kind, id=f"{kind}-{layout}") for kind in damages for layout in damages[kind][2]]


@pytest.mark.parametrize(("layout", "kind"), cases(ANYWHERE | COMPARED))
def test_damage_beside_the_dataset(exported: Path, tmp_path: Path, layout: str, kind: str) -> None:
    damage, expected, _ = (ANYWHERE | COMPARED)[kind]
    folder = copied(exported, layout, tmp_path, alone=False)
    damage(folder)
    result = verify(str(folder.path), 1)
    assert result["dataset"] is not None
    assert re.search(expected, (result["problems"] or [""])[0]), result["problems"]
    assert result["num_problems"] <= (2 if kind == "rows exchanged" else 1), result["problems"]


@pytest.mark.parametrize(("layout", "kind"), cases(ANYWHERE | ALONE))
def test_damage_of_an_export_alone(exported: Path, tmp_path: Path, layout: str, kind: str) -> None:
    damage, expected, _ = (ANYWHERE | ALONE)[kind]
    folder = copied(exported, layout, tmp_path, alone=True)
    damage(folder)
    result = verify(str(folder.path), 1)
    assert [sentence for sentence in result["not_checked"] if "was not compared with its dataset" in sentence]
    assert re.search(expected, (result["problems"] or [""])[0]), result["problems"]
    assert result["num_problems"] == 1, result["problems"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alone", [False, True])
def test_nothing_is_found_without_damage(exported: Path, tmp_path: Path, layout: str, alone: bool) -> None:
    folder = copied(exported, layout, tmp_path, alone=alone)
    if layout != "openai":
        folder.change(0, lambda rows: None)
    result = verify(str(folder.path), 1)
    assert result["problems"] == []
    assert result["rows"] == folder.manifest["rows"]
    named = verify(str(folder.path), 1, dataset=str(exported))
    assert (named["problems"], named["not_checked"]) == ([], [])


def test_a_whole_file_twice_is_seen_without_the_dataset(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, "verl", tmp_path, alone=True)
    folder.double(0, 2, recertified=True)
    (problem,) = verify(str(folder.path), 1)["problems"]
    assert re.search(r"00002-of-00008\.parquet: holds the same \d+ rows as data/train-00000", problem)


def test_three_of_eight_files_shifted(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, "distillkit", tmp_path, alone=True)
    tokens = [file["target_tokens"] for file in folder.manifest["files"]]
    shifted = sorted(sorted(range(8), key=lambda number: tokens[number])[-3:])
    for number in shifted:
        folder.change(number, lambda rows: shift_file(rows, "distillkit"))
    problems = verify(str(folder.path), 1)["problems"]
    assert len(problems) == 3
    for number, problem in zip(shifted, problems, strict=True):
        assert re.match(rf"data/train-{number:05d}-of-00008\.parquet: alignment: rows give", problem)


def test_an_export_of_another_dataset(exported: Path, tmp_path: Path) -> None:
    other, _ = make_export(write_dataset(tmp_path), "verl")
    (problem,) = verify(str(other), 1, dataset=str(exported))["problems"]
    assert "the export was made from another dataset" in problem


def test_a_tokenizer_means_nothing_for_an_export(exported: Path, tmp_path: Path) -> None:
    withhold(str(exported), str(tmp_path / "masked"), 1)
    for folder in (exported / "exports/openai", tmp_path / "masked"):
        with pytest.raises(ConfigError, match=r"--teacher: .* is an export, whose text is not compared"):
            verify(str(folder), 1, teacher=str(TEACHER))


def test_the_compression_that_a_trainer_is_told(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, "distillkit-compressed", tmp_path, alone=True)
    (folder.path / "compression_config.yaml").write_text("d: 1\n")
    (problem,) = verify(str(folder.path), 1)["problems"]
    assert problem.startswith("compression_config.yaml: is missing, or not what")


def test_at_least_forty_kinds() -> None:
    from tests.pipeline.dataset.test_damaged_datasets import DAMAGE
    from tests.pipeline.dataset.test_damaged_lines import LINES

    assert len(set(itertools.chain(DAMAGE, ANYWHERE, COMPARED, LINES))) >= 40


def test_manifests_of_older_exports(exported: Path, tmp_path: Path) -> None:
    """They do not say which files were set aside, nor how the teacher wrote: what needs that is not checked."""
    folder = copied(exported, "verl", tmp_path, alone=True)
    folder.drop(2)
    del folder.manifest["set_aside"], folder.manifest["sampling"]
    write_manifest(folder.path, folder.manifest)
    result = verify(str(folder.path), 1)
    assert result["ok"]
    assert [sentence for sentence in result["not_checked"] if "1 of 8 files are missing or were set aside" in sentence]
    assert [sentence for sentence in result["not_checked"] if "temperature" in sentence]
