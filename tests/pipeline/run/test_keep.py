"""Entropies and `targets.keep` from a run to its exports: who reads them, and whether they say what was asked for."""

import functools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.dataset.export import default_output, export
from stillhouse.pipeline.dataset.manifest import open_dataset
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.dataset.withhold import withhold
from stillhouse.pipeline.look.conversation import conversation
from stillhouse.pipeline.look.inspect.facts import facts
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.report import write
from stillhouse.schemas import targets
from stillhouse.stages.layouts import LAYOUTS, load_layout
from stillhouse.stages.layouts.records import records
from tests.support.damage import Folder, Rows
from tests.support.datasets import Row
from tests.support.runs import make_run

K, D = 8, 16
KEEPS: dict[str, dict[str, float]] = {"fraction": {"fraction": 0.4}, "above": {"entropy_above": 3.1}}
"""The tests' teacher has entropies around 3.1 nats."""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def finished(name: str) -> Path:
        settings = {"method": "both", "top_k": K, "num_draws": D, "probe_fraction": 1.0}
        settings |= {"keep": KEEPS[name]} if name in KEEPS else {"entropy": True} if name == "all" else {}
        return make_run(tmp_path_factory.mktemp(name), settings)

    return finished


def rows_of(run: Path) -> list[dict[str, Any]]:
    files = sorted((run / "dataset/data").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def answers(row: dict[str, Any]) -> list[list[int]]:
    """The numbers of the supervised tokens of each answer."""
    found: list[list[int]] = []
    number, is_open = 0, False
    for label in row["labels"]:
        if label == -100:
            is_open = False
            continue
        if not is_open:
            found.append([])
        found[-1].append(number)
        number, is_open = number + 1, True
    return found


def expected(row: dict[str, Any], keep: dict[str, float]) -> list[bool]:
    """Which tokens keep their targets, by sorting lists."""
    kept = set()
    for numbers in answers(row):
        if "fraction" in keep:
            order = sorted(numbers, key=lambda s: (-row["teacher_entropy"][s], s))
            kept |= set(order[: math.ceil(round(len(numbers) * keep["fraction"], 9))])
        else:
            kept |= {s for s in numbers if row["teacher_entropy"][s] > keep["entropy_above"]}
    return [s in kept for s in range(row["num_target_tokens"])]


def test_without_the_keys_nothing_is_there(make: Callable[[str], Path]) -> None:
    run = make("none")
    manifest = open_dataset(str(run)).manifest
    assert not [key for key in manifest["config"] if "entropy" in key or "keep" in key]
    assert {"teacher_entropy", "keep"}.isdisjoint(manifest["targets"])
    assert "teacher_entropy" not in manifest["fidelity"]
    assert "teacher_entropy" not in rows_of(run)[0]


def test_entropy_is_a_column_beside_the_same_targets(make: Callable[[str], Path]) -> None:
    plain, told = rows_of(make("none")), rows_of(make("all"))
    assert [row | {"teacher_entropy": None} for row in plain] == [row | {"teacher_entropy": None} for row in told]
    for row in told:
        assert len(row["teacher_entropy"]) == row["num_target_tokens"]
        if row["probe"]:
            assert row["teacher_entropy"][row["probe"]["token"]] == pytest.approx(row["probe"]["entropy"], abs=2e-3)
    assert sum(row["probe"] is not None for row in told) > 3
    manifest = open_dataset(str(make("all"))).manifest
    median = float(np.median([value for row in told for value in row["teacher_entropy"]]))
    assert manifest["fidelity"]["teacher_entropy"]["p50"] == pytest.approx(median, abs=0.051)
    assert manifest["fidelity"]["teacher_entropy"]["p50"] > manifest["fidelity"]["top_k"]["entropy"]["p50"]
    assert "tokens_kept" not in manifest["fidelity"]
    assert verify(str(make("all")), 1)["problems"] == []


@pytest.mark.parametrize("name", KEEPS)
def test_targets_are_where_they_were_asked_for(make: Callable[[str], Path], name: str) -> None:
    run, whole = make(name), rows_of(make("all"))
    kept = left_out = 0
    for row, every in zip(rows_of(run), whole, strict=True):
        assert [row[key] for key in ("input_ids", "labels", "teacher_entropy", "token_logprobs")] == [
            every[key] for key in ("input_ids", "labels", "teacher_entropy", "token_logprobs")
        ]
        wanted = expected(row, KEEPS[name])
        assert row["target_lengths"] == [K if is_kept else 0 for is_kept in wanted]
        ids = np.array(every["target_ids"]).reshape(-1, K)[wanted]
        assert row["target_ids"] == ids.ravel().tolist()
        tails = np.where(wanted, every["target_tail"], 0.0)
        assert row["target_tail"] == tails.tolist()
        draws = [n if is_kept else 0 for n, is_kept in zip(every["draw_lengths"], wanted, strict=True)]
        assert row["draw_lengths"] == draws
        kept += sum(wanted)
        left_out += len(wanted) - sum(wanted)
    assert min(kept, left_out) > 50
    manifest = open_dataset(str(run)).manifest
    fidelity = manifest["fidelity"]
    assert (fidelity["tokens"], fidelity["tokens_kept"]) == (kept + left_out, kept)
    assert fidelity["top_k"]["targets_per_token"] == K
    assert fidelity["top_k"]["written_token_among_them"] == 1.0
    assert max(fidelity["top_k"]["tail_mass"].values()) < 0.2
    assert manifest["targets"]["keep"] == KEEPS[name]
    assert verify(str(run), 1)["problems"] == []
    card = (run / "dataset/README.md").read_text()
    assert f"{100 * kept / (kept + left_out):.0f}" in card
    assert "have labels and no targets" in card


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["target", "draw"])
def test_exports_leave_the_same_tokens_out(make: Callable[[str], Path], layout: str, kind: targets.Kind) -> None:
    run = make("above")
    output = default_output(str(run), layout) + kind
    manifest = export(str(run), layout, output, kind=kind, num_workers=1)
    assert verify(output, 1, dataset=str(run))["problems"] == []
    assert verify(output, 1)["problems"] == []
    if layout == "openai":
        return
    settings = manifest["settings"]
    assert settings["is_partial"]
    made = load_layout(layout)
    assert made.read_row is not None
    found = []
    for file in manifest["files"]:
        table = pq.read_table(Path(output) / file["file"])
        found += [made.read_row(record, _settings(settings)) for record in records(table)]
    for row, read in zip(rows_of(run), found, strict=True):
        places = np.flatnonzero(np.array(row["labels"]) != -100) - 1
        assert np.flatnonzero(read.is_row).tolist() == places[expected(row, KEEPS["above"])].tolist()
    assert any("targets.keep" in note for note in manifest["notes"])


