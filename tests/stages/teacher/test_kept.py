"""Which tokens keep their targets, and what a table then holds of them.

Shape legend: S tokens, K targets per token, D draws per token.
"""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from stillhouse.schemas import targets
from stillhouse.schemas.config import Config, KeepConfig, TargetsConfig, config_hash, deciding_values, override
from stillhouse.stages.teacher import Answer, fault, fidelity
from stillhouse.stages.teacher.completions import Sample, completions
from stillhouse.stages.teacher.kept import is_kept, num_kept, stored_entropies
from tests.support.prompts import prompts

S, K, D, V = 10, 4, 6, 1000


def answer(entropies: list[float], probed: int = 0) -> Answer:
    ids_SK = np.arange(S * K, dtype=np.int32).reshape(S, K)
    logprobs_SK = np.log(np.tile(np.array([0.5, 0.2, 0.1, 0.1], np.float32), (S, 1)))
    whole_V = np.full(V, np.log(0.1 / (V - K)), np.float32)
    whole_V[ids_SK[probed]] = logprobs_SK[0]
    draws_SD = np.repeat(ids_SK[:, :2], 3, axis=1)
    return Answer(
        ids_SK[:, 0].copy(), ids_SK, logprobs_SK, logprobs_SK[:, 0], "stop", draws_SD, (probed, whole_V),
        entropies=np.array(entropies, np.float32),
    )  # fmt: skip


def test_a_fraction_is_rounded_up_and_equal_entropies_are_taken_from_the_front() -> None:
    entropies_S = np.array([1, 3, 2, 3, 3, 0, 2, 1, 3, 0], np.float32)
    for fraction, expected in ((0.1, [1]), (0.3, [1, 3, 4]), (0.31, [1, 3, 4, 8]), (0.5, [1, 2, 3, 4, 8])):
        assert np.flatnonzero(is_kept(entropies_S, KeepConfig(fraction=fraction))).tolist() == expected
    assert is_kept(entropies_S, KeepConfig(fraction=1.0)).all()
    # In floating point 0.2 x 15 is above 3, and 0.1 x 3 is above 0.3.
    assert [num_kept(15, 0.2), num_kept(30, 0.1), num_kept(1, 0.01), num_kept(7, 1 / 7)] == [3, 3, 1, 1]


def test_a_threshold_is_a_threshold() -> None:
    entropies_S = np.array([1, 3, 2, 3, 3, 0, 2, 1, 3, 0], np.float32)
    assert np.flatnonzero(is_kept(entropies_S, KeepConfig(entropy_above=2.0))).tolist() == [1, 3, 4, 8]
    assert not is_kept(entropies_S, KeepConfig(entropy_above=3.0)).any()


@pytest.mark.parametrize("wrong", [{}, {"fraction": 0.0}, {"fraction": 0.5, "entropy_above": 1.0}, {"fraction": 1.1}])
def test_what_keep_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        KeepConfig(**wrong)


def test_only_what_is_set_is_in_the_hash(raw_config: dict[str, Any]) -> None:
    plain = Config.model_validate(raw_config)
    hashes = [config_hash(plain)]
    assert not {key for key in deciding_values(plain) if "entropy" in key or "keep" in key}
    for settings in (
        {"entropy": False},
        {"entropy": True},
        {"keep": {"fraction": 0.2}},
        {"keep": {"entropy_above": 1}},
    ):
        raw = raw_config | {"targets": {**raw_config["targets"], **settings}}
        hashes.append(config_hash(Config.model_validate(raw)))
    assert hashes[1] == hashes[0]
    assert len({*hashes}) == 4


def test_keys_can_be_set_on_the_command_line(raw_config: dict[str, Any]) -> None:
    override(raw_config, ["targets.keep.fraction=0.2", "targets.entropy=true"])
    assert Config.model_validate(raw_config).targets.keep == KeepConfig(fraction=0.2)


@pytest.mark.parametrize(
    ("section", "values"),
    [("sampling", {"repetition_penalty": 1.1}), ("teacher", {"engine": {"speculative_config": {}}})],
)
def test_what_the_engine_cannot_tell_is_refused(
    raw_config: dict[str, Any], section: str, values: dict[str, Any]
) -> None:
    raw = raw_config | {section: {**raw_config[section], **values}, "targets": {"entropy": True}}
    with pytest.raises(ValidationError, match="entrop"):
        Config.model_validate(raw)


