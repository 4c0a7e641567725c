"""What holds for every layout."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from stillhouse.stages.layouts import LAYOUTS, Layout, Settings, load_layout
from stillhouse.stages.layouts.records import records
from tests.support.data import ROOT
from tests.support.datasets import K, V, published_table, with_next_token_targets


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_written_and_read_back(name: str) -> None:
    layout = load_layout(name)
    assert isinstance(layout, Layout)
    assert (layout.read_row is None) == layout.is_jsonl == (layout.alignment == "none")
    assert (ROOT / "docs/training" / layout.page).exists()
    published = published_table()
    length = max(published.column("num_input_tokens").to_pylist()) if layout.has_equal_lengths else 0
    settings = Settings("target", V, K, length)
    table = layout.convert(published, settings)
    if layout.read_row is None:
        return
    sources = with_next_token_targets(published, "target")
    for record, (source, expected) in zip(records(table), sources, strict=True):
        row = layout.read_row(record, settings)
        T = len(source["input_ids"])
        assert row.input_ids[: T - 1].tolist() == source["input_ids"][:-1]
        assert np.flatnonzero(row.is_row).tolist() == [*expected]
        for ids, probs, want in zip(row.ids, row.probs, expected.values(), strict=True):
            total = sum(np.exp([*want.values()])) if name == "tinker" else 1.0
            got = {int(i): p for i, p in zip(ids, probs, strict=True) if p > 0}
            assert got == pytest.approx({i: np.exp(lp) / total for i, lp in want.items()}, rel=1e-2)


def test_names_are_known_without_numpy_and_pyarrow() -> None:
    """A command line with a typo is answered at once."""
    code = (
        "import sys; from stillhouse.stages.layouts import LAYOUTS; print(len(LAYOUTS)); "
        "assert not {'numpy', 'pyarrow', 'torch'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == str(len(LAYOUTS)), result.stderr


def test_a_supervised_first_token_is_refused() -> None:
    table = published_table(2)
    rows: list[dict[str, Any]] = table.to_pylist()
    labels = rows[1]["labels"]
    place = next(t for t, label in enumerate(labels) if label != -100)
    labels[0], labels[place] = rows[1]["input_ids"][0], -100
    with pytest.raises(ValueError, match="nothing predicts it"):
        load_layout("verl").convert(type(table).from_pylist(rows, schema=table.schema), Settings("target", V, K))
