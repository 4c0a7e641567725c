"""The layout of axolotl against the published table. Its own collator and loss are in tests/trainers."""

from typing import Any

import pytest

from stillhouse.schemas.targets import Kind
from stillhouse.stages.layouts import Settings
from stillhouse.stages.layouts.axolotl import LAYOUT
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
            assert dict(zip(row["target_token_ids"][t], row["target_logprobs"][t], strict=True)) == pytest.approx(want)
            assert row["target_mask"][t] == [1] * len(want)


def test_a_softcapped_teacher_is_warned_of() -> None:
    assert "caps its logits at 30" in LAYOUT.notes(Settings("target", V), 30.0)[0]
    assert not any("caps its logits" in note for note in LAYOUT.notes(Settings("target", V), None))