@pytest.mark.parametrize("precision", [0.0, 1 / 64])
def test_tokens_left_out_have_labels_and_no_targets(precision: float) -> None:
    entropies = [0.1 * s for s in range(S)]
    supervised = np.arange(S) != 0
    settings = TargetsConfig(
        method="both", top_k=K, num_draws=D, precision=precision, keep=KeepConfig(fraction=0.4), top_p=0.75
    )
    sample = Sample("p/0", 0)
    sample.add_prompt("?", np.array([7, 8], np.int32))
    for probed in (2, 7):
        sample.add_answer({"role": "assistant", "content": "!"}, answer(entropies, probed), supervised, settings)
        sample.probe, probe = None, sample.probe
        assert probe is not None
        assert (probe["kl_top_k"] is None, probe["kl_draws"] is None) == (probed == 2, probed == 2)
        assert probe["entropy"] > 1
    sample.cut_end()
    table = completions(prompts([["?"]]), [sample], settings)
    (row,) = table.to_pylist()
    kept = [5 <= s < 9 for s in range(9)] * 2
    assert row["target_lengths"] == [3 * k for k in kept][:-1]
    assert row["draw_lengths"] == [2 * k for k in kept][:-1]
    stored = np.array(row["teacher_entropy"])
    assert np.allclose(stored, [*entropies[1:], *entropies[1:9]], atol=1e-3)
    assert (stored == stored.astype(np.float16)).all()
    assert sum(label != -100 for label in row["labels"]) == 17 == row["num_target_tokens"]
    (top,), (drawn,) = targets.decode(table, "target"), targets.decode(table, "draw")
    for found in (top, drawn):
        assert ((found.logprobs > -np.inf).any(axis=1) == kept[:-1]).all()
        assert (found.tail[~np.array(kept[:-1])] == 0).all()
    assert np.allclose(np.exp(top.logprobs[5]), [0.5, 0.2, 0.1], atol=5e-3)
    assert np.exp(top.tail[5]) == pytest.approx(0.2, abs=1e-3)
    said = fidelity.report(fidelity.statistics(table))
    assert (said["tokens"], said["tokens_kept"]) == (17, 7)
    assert said["top_k"]["targets_per_token"] == 3
    assert said["draws"]["targets_per_token"] == 2
    assert said["top_k"]["tail_mass"]["p95"] == pytest.approx(0.2, rel=0.06)


def test_an_answer_of_which_nothing_is_kept() -> None:
    settings = TargetsConfig(method="both", top_k=K, num_draws=D, keep=KeepConfig(entropy_above=5.0))
    sample = Sample("p/0", 0)
    sample.add_prompt("?", np.array([7, 8], np.int32))
    sample.add_answer({"role": "assistant", "content": "!"}, answer([1.0] * S), np.ones(S, np.bool_), settings)
    table = completions(prompts([["?"]]), [sample], settings)
    for kind in ("target", "draw"):
        (found,) = targets.decode(table, kind)
        assert found.ids.shape == (S, 0)
        assert (found.tail == 0).all()
    said = fidelity.report(fidelity.statistics(table))
    assert said["tokens_kept"] == 0
    assert {"top_k", "draws"}.isdisjoint(said)
    assert said["teacher_entropy"]["p50"] == pytest.approx(1.05)


@pytest.mark.parametrize("value", [np.nan, -0.1, 7.0, np.inf])
def test_an_entropy_that_is_none_is_a_fault(value: float) -> None:
    entropies = [1.0] * S
    assert fault(answer(entropies), V) is None
    entropies[3] = value
    assert "entropy" in str(fault(answer(entropies), V))
    assert "9 entropies" in str(fault(Answer(**{**answer(entropies).__dict__, "entropies": np.ones(9)}), V))


def test_stored_entropies_make_the_same_choice_again() -> None:
    entropies_S = np.random.default_rng(0).random(1000).astype(np.float32) * 9
    stored_S = stored_entropies(entropies_S)
    assert np.array_equal(stored_entropies(stored_S), stored_S)
    assert np.abs(stored_S - entropies_S).max() < 0.005
