"""The layout of verl against the published table. Its own losses are in tests/trainers."""

from typing import Any

import pytest

from stillhouse.schemas.targets import Kind
from stillhouse.stages.layouts import Settings
from stillhouse.stages.layouts.verl import LAYOUT
from tests.support.datasets import DATASETS, V, published_table, width_of, with_next_token_targets


@pytest.mark.parametrize("kind", ["target", "draw"])
@pytest.mark.parametrize("options", DATASETS)
def test_the_teachers_rows_cover_prompt_and_response(options: dict[str, Any], kind: Kind) -> None:
    table = published_table(**options)
    width = width_of(table, kind)
    rows = LAYOUT.convert(table, Settings(kind, V, width)).to_pylist()
    for row, (source, expected) in zip(rows, with_next_token_targets(table, kind), strict=True):
        first = next(t for t, label in enumerate(source["labels"]) if label != -100)
        assert row["prompts"] == source["input_ids"][:first]
        assert row["responses"] == source["input_ids"][first:]
        assert row["response_mask"] == [int(label != -100) for label in source["labels"][first:]]
        assert len(row["teacher_ids"]) == len(source["input_ids"])
        for t, (ids, logprobs) in enumerate(zip(row["teacher_ids"], row["teacher_logprobs"], strict=True)):
            assert len(ids) == width
            got = {i: lp for i, lp in zip(ids, logprobs, strict=True) if lp > -110}
            assert got == pytest.approx(expected.get(t, {}))
