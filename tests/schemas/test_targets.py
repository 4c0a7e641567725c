"""Targets: what is stored equals what was measured, to the precision of its type, and comes back as it was."""

import itertools
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas import targets
from tests.support.data import ROOT
from tests.support.distributions import log_softmax, table_of


def distributions(S: int, V: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [S, V] and the ids of each row, most probable first."""
    logprobs_SV = log_softmax(np.random.default_rng(0).normal(0, scale, (S, V)))
    return logprobs_SV, np.argsort(-logprobs_SV, axis=1)


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_tail_is_the_mass_left_out(scale: float) -> None:
    logprobs_SV, order = distributions(50, 1000, scale)
    top = np.take_along_axis(logprobs_SV, order[:, :16], axis=1)
    rest = np.take_along_axis(logprobs_SV, order[:, 16:], axis=1).astype(np.float64)
    encoded = targets.encode_top_k(order[:, :16], top)
    expected = np.maximum(np.log(np.exp(rest).sum(axis=1)), targets.TAIL_FLOOR)
    # float32 log-probabilities know the mass to about 1e-6, float16 holds a value of 16 to 0.008.
    assert np.abs(np.exp(encoded.tail.astype(float)) - np.exp(expected)).max() < 1e-3
    assert np.isfinite(encoded.tail).all()
    assert [part.dtype for part in encoded if part is not None] == [np.int32, np.float16, np.float16, np.int32]
    assert (encoded.lengths == 16).all()


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_the_mass(top_p: float) -> None:
    logprobs_SV, order = distributions(200, 500, 2.0)
    top = np.take_along_axis(logprobs_SV, order[:, :64], axis=1)
    encoded = targets.encode_top_k(order[:, :64], top, top_p=top_p)
    assert encoded.logprobs is not None
    start = 0
    for s, length in enumerate(encoded.lengths):
        kept = slice(start, start + length)
        assert encoded.ids[kept].tolist() == order[s, :length].tolist()
        mass = np.exp(top[s, :length].astype(float)).sum()
        assert mass >= top_p or length == 64
        assert length == 1 or np.exp(top[s, : length - 1].astype(float)).sum() < top_p
        assert np.exp(float(encoded.tail[s])) == pytest.approx(1 - mass, abs=1e-3)
        start += length
    assert start == len(encoded.ids) == len(encoded.logprobs)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("precision", [1 / 64, 0.25])
def test_precision_rounds_values_and_not_gaps(precision: float, top_p: float) -> None:
    logprobs_SV, order = distributions(100, 500, 4.0)
    top = np.take_along_axis(logprobs_SV, order[:, :200], axis=1)
    top[0, 100:] = -np.inf  # masked tokens
    exact = targets.encode_top_k(order[:, :200], top, top_p)
    rounded = targets.encode_top_k(order[:, :200], top, top_p, precision)
    assert rounded.logprobs is None
    assert rounded.gaps is not None
    assert rounded.gaps.dtype == np.int16
    assert (rounded.gaps >= 0).all()
    for name in ("ids", "tail", "lengths"):
        assert np.array_equal(getattr(exact, name), getattr(rounded, name))
    (row,) = targets.decode(table_of([rounded], precision=precision))
    for s, length in enumerate(rounded.lengths):
        expected = np.maximum(top[s, :length], targets.LOWEST_LOGPROB)
        assert np.abs(row.logprobs[s, :length] - expected).max() <= precision / 2 + 1e-4
        assert (row.logprobs[s, length:] == -np.inf).all()
    if precision == 1 / 64:
        assert (row.logprobs[1] * 64 == np.round(row.logprobs[1] * 64))[: rounded.lengths[1]].all()


@pytest.mark.parametrize("precision", [1 / 128, 1 / 512, 1 / 4096])
def test_gaps_that_int16_cannot_count_end_at_the_last_that_it_can(precision: float) -> None:
    top = np.array([[-0.0001, -3.0, -5.5, -np.inf], [-40.0, -63.0, -200.0, -np.inf]], np.float32)
    ids = np.arange(8, dtype=np.int32).reshape(2, 4)
    (row,) = targets.decode(table_of([targets.encode_top_k(ids, top, precision=precision)], precision=precision))
    expected = np.maximum(top, -32767 * precision)
    assert np.abs(row.logprobs - expected).max() <= precision / 2


def test_draws_are_counted_per_token() -> None:
    random = np.random.default_rng(1)
    # Ids that repeat over the border of two tokens, and tokens with few and many distinct draws.
    draws_SD = np.concatenate([random.integers(0, n, (30, 50)) for n in (1, 2, 5, 1000)]).astype(np.int32)
    draws_SD[7, :20] = -1
    draws_SD[8] = -1
    encoded = targets.encode_draws(draws_SD)
    ends = np.cumsum(encoded.lengths)
    for s, (end, length) in enumerate(zip(ends, encoded.lengths, strict=True)):
        own = slice(end - length, end)
        expected = Counter(draw for draw in draws_SD[s].tolist() if draw >= 0)
        assert dict(zip(encoded.ids[own].tolist(), encoded.counts[own].tolist(), strict=True)) == expected
        assert encoded.ids[own].tolist() == sorted(expected)
    assert ends[-1] == len(encoded.ids) == len(encoded.counts)
    assert len(targets.encode_draws(np.zeros((0, 8), np.int32)).ids) == 0


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_decode_gives_back_rows_also_of_a_slice(top_p: float) -> None:
    logprobs_SV, order = distributions(60, 300, 2.0)
    top = np.take_along_axis(logprobs_SV, order[:, :8], axis=1)
    cuts = [0, 10, 10, 11, 60]  # one row without tokens
    rows = [targets.encode_top_k(order[a:b, :8], top[a:b], top_p) for a, b in itertools.pairwise(cuts)]
    table = table_of(rows)
    for start in range(len(rows) + 1):
        for chunked in (
            table.slice(start),
            pa.concat_tables([table.slice(i, 1) for i in range(start, len(rows))] or [table.slice(start)]),
        ):
            decoded = targets.decode(chunked)
            assert len(decoded) == len(rows) - start
            for row, expected in zip(decoded, rows[start:], strict=True):
                kept = row.logprobs > -np.inf
                assert kept.sum(axis=1).tolist() == expected.lengths.tolist()
                assert expected.logprobs is not None
                assert row.ids[kept].tolist() == expected.ids.tolist()
                assert row.logprobs[kept].tolist() == expected.logprobs.tolist()
                assert row.tail.tolist() == expected.tail.tolist()
                assert (row.ids[~kept] == 0).all()
    if top_p == 1.0:
        whole = targets.decode(table)
        assert whole[0].ids.base is not None
        assert whole[0].ids.shape == (10, 8)


def test_decoded_draws_are_frequencies() -> None:
    draws_SD = np.array([[5, 5, 5, 9], [7, 7, 7, 7], [3, -1, -1, 2]], dtype=np.int32)
    encoded = targets.encode_draws(draws_SD)
    top_k = targets.encode_top_k(draws_SD[:, :1], np.full((3, 1), -1.0, np.float32))
    (row,) = targets.decode(table_of([top_k], [encoded], 4), "draw")
    np.testing.assert_allclose(np.exp(row.logprobs), [[0.75, 0.25], [1.0, 0.0], [0.25, 0.25]])
    assert row.ids.tolist() == [[5, 9], [7, 0], [2, 3]]
    np.testing.assert_allclose(np.exp(row.tail), [1e-7, 1e-7, 0.5], rtol=1e-5)
    both = table_of([top_k], [encoded], 4)
    assert targets.decode(both)[0].ids.shape == (3, 1), "target columns come first"
    assert targets.decode(both.select(["draw_ids", "draw_counts", "draw_lengths", "num_draws"]))[0].ids.shape == (3, 2)
    with pytest.raises(ValueError, match="no column num_draws"):
        targets.decode(both.drop_columns(["num_draws"]), "draw")


def test_decode_refuses_lengths_that_disagree() -> None:
    h = np.float16
    logprobs = np.array([h(-1)] * 3)
    good = targets.TopK(np.array([1, 2, 3]), logprobs, None, np.array([h(-1)] * 2), np.array([2, 1]))
    targets.decode(table_of([good, good]))
    for name, bad in (
        ("ids", good._replace(ids=good.ids[:2])),
        ("logprobs", good._replace(logprobs=logprobs[:2])),
        ("tail", good._replace(tail=good.tail[:1])),
    ):
        with pytest.raises(ValueError, match=f"row 1: target_{name} has"):
            targets.decode(table_of([good, bad, good]))
    with pytest.raises(ValueError, match="row 0"):
        targets.decode(table_of([good._replace(lengths=np.array([3, 1]))]))
    with pytest.raises(ValueError, match="no column target_lengths"):
        targets.decode(table_of([good]).drop_columns(["target_lengths"]))


def test_training_repos_install_it_alone_under_its_own_name(tmp_path: Path) -> None:
    """In a repo with a `schemas` of its own, without Stillhouse, Ray, torch or pydantic."""
    source = tmp_path / "source"  # a build leaves its traces there
    shutil.copytree(
        ROOT / "schemas/targets", source, ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", str(tmp_path / "site"), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "schemas.py").write_text("theirs = True")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy, pyarrow
known = set(sys.modules)
import schemas, stillhouse_targets
assert schemas.theirs and sys.argv[1] in stillhouse_targets.__file__
heavy = {"ray", "torch", "pydantic", "vllm", "transformers", "pipeline", "stages"} & set(sys.modules)
assert not heavy, heavy
print(stillhouse_targets.encode_draws(numpy.array([[5, 3, 5]], dtype=numpy.int32)).counts.tolist())
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "[1, 2]", result.stderr
