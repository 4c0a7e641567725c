"""A dataset damaged in one way and certified again, as a faulty writer would leave it: the damage is found and named,
and nothing else is told."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.dataset.verify import verify
from tests.support.damage import Folder, Rows
from tests.support.datasets import Row, write_manifest

Damage = Callable[[Folder], None]
K = 8


def in_row(change: Callable[[Row], Any], number: int = 0) -> Damage:
    """`change` of the longest conversation of a file."""

    def damage(folder: Folder) -> None:
        folder.change(number, lambda rows: change(max(rows, key=lambda row: row["num_target_tokens"])))

    return damage


def in_rows(change: Callable[[Rows], Any], number: int = 0) -> Damage:
    return lambda folder: folder.change(number, change)


def in_table(change: Callable[[pa.Table], pa.Table], **facts: Any) -> Damage:
    return lambda folder: folder.replace(0, change(pq.read_table(folder.file(0))), **facts)


def in_manifest(**changes: Any) -> Damage:
    def damage(folder: Folder) -> None:
        write_manifest(folder.path, folder.manifest | changes)

    return damage


def set_at(name: str, index: int, value: Any) -> Damage:
    return in_row(lambda row: row[name].__setitem__(index, value))


def cast(name: str, kind: pa.DataType) -> Damage:
    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, name, table.column(name).cast(kind))

    return in_table(change)


def swap(*names: str) -> Damage:
    """The first and the last conversation exchange columns."""

    def change(rows: Rows) -> None:
        for name in names:
            rows[0][name], rows[-1][name] = rows[-1][name], rows[0][name]

    return in_rows(change)


def shift(row: Row, *also: str) -> None:
    """Targets a token late, inside of the mask."""
    for name in ("target_ids", "target_logprobs"):
        row[name] = row[name][K:] + row[name][:K]
    for name in ("target_tail", *also):
        row[name] = row[name][1:] + row[name][:1]


def shift_all(rows: Rows) -> None:
    for row in rows:
        shift(row)


def shift_draws(row: Row) -> None:
    first = row["draw_lengths"][0]
    for name in ("draw_ids", "draw_counts"):
        row[name] = row[name][first:] + row[name][:first]
    row["draw_lengths"] = row["draw_lengths"][1:] + row["draw_lengths"][:1]


def swap_targets(rows: Rows) -> None:
    """Two conversations exchange targets, as far as both have tokens."""
    first, second = rows[0], rows[1]
    S = min(first["num_target_tokens"], second["num_target_tokens"])
    for name in ("target_ids", "target_logprobs", "target_tail", "token_logprobs"):
        n = S * K if name in ("target_ids", "target_logprobs") else S
        first[name][:n], second[name][:n] = second[name][:n], first[name][:n]


def replace_answer(row: Row) -> None:
    place = next(t for t, label in enumerate(row["labels"]) if label != -100)
    row["input_ids"][place] = row["labels"][place] = 4321


def break_label(row: Row) -> None:
    place = next(t for t, label in enumerate(row["labels"]) if label != -100)
    row["labels"][place] += 1


def supervise_prompt(row: Row) -> None:
    row["labels"][3] = row["input_ids"][3]


def cut_end(row: Row) -> None:
    """The end of turn alone loses its label."""
    row["labels"][-1] = -100


def cool(row: Row) -> None:
    row["target_logprobs"] = [2 * value for value in row["target_logprobs"]]


def speak_as_control(row: Row) -> None:
    row["input_ids"][7] = 2


def say_else(role: str) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        message = next(message for message in row["messages"] if message["role"] == role)
        message["content"] += " indeed"

    return change


def flip_finish(rows: Rows, reason: str) -> None:
    row = next(row for row in rows if row["finish_reasons"][-1] == reason)
    row["finish_reasons"][-1] = {"stop": "length", "length": "stop"}[reason]


def drop_last_and_rename(folder: Folder) -> None:
    folder.drop(7)
    for file in folder.manifest["files"]:
        new = file["file"].replace("-of-00008", "-of-00007")
        (folder.path / file["file"]).rename(folder.path / new)
        file["file"] = new
    folder.save()


def of_another_run(folder: Folder) -> None:
    folder.replace(2, pq.read_table(folder.file(2)), config_hash="f" * 64)


def unlisted(folder: Folder) -> None:
    shutil.copy(folder.file(0), folder.path / "data/train-00008-of-00009.parquet")


def listed_twice(folder: Folder) -> None:
    folder.manifest["files"].append(folder.manifest["files"][0])
    folder.save()


def with_null(table: pa.Table) -> pa.Table:
    rows = table.to_pylist()
    rows[1]["labels"][0] = None
    return pa.Table.from_pylist(rows, schema=table.schema)


def repeat_sample(folder: Folder) -> None:
    """A row of one file once more in another."""
    row = folder.rows(0)[0]
    folder.change(2, lambda rows: rows.append(row))


def rename_sample(row: Row) -> None:
    row["sample_id"] = "somebody/0"


def supervise_first(row: Row) -> None:
    place = next(t for t, label in enumerate(row["labels"]) if label != -100)
    row["labels"][0], row["labels"][place] = row["input_ids"][0], -100


def descend(row: Row) -> None:
    first = next(s for s, length in enumerate(row["draw_lengths"]) if length > 1)
    at = sum(row["draw_lengths"][:first])
    for name in ("draw_ids", "draw_counts"):
        row[name][at], row[name][at + 1] = row[name][at + 1], row[name][at]


def lose_target(row: Row) -> None:
    row["target_lengths"][0] -= 1
    for name in ("target_ids", "target_logprobs"):
        row[name].pop(K - 1)


def go_on(row: Row) -> None:
    row["input_ids"].append(28)
    row["labels"].append(-100)
    row["num_input_tokens"] += 1


def other_scores(table: pa.Table) -> pa.Table:
    """Another classifier's label in both columns of scores."""
    for name in ("prompt_scores", "response_scores"):
        scores = pa.array([{"toxicity": 0.1}] * table.num_rows, pa.struct([pa.field("toxicity", pa.float32())]))
        table = table.set_column(table.column_names.index(name), name, scores)
    return table


