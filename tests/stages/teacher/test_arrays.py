"""vLLM's log-probabilities as arrays: every step is kept, whatever else a step holds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stillhouse.stages.teacher.arrays import Rows, to_answer


def step(ids: Any, logprobs: Any) -> Any:
    """What the engine sends for one request and step, as far as `Rows` reads it."""
    lists = SimpleNamespace(
        logprob_token_ids=np.asarray(ids, dtype=np.int32), logprobs=np.asarray(logprobs, dtype=np.float32)
    )
    return SimpleNamespace(new_logprobs=lists)


def fill(rows: Rows, num_tokens: int, width: int) -> np.ndarray:
    """Gives `rows` that many steps; returns the ids [num_tokens, width]."""
    ids = np.arange(num_tokens * width, dtype=np.int32).reshape(num_tokens, width)
    for row in ids:
        rows.update_from_output(step(row[None], -row[None] / 1000))
    return ids


@pytest.mark.parametrize("num_tokens", [0, 1, Rows.TOKENS_PER_BLOCK, 3 * Rows.TOKENS_PER_BLOCK + 5])
def test_rows_give_back_every_step(num_tokens: int) -> None:
    rows = Rows(4)
    ids = fill(rows, num_tokens, 5)
    assert len(rows) == num_tokens
    ids_SW, logprobs_SW = rows.joined()
    assert ids_SW.dtype == np.int32
    assert logprobs_SW.dtype == np.float32
    np.testing.assert_array_equal(ids_SW, ids)
    np.testing.assert_array_equal(logprobs_SW, (-ids / 1000).astype(np.float32))


def test_rows_copy_what_the_engine_may_reuse_and_cut_what_others_asked_for() -> None:
    ids, logprobs = np.array([[7, 1, 2, 3, 4]], dtype=np.int32), np.zeros((1, 5), dtype=np.float32)
    rows = Rows(2)  # another request of the step asked for 4
    rows.update_from_output(step(ids, logprobs))
    rows.update_from_output(SimpleNamespace(new_logprobs=None))
    rows.update_from_output(step([[8, 0, 0], [9, 0, 0]], np.zeros((2, 3))))  # two positions: speculative decoding
    assert rows.joined()[0][:, 0].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("token_ids", "width", "num_steps"),
    [([0, 5], 5, 3), ([0, 5, 10], 4, 3), ([1, 5, 10], 5, 3), ([0], 5, 0)],
    ids=["more rows than tokens", "too narrow", "another token first", "nothing"],
)
def test_another_layout_is_refused(token_ids: list[int], width: int, num_steps: int) -> None:
    rows = Rows(4)
    fill(rows, num_steps, width)
    with pytest.raises(RuntimeError, match=r"vLLM returned \d+ log-probabilities for \d tokens at top_k 4"):
        to_answer(token_ids, rows, 4, "length")


def test_vllms_own_lists_give_the_same_answer() -> None:
    rows = Rows(4)
    ids = fill(rows, 3, 5)
    flat = SimpleNamespace(token_ids=ids.ravel().tolist(), logprobs=(-ids / 1000).ravel().tolist())
    token_ids = ids[:, 0].tolist()
    ours, theirs = to_answer(token_ids, rows, 4, "stop"), to_answer(token_ids, flat, 4, "stop")
    for name in ("token_ids", "target_ids", "target_logprobs", "token_logprobs"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