def _settings(settings: dict[str, Any]) -> Any:
    from stillhouse.stages.layouts import Settings

    return Settings(**settings)


@pytest.mark.slow
def test_without_prompts_and_with_them_again(make: Callable[[str], Path], tmp_path: Path) -> None:
    withhold(str(make("above")), str(tmp_path / "withheld"))
    assert verify(str(tmp_path / "withheld"), 1)["problems"] == []
    files = sorted((tmp_path / "withheld/data").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert [row["teacher_entropy"] for row in rows] == [row["teacher_entropy"] for row in rows_of(make("above"))]


def move(row: Row) -> None:
    """Entropies a token late."""
    row["teacher_entropy"] = row["teacher_entropy"][1:] + row["teacher_entropy"][:1]


def drop_targets(row: Row) -> None:
    """The first token that has targets loses them."""
    s = next(s for s, length in enumerate(row["target_lengths"]) if length)
    before = sum(row["target_lengths"][:s])
    for name in ("target_ids", "target_logprobs"):
        row[name] = row[name][:before] + row[name][before + K :]
    row["target_lengths"][s], row["target_tail"][s] = 0, 0.0


def set_entropy(value: float) -> Callable[[Row], None]:
    return lambda row: row["teacher_entropy"].__setitem__(1, value)


DAMAGE: dict[str, tuple[str, Callable[[Row], None], str]] = {
    "too long": ("all", lambda row: row["teacher_entropy"].append(1.0), "teacher_entropy for"),
    "not a number": ("all", set_entropy(math.nan), "outside of 0 to 10.80"),
    "negative": ("all", set_entropy(-0.5), "outside of 0 to 10.80"),
    "more than the vocabulary's": ("all", set_entropy(11.5), "outside of 0 to 10.80"),
    "less than the top K's": ("all", set_entropy(1.0), "disagrees with targets and tail"),
    "more than the tail's": ("all", set_entropy(6.0), "disagrees with targets and tail"),
    "not the probe's": (
        "all",
        lambda row: row["teacher_entropy"].__setitem__(row["probe"]["token"], row["probe"]["entropy"] - 0.2),
        "from that of its probe",
    ),
    "a share too small": ("fraction", drop_targets, "targets.keep.fraction is 0.4"),
    "a token left out": ("above", drop_targets, "against targets.keep"),
    "a tail where there is no target": (
        "above",
        lambda row: row["target_tail"].__setitem__(row["target_lengths"].index(0), -2.0),
        "not 0, all of their mass",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found(make: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    name, change, message = DAMAGE[kind]
    shutil.copytree(make(name) / "dataset", tmp_path / "dataset")
    folder = Folder(tmp_path / "dataset")

    def change_one(rows: Rows) -> None:
        change(max((row for row in rows if row["probe"]), key=lambda row: row["num_target_tokens"]))

    folder.change(folder.largest(), change_one)
    found = verify(str(tmp_path / "dataset"), 1)
    assert len(found["problems"]) == 1, found["problems"]
    assert message in found["problems"][0]


def test_shifted_entropies_are_found(make: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(make("fraction") / "dataset", tmp_path / "dataset")
    folder = Folder(tmp_path / "dataset")

    def move_all(rows: Rows) -> None:
        for row in rows:
            move(row)

    folder.change(folder.largest(), move_all)
    assert verify(str(tmp_path / "dataset"), 1)["problems"]


def test_looks_show_entropies(make: Callable[[str], Path]) -> None:
    run = make("above")
    found = facts(open_place(str(run)))
    assert found["fidelity"]["teacher_entropy"]["p50"] > 2
    assert any("of the tokens have targets" in sentence for sentence in found["verdict"]["sentences"])
    table = pa.concat_tables(pq.read_table(file) for file in sorted((run / "dataset/data").glob("*.parquet")))
    row = max(range(table.num_rows), key=lambda i: table["num_target_tokens"][i].as_py())
    tokens = conversation(table, row, None)["tokens"]
    stored = table["teacher_entropy"][row].as_py()
    assert tokens["entropies"] == [round(value, 3) for value in stored]
    assert [len(these) > 0 for these in tokens["alternatives"]] == [value > 3.1 for value in stored]
    page = Path(write(str(run))["report"]).read_text()
    assert "Entropy of the teacher" in page
    assert "mean entropy of the teacher" in page
