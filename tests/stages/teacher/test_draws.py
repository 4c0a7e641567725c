"""Draws on the driver's side: joined, checked, probed.

Shape legend: S tokens, V vocabulary, D draws per token.
"""

import numpy as np
import pytest
from scipy.stats import chisquare

from stillhouse.stages.teacher.draws import check_draws, join_draws, probed_token


def test_parts_of_several_workers_are_joined() -> None:
    one = np.array([[1, 1], [-1, -1], [3, 3], [9, 9]], dtype=np.int32)
    two = np.array([[-1, -1], [2, 2]], dtype=np.int32)
    joined = join_draws([one.tobytes(), b"", two.tobytes()], 3, 2)  # a fourth token was begun and not written
    assert joined.tolist() == [[1, 1], [2, 2], [3, 3]]
    with pytest.raises(RuntimeError, match="1 of an answer's 3 tokens have no draws"):
        join_draws([one.tobytes()], 3, 2)
    with pytest.raises(RuntimeError, match="5 of an answer's 5"):
        join_draws([], 5, 2)


def test_draws_of_other_tokens_are_refused() -> None:
    random_ = np.random.default_rng(0)
    S, V, D = 60, 200, 32
    p_SV = np.exp(random_.normal(0, 3, (S, V)))
    p_SV /= p_SV.sum(axis=1, keepdims=True)
    written = np.array([random_.choice(V, p=p) for p in p_SV], dtype=np.int32)
    drawn = np.stack([random_.choice(V, D, p=p) for p in p_SV]).astype(np.int32)
    logprobs = np.log(p_SV[np.arange(S), written]).astype(np.float32)
    check_draws(drawn, written, logprobs)
    with pytest.raises(RuntimeError, match="belong to other tokens"):
        check_draws(np.roll(drawn, 1, axis=0), written, logprobs)
    check_draws(drawn[:0], written[:0], logprobs[:0])
    certain = np.zeros(5, np.float32)
    check_draws(np.repeat(written[:5, None], D, axis=1), written[:5], certain)


def test_every_token_is_probed_with_the_same_chance() -> None:
    found = [probed_token(seed, 0.25, 8) for seed in range(8000)]
    counts = np.bincount(np.array(found) + 1, minlength=9)
    assert abs(counts[0] / 8000 - 0.75) < 0.03
    assert chisquare(counts[1:]).pvalue > 1e-4
    assert {probed_token(seed, 0.0, 8) for seed in range(100)} == {-1}
