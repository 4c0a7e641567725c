"""Targets: what is stored equals what was measured, to the precision of its type."""

import numpy as np
import pyarrow as pa
import pytest

from schemas import targets


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).astype(np.float32)


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_tail_is_the_mass_left_out(scale: float) -> None:
    logprobs_SV = log_softmax(np.random.default_rng(0).normal(0, scale, (50, 1000)))
    order = np.argsort(-logprobs_SV, axis=1)
    top = np.take_along_axis(logprobs_SV, order[:, :16], axis=1)
    rest = np.take_along_axis(logprobs_SV, order[:, 16:], axis=1).astype(np.float64)
    encoded = targets.encode(order[:, :16], top)
    expected = np.maximum(np.log(np.exp(rest).sum(axis=1)), targets.TAIL_FLOOR)
    # float32 log-probabilities know the mass to about 1e-6, float16 holds a value of 16 to 0.008.
    assert np.abs(np.exp(encoded.tail.astype(float)) - np.exp(expected)).max() < 1e-3
    assert np.isfinite(encoded.tail).all()
    assert encoded.ids.dtype == np.int32
    assert encoded.logprobs.dtype == encoded.tail.dtype == np.float16


def table(ids: list[list[int]], logprobs: list[list[float]], tail: list[list[float]]) -> pa.Table:
    return pa.table(
        {
            "target_ids": pa.array(ids, pa.list_(pa.int32())),
            "target_logprobs": pa.array(logprobs, pa.list_(pa.float16())),
            "target_tail": pa.array(tail, pa.list_(pa.float16())),
        }
    )


def test_decode_gives_back_rows_also_of_a_slice() -> None:
    h = np.float16
    rows = table(
        [[1, 2, 3, 4], [5, 6], []],
        [[h(-1), h(-2), h(-3), h(-4)], [h(-5), h(-6)], []],
        [[h(-0.5), h(-0.25)], [h(-0.125)], []],
    )
    for offset in range(3):
        decoded = targets.decode(rows.slice(offset))
        assert len(decoded) == 3 - offset
    first, second, third = targets.decode(rows)
    assert first.ids.tolist() == [[1, 2], [3, 4]]
    assert second.logprobs.tolist() == [[-5.0, -6.0]]
    assert third.ids.shape[0] == 0
    assert targets.decode(rows.slice(1, 1))[0].ids.tolist() == [[5, 6]]


def test_decode_refuses_lengths_that_disagree() -> None:
    h = np.float16
    with pytest.raises(ValueError, match="row 0: 3 ids"):
        targets.decode(table([[1, 2, 3]], [[h(-1), h(-2), h(-3)]], [[h(-1), h(-1)]]))