def say_no_hash(folder: Folder) -> None:
    folder.manifest["config"]["sampling.seed"] = 99
    folder.save()


ROW = r"data/train-00000-of-00008\.parquet row \d+ \(sample \S+\): "
FILE = r"data/train-00000-of-00008\.parquet: "
OTHERS = "disagree with token_logprobs about .* rows belong to other tokens"
DAMAGE: dict[str, tuple[Damage, str]] = {
    "a file dropped": (lambda folder: folder.drop(3), r"lists 7 files, and their names say 8; 1 are missing \(00003\)"),
    "the last file dropped, the others renamed": (drop_last_and_rename, "rows, and that review let .* pass"),
    "a file in another's place": (
        lambda f: f.double(0, 2),
        r"00002-of-00008\.parquet: its footer says .*00000\.parquet",
    ),
    "a file twice, certified": (lambda f: f.double(0, 2, recertified=True), r"00002.*: holds \d+ samples that .*00000"),
    "a file of another run": (of_another_run, r"00002-of-00008\.parquet: its footer says .*configuration ffffffffffff"),
    "a file that is not listed": (unlisted, r"train-00008-of-00009\.parquet: is not in manifest\.json"),
    "a file listed twice": (listed_twice, r"lists data/train-00000-of-00008\.parquet 2 times"),
    "a row twice": (in_rows(lambda rows: rows.append(rows[0])), FILE + "holds 1 samples that it holds already"),
    "a sample in two files": (repeat_sample, r"00002-of-00008\.parquet: holds 1 samples that .*00000"),
    "a row dropped": (in_rows(lambda rows: rows.pop()), "rows, and that review let"),
    "rows miscounted": (in_manifest(rows=7), "says 7 rows, its files hold"),
    "tokens miscounted": (in_manifest(target_tokens=7), "says 7 target_tokens, its files hold"),
    "bytes miscounted": (in_manifest(bytes=7), "says 7 bytes, its files hold"),
    "another configuration": (say_no_hash, "its config_hash is not that of its config"),
    "ids of 64 bits": (cast("target_ids", pa.list_(pa.int64())), FILE + "column target_ids has type list<.*int64>"),
    "numbers of 64 bits": (cast("token_logprobs", pa.list_(pa.float64())), "column token_logprobs has type"),
    "a column lost": (in_table(lambda t: t.drop_columns(["target_tail"])), FILE + "has no column target_tail"),
    "a column too many": (in_table(lambda t: t.append_column("x", t["source"])), FILE + "has a column too many: x"),
    "columns in another order": (in_table(lambda t: t.select(t.column_names[::-1])), "columns in another order"),
    "a null": (in_table(with_null), FILE + "has nulls where none belong: 1 in labels"),
    "messages of another row": (swap("messages", "finish_reasons"), ROW),
    "other words of the user": (in_row(say_else("user")), ROW + "the ids before answer 1 are not what the template"),
    "other words of the teacher": (in_row(say_else("assistant")), ROW + "the text of answer 1 in messages is not"),
    "a prompt token replaced": (set_at("input_ids", 7, 4321), ROW + r"the ids before .* from token 7 on"),
    "a control token in a prompt": (in_row(speak_as_control), ROW + r"token 7, .* is a control token \(id 2\)"),
    "an answer token replaced": (in_row(replace_answer), ROW + f"targets {OTHERS}"),
    "an id outside of the vocabulary": (set_at("input_ids", 7, 49152), ROW + "input_ids from .* to 49152, outside"),
    "a target outside of it": (set_at("target_ids", 7, -1), ROW + "target_ids from -1"),
    "a label of another token": (in_row(break_label), ROW + "labels differ from input_ids at 1 tokens"),
    "a prompt token supervised": (in_row(supervise_prompt), ROW + r"\d+ token_logprobs for \d+ supervised tokens"),
    "the end not supervised": (in_row(cut_end), ROW + r"\d+ token_logprobs for \d+ supervised tokens"),
    "an id twice": (in_row(lambda row: row["target_ids"].__setitem__(1, row["target_ids"][0])), ROW + ".*an id twice"),
    "a draw twice": (in_row(lambda row: row["draw_ids"].__setitem__(1, row["draw_ids"][0])), ROW + ".*an id twice"),
    "targets shifted": (
        in_rows(shift_all),
        ROW + f"targets {OTHERS}; the same is wrong in",
    ),
    "targets and their tokens shifted": (in_row(lambda row: shift(row, "token_logprobs")), ROW + f"targets {OTHERS}"),
    "draws shifted": (in_row(shift_draws), ROW + f"draws {OTHERS}"),
    "targets of two rows exchanged": (
        in_rows(swap_targets),
        ROW + f"targets {OTHERS}; the same is wrong in 1 more of its",
    ),
    "NaN": (set_at("target_logprobs", 9, float("nan")), ROW + "targets hold numbers that are no log-probabilities"),
    "an infinite tail": (set_at("target_tail", 3, -np.inf), ROW + "targets hold numbers that are no log-probabilities"),
    "a probability above 1": (set_at("target_logprobs", 0, 0.5), ROW + "targets hold numbers"),
    "another temperature": (in_row(cool), ROW + r"targets and tail of \d+ tokens sum to 0\.\d+, not to 1"),
    "another tail": (set_at("target_tail", 2, -9.0), ROW + "targets and tail of 1 tokens sum to"),
    "targets not in order": (
        in_row(
            lambda row: row.update(target_logprobs=row["target_logprobs"][K - 1 :: -1] + row["target_logprobs"][K:])
        ),
        ROW + "targets are not in order",
    ),
    "a target too few": (set_at("target_lengths", 1, K - 1), ROW + r"7 to 8 targets per token|targets of row"),
    "counts that miss draws": (set_at("draw_counts", 0, 0), ROW + "draw_counts of a token do not sum to num_draws"),
    "num_draws of another run": (in_row(lambda row: row.update(num_draws=17)), ROW + "num_draws is 17"),
    "length where it stopped": (in_rows(lambda rows: flip_finish(rows, "stop")), ROW + ".*finish_reasons say length"),
    "stop where it was cut off": (in_rows(lambda rows: flip_finish(rows, "length")), ROW + "finish_reasons say stop"),
    "no such finish reason": (set_at("finish_reasons", -1, "abort"), ROW + "finish_reasons are not stop"),
    "a finish reason too many": (in_row(lambda row: row["finish_reasons"].insert(0, "stop")), ROW + r"\d answers in"),
    "a sample of no prompt": (in_row(rename_sample), ROW + "its sample_id is not its prompt_id"),
    "tokens of a row miscounted": (in_row(lambda row: row.update(num_input_tokens=5)), ROW + ".* 5 num_input_tokens"),
    "a sample too many": (in_row(lambda row: row.update(sample_id=f"{row['prompt_id']}/5")), ROW + "is sample 5"),
    "the first token supervised": (in_row(supervise_first), ROW + "supervises its first token"),
    "a user who answers": (
        in_row(lambda row: row["messages"][0].update(role="assistant")),
        ROW + r"its \d+ messages are",
    ),
    "draws not in order": (in_row(descend), ROW + "draw_ids of a token do not ascend"),
    "a target lost": (in_row(lose_target), ROW + "7 to 8 targets per token, manifest.json says 8"),
    "a token behind the end": (in_row(go_on), ROW + "1 tokens follow its last answer"),
    "scores of another classifier": (in_table(other_scores), FILE + "has other columns or types than 7 other files"),
    "another verdict on its text": (
        in_row(lambda row: row.update(rendering_differs="text")),
        ROW + "rendering_differs",
    ),
}


@pytest.fixture
def dataset(exported: Path, tmp_path: Path) -> Folder:
    shutil.copytree(exported / "dataset", tmp_path / "dataset")
    return Folder(tmp_path / "dataset")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_told_once(dataset: Folder, kind: str) -> None:
    damage, expected = DAMAGE[kind]
    damage(dataset)
    result = verify(str(dataset.path), 1)
    assert not result["ok"]
    assert not result["not_checked"]
    assert re.search(expected, result["problems"][0]), result["problems"]
    assert result["num_problems"] == 1, result["problems"]


def test_it_is_the_damage_that_is_found(dataset: Folder) -> None:
    """Rows written again without a change are right."""
    dataset.change(0, lambda rows: None)
    assert verify(str(dataset.path), 1)["problems"] == []
