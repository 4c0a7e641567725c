"""The layout of Tinker against the published table. Its own `Datum` is in tests/trainers."""

import numpy as np
import pytest

from stillhouse.schemas.targets import Kind
from stillhouse.stages.layouts import Settings
from stillhouse.stages.layouts.tinker import LAYOUT
from tests.support.datasets import V, published_table, width_of, with_next_token_targets


@pytest.mark.parametrize("kind", ["target", "draw"])
def test_weights_of_a_position_are_the_next_tokens_targets_normalised(kind: Kind) -> None:
    table = published_table()
    rows = LAYOUT.convert(table, Settings(kind, V, width_of(table, kind))).to_pylist()
    for row, (source, expected) in zip(rows, with_next_token_targets(table, kind), strict=True):
        assert row["input_ids"] == source["input_ids"][:-1]
        assert len(row["target_tokens"]) == len(row["weights"]) == len(row["input_ids"])
        for t, (ids, weights) in enumerate(zip(row["target_tokens"], row["weights"], strict=True)):
            want = {i: np.exp(lp) for i, lp in expected.get(t, {}).items()}
            mass = sum(want.values())
            got = {i: w for i, w in zip(ids, weights, strict=True) if w > 0}
            assert got == pytest.approx({i: p / mass for i, p in want.items()}, rel=1e-4)


def test_draws_come_first() -> None:
    assert LAYOUT.kinds[0] == "draw"
