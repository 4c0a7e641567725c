"""The layout of axolotl against the published table. Its own collator and loss are in tests/trainers."""

from typing import Any

import pytest

from stillhouse.schemas.targets import Kind
from stillhouse.stages.layouts import Settings
from stillhouse.stages.layouts.axolotl import LAYOUT
from stillhouse.stages.layouts.records import records
from tests.support.datasets import DATASETS, V, published_table, with_next_token_targets


@pytest.mark.parametrize("kind", ["target", "draw"])
@pytest.mark.parametrize("options", DATASETS)
def test_each_position_holds_the_targets_of_the_next_token(options: dict[str, Any], kind: Kind) -> None:
    table = published_table(**options)
    rows = LAYOUT.convert(table, Settings(kind, V)).to_pylist()
    assert len(rows) == 20
    for row, (source, expected) in zip(rows, with_next_token_targets(table, kind), strict=True):
        assert row["input_ids"] == source["input_ids"]
        assert row["labels"] == source["labels"]
        assert row["attention_mask"] == [1] * len(source["input_ids"])
        for t in range(len(source["input_ids"])):
            want = expected.get(t, {})
            marked = zip(row["target_token_ids"][t], row["target_logprobs"][t], row["target_mask"][t], strict=True)
            assert {i: lp for i, lp, mark in marked if mark} == pytest.approx(want)
            assert row["target_mask"][t] == ([1] * len(want) if t in expected else [0])


@pytest.mark.parametrize("kind", ["target", "draw"])
@pytest.mark.parametrize("options", DATASETS)
def test_axolotl_preprocess_reads_every_position(options: dict[str, Any], kind: Kind) -> None:
    """Its `check_example_labels` takes the first mark of each position, without asking whether there is one."""
    table = published_table(**options)
    for row in LAYOUT.convert(table, Settings(kind, V)).to_pylist():
        num_marked = sum(marks[0] for marks in row["target_mask"])
        assert num_marked == sum(label != -100 for label in row["labels"])


def test_masked_places_name_ids_of_the_data() -> None:
    """A student's vocabulary may be smaller than the teacher's, and the loss gathers masked ids too."""
    table = published_table()
    sources = [row | {"target_ids": [1000 + i for i in row["target_ids"]]} for row in table.to_pylist()]
    known = {i for row in sources for i in row["target_ids"]}
    table = type(table).from_pylist(sources, schema=table.schema)
    rows = LAYOUT.convert(table, Settings("target", 2000)).to_pylist()
    assert {i for row in rows for ids in row["target_token_ids"] for i in ids} == known


def test_a_file_without_rows_is_converted() -> None:
    assert LAYOUT.convert(published_table().slice(0, 0), Settings("target", V)).num_rows == 0


def test_exports_with_empty_positions_are_found() -> None:
    """Those of versions before this one, on which axolotl preprocess ends."""
    settings = Settings("target", V)
    table = LAYOUT.convert(published_table(2), settings)
    rows = table.to_pylist()
    for name in ("target_token_ids", "target_logprobs", "target_mask"):
        rows[0][name][-1] = []
    assert LAYOUT.read_row is not None
    first, second = records(type(table).from_pylist(rows, schema=table.schema))
    LAYOUT.read_row(second, settings)
    with pytest.raises(ValueError, match="1 positions without a mark, on which axolotl preprocess ends"):
        LAYOUT.read_row(first, settings)


def test_packing_and_the_cache_are_warned_of() -> None:
    for kind in ("target", "draw"):
        notes = " ".join(LAYOUT.notes(Settings(kind, V), None))
        assert "attn_implementation is flash_attention_2" in notes
        assert "dataset_prepared_path" in notes
        assert "excess_length_strategy" in notes


def test_a_softcapped_teacher_is_warned_of() -> None:
    assert "caps its logits at 30" in LAYOUT.notes(Settings("target", V), 30.0)[0]
    assert not any("caps its logits" in note for note in LAYOUT.notes(Settings("target", V), None))
