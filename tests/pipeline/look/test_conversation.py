"""A row token by token, against what PyArrow and a plain loop make of the same columns."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.look.conversation import conversation
from tests.support.datasets import K, published_table

GENERATE = "generate/00000.parquet"


def expected_tokens(row: dict[str, Any], number: int) -> dict[str, Any]:
    """From a row of lists, with its targets in the order that docs/format.md says."""
    written = [label for label in row["labels"] if label != -100]
    found: dict[str, Any] = {"tails": None, "alternatives": None, "draws": None, "ranks": None}
    if "target_ids" in row:
        ids, lengths = list(row["target_ids"]), row["target_lengths"]
        if "target_gaps" in row:
            values: list[float] = []
            for length in lengths:
                steps = 0
                for gap in row["target_gaps"][len(values) : len(values) + length]:
                    steps += gap
                    values.append(-steps * row["target_precision"])
        else:
            values = list(row["target_logprobs"])
        found |= {"alternatives": [], "ranks": [], "tails": [round(tail, 3) for tail in row["target_tail"]]}
        for token, length in zip(written, lengths, strict=True):
            these, ids = ids[:length], ids[length:]
            logprobs, values = values[:length], values[length:]
            found["ranks"].append(these.index(token) if token in these else None)
            pairs = [[i, f"#{i}", round(value, 3)] for i, value in zip(these, logprobs, strict=True)]
            found["alternatives"].append(pairs[:number])
    if "draw_ids" in row:
        ids, counts, found["draws"] = list(row["draw_ids"]), list(row["draw_counts"]), []
        for length in row["draw_lengths"]:
            drawn = sorted(zip(ids[:length], counts[:length], strict=True), key=lambda pair: -pair[1])
            found["draws"].append([[i, f"#{i}", count] for i, count in drawn[:number]])
            ids, counts = ids[length:], counts[length:]
    return found


@pytest.mark.parametrize("options", [{}, {"top_p": 0.7}, {"top_p": 0.7, "precision": 1 / 64}], ids=str)
@pytest.mark.parametrize("method", ["top_k", "sampled", "both"])
def test_targets_of_every_kind(method: str, options: dict[str, Any]) -> None:
    table = published_table(method=method, **options)
    for number, row in enumerate(table.to_pylist()):
        found = conversation(table, number, None, 3)["tokens"]
        expected = expected_tokens(row, 3)
        if method == "sampled":
            missing = [1 - s / 16 for s in sums(row["draw_counts"], row["draw_lengths"])]
            expected["tails"] = [round(math.log(max(value, 1e-7)), 3) for value in missing]
        assert {name: found[name] for name in expected} == expected
        assert found["ids"] == row["input_ids"]
        assert found["texts"] == [f"#{i}" for i in row["input_ids"]]
        assert found["supervised"] == [int(label != -100) for label in row["labels"]]
        assert found["logprobs"] == [round(value, 3) for value in row["token_logprobs"]]


def sums(values: list[int], lengths: list[int]) -> list[int]:
    found, values = [], list(values)
    for length in lengths:
        found.append(sum(values[:length]))
        values = values[length:]
    return found


def test_the_form_is_the_one_that_others_build_on(looked_at: Path) -> None:
    table = pq.read_table(looked_at / "dataset/data/train-00000-of-00004.parquet")
    found = conversation(table, 1, None)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [*found] == ["sample_id", "prompt_id", "messages", "template_added", "columns", "tokens"]
    assert [*found["tokens"]] == [
        "ids", "texts", "supervised", "logprobs", "tails", "alternatives", "draws", "ranks",
    ]  # fmt: skip
    row = table.to_pylist()[1]
    assert (found["sample_id"], found["prompt_id"]) == (row["sample_id"], row["prompt_id"])
    assert found["messages"] == row["messages"]
    scalar = {name for name, value in row.items() if not isinstance(value, list | dict)} - {"probe"}
    assert (
        found["columns"].keys()
        - {"prompt_scores.profanity", "response_scores.profanity"}
        - {name for name in found["columns"] if name.startswith("probe.")}
        == scalar
    )
    assert found["columns"]["prompt_scores.profanity"] == pytest.approx(row["prompt_scores"]["profanity"], rel=1e-5)
    assert found["columns"]["source_row"] == row["source_row"]
    S, T = row["num_target_tokens"], row["num_input_tokens"]
    lengths = {name: len(values) for name, values in found["tokens"].items()}
    assert lengths == {name: T if name in ("ids", "texts", "supervised") else S for name in lengths}
    assert all(len(alternatives) == K for alternatives in found["tokens"]["alternatives"])


def test_prompts_have_no_tokens(looked_at: Path) -> None:
    table = pq.read_table(looked_at / "screen/00000.parquet")
    found = conversation(table, 1, None)
    assert found["sample_id"] is None
    assert found["messages"] == [
        {"role": "user", "content": table.column("user_turns")[1].as_py()[0], "reasoning_content": None}
    ]
    assert "user_turns" not in found["columns"]
    assert found["tokens"] == {
        "ids": [], "texts": [], "supervised": [], "logprobs": [], "tails": None, "alternatives": None, "draws": None,
        "ranks": None,
    }  # fmt: skip
    with_system = table.set_column(
        table.schema.get_field_index("system_prompt"), "system_prompt", pa.array(["be brief"] * table.num_rows)
    )
    assert conversation(with_system, 1, None)["messages"][0] == {
        "role": "system", "content": "be brief", "reasoning_content": None,
    }  # fmt: skip


def test_values_that_are_none_are_null() -> None:
    table = pa.table(
        {
            "prompt_id": pa.array([None], pa.string()),
            "x": pa.array([math.nan], pa.float32()),
            "probe": pa.array([None], pa.struct([("token", pa.int32()), ("entropy", pa.float32())])),
            "token_logprobs": pa.array([[-math.inf, -0.0004]], pa.list_(pa.float32())),
        }
    )
    found = conversation(table, 0, None)
    assert found["columns"] == {"prompt_id": None, "x": None, "probe.token": None, "probe.entropy": None}
    assert found["tokens"]["logprobs"] == [None, 0.0]
    assert found["messages"] == []


def test_words_are_the_tokenizers(looked_at: Path, tokenizer: Any) -> None:
    table = pq.read_table(looked_at / GENERATE)
    tokens = conversation(table, 0, tokenizer)["tokens"]
    assert "".join(tokens["texts"][:20]) == tokenizer.decode(tokens["ids"][:20])
    for alternatives in (*tokens["alternatives"], *tokens["draws"]):
        for i, text, _ in alternatives:
            decoded = tokenizer.decode([i])
            assert text == decoded or "\ufffd" in decoded
