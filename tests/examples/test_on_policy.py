"""The on-policy example on a model of random weights: its teacher in torch against forward passes, its students, its
figures. The experiment itself is not run.

Shape legend: S tokens, V vocabulary, K targets per token, D draws per token, Q more ids per token.
"""

import asyncio
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.on_policy import figures, on_policy
from examples.on_policy.torch_teacher import TorchTeacher
from stillhouse.schemas.config import Config, load
from stillhouse.stages.teacher import Answer, TeacherError
from tests.support.data import make_raw_config

V, D, K = 300, 3000, 5
STOP = 7


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=V, tie_word_embeddings=True, initializer_range=0.5, **sizes))
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    return str(folder)


def config_of(folder: str, tmp_path: Path, num_draws: int = D, **sampling: Any) -> Config:
    raw = make_raw_config(tmp_path)
    raw["teacher"] |= {"model": folder, "backend": on_policy.TORCH}
    raw["sampling"] |= sampling
    raw["targets"] = {"method": "both", "top_k": K, "num_draws": num_draws}
    return Config.model_validate(raw)


def whole(folder: str, ids: list[int]) -> np.ndarray:
    """Log-probabilities [len(ids), V] of what follows each."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(1).numpy()


def check(answer: Answer, logprobs_SV: np.ndarray) -> None:
    S = len(answer.token_ids)
    assert np.allclose(answer.token_logprobs, logprobs_SV[np.arange(S), answer.token_ids], atol=1e-4)
    top_SK = np.sort(logprobs_SV, 1)[:, ::-1][:, :K]
    assert np.allclose(answer.target_logprobs, top_SK, atol=1e-4)
    assert np.allclose(np.take_along_axis(logprobs_SV, answer.target_ids, 1), top_SK, atol=1e-4)
    assert answer.draws is not None
    for draws_D, logprobs_V in zip(answer.draws, logprobs_SV, strict=True):
        found_V = np.bincount(draws_D, minlength=V) / D
        assert np.abs(found_V - np.exp(logprobs_V)).max() < 0.05


def test_answers_and_scores_are_those_of_a_forward_pass(weights_of: str, tmp_path: Path) -> None:
    """Prompts of several lengths in one batch; and each answer, scored, is what it was when it was written."""
    teacher = TorchTeacher(config_of(weights_of, tmp_path), [STOP])
    prompts = [np.arange(10, 10 + length, dtype=np.int32) for length in (3, 9, 1, 5)]

    async def answers() -> list[Answer]:
        return await asyncio.gather(*(teacher.answer(ids, "a", seed, 12) for seed, ids in enumerate(prompts)))

    written = asyncio.run(answers())
    for ids, answer in zip(prompts, written, strict=True):
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == STOP else "length")
        assert STOP not in answer.token_ids[:-1]
        check(answer, whole(weights_of, [*ids, *answer.token_ids])[len(ids) - 1 : -1])

    asked = np.array([[1, 2], [3, 4]], np.int32)

    async def scores() -> list[Answer]:
        rows = [np.concatenate([ids, answer.token_ids]) for ids, answer in zip(prompts, written, strict=True)]
        marks = [np.arange(len(row)) >= len(ids) for row, ids in zip(rows, prompts, strict=True)]
        marks[1][:] = False
        marks[1][[4, 9]] = True
        more = [asked if number == 1 else None for number in range(len(rows))]
        return await asyncio.gather(
            *(teacher.score(row, mark, "s", 9, ids) for row, mark, ids in zip(rows, marks, more, strict=True))
        )

    for number, (ids, answer, score) in enumerate(zip(prompts, written, asyncio.run(scores()), strict=True)):
        logprobs = whole(weights_of, [*ids, *answer.token_ids])
        if number == 1:
            check(score, logprobs[[3, 8]])
            assert score.asked_logprobs is not None
            assert np.allclose(score.asked_logprobs, np.take_along_axis(logprobs[[3, 8]], asked, 1), atol=1e-4)
        else:
            check(score, logprobs[len(ids) - 1 : -1])
            assert score.token_ids.tolist() == answer.token_ids.tolist()


def test_tokens_come_by_their_probability_and_by_the_seed_alone(weights_of: str, tmp_path: Path) -> None:
    for temperature in (1.0, 0.5, 0.0):
        teacher = TorchTeacher(config_of(weights_of, tmp_path, 1, temperature=temperature), [STOP])
        ids = np.array([20, 21, 22], np.int32)

        async def first(seeds: list[int], teacher: TorchTeacher = teacher, ids: Any = ids) -> list[int]:
            answers = await asyncio.gather(*(teacher.answer(ids, "a", seed, 1) for seed in seeds))
            return [int(answer.token_ids[0]) for answer in answers]

        drawn = asyncio.run(first([*range(600)]))
        assert asyncio.run(first([3])) == drawn[3:4]
        logprobs_V = whole(weights_of, ids.tolist())[-1]
        found_V = np.bincount(drawn, minlength=V) / 600
        if temperature == 0:
            assert found_V[logprobs_V.argmax()] == 1
        else:
            p_V = np.exp(logprobs_V / temperature - np.logaddexp.reduce(logprobs_V / temperature))
            assert np.abs(found_V - p_V).max() < 0.08


def test_new_weights_under_an_old_name_are_read(weights_of: str, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    model = LlamaForCausalLM.from_pretrained(weights_of)
    found = []
    for scale in (1.0, 0.1):
        model.lm_head.weight.data.mul_(scale)
        model.save_pretrained(folder)
        teacher = TorchTeacher(config_of(str(folder), tmp_path), [STOP])
        found.append(float(asyncio.run(teacher.answer(np.array([1, 2], np.int32), "a", 0, 1)).target_logprobs[0, 0]))
    assert abs(found[0] - found[1]) > 0.01


def test_what_the_teacher_in_torch_cannot_do_is_refused(weights_of: str, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="knows temperature alone"):
        TorchTeacher(config_of(weights_of, tmp_path, top_p=0.9), [STOP])


def test_a_student_goes_on_where_it_was(weights_of: str) -> None:
    setting = dataclasses.replace(on_policy.CPU.setting, num_layers=2)
    plan = dataclasses.replace(on_policy.CPU, setting=setting)
    data: Any = SimpleNamespace(teacher=weights_of)
    random = np.random.default_rng(0)
    rows = []
    for length in (6, 9, 7, 8):
        ids = random.integers(10, V, length)
        labels = np.where(np.arange(length) < 3, -100, ids)
        targets = random.integers(10, V, (length - 3, 4))
        logprobs = np.full(targets.shape, np.log(0.25), np.float32)
        rows.append({"input_ids": ids, "labels": labels, "target_ids": targets, "target_logprobs": logprobs})
    one, other = on_policy.Student(plan, data, 0), on_policy.Student(plan, data, 5)
    before = one.state()["weights"]
    one.learn(rows[:2])
    assert one.tokens == 9
    other.load(one.state())
    for student in (one, other):
        student.learn(rows[2:])
    again = other.state()
    assert (again["tokens"], again["steps"]) == (18, 2)
    for name, tensor in one.state()["weights"].items():
        assert torch.equal(tensor, again["weights"][name])
    assert any(not torch.equal(tensor, again["weights"][name]) for name, tensor in before.items())


def test_figures_are_intervals_of_differences(tmp_path: Path) -> None:
    plan = dataclasses.replace(on_policy.CPU, tokens=100, cold_tokens=50)

    def ran(kl: float) -> dict[str, Any]:
        end = {"top_1": 0.1, "task": 0.2, "own_kl": kl / 2}
        points = [{"tokens": 51, "kl": 9.0, "top_1": 0.0, "task": 0.0}, {"tokens": 103, "kl": kl, **end}]
        return {"points": points, "rounds": [{"tokens": 0, "own_kl": 3.0}]}

    seeds = [{"seed": n, "off": ran(3.0 + n), "cold": ran(2.0 + n), "own": ran(4.0 + 2 * n)} for n in range(3)]
    summary = figures.summarise(seeds, plan)
    assert summary["cold"]["minus_off"]["kl"] == pytest.approx({"mean": -1.0, "half": 0.0, "n": 3})
    # t(0.975, 2) = 4.3027; the standard deviation of 2, 3, 4 is 1
    assert summary["own"]["minus_cold"]["kl"] == pytest.approx({"mean": 3.0, "half": 4.3027 / 3**0.5, "n": 3}, abs=1e-3)
    keys = {"tokens": 100, "cold_tokens": 50, "round_prompts": 1, "points": (50, 100), "seeds": 3}
    text = figures.tables({"plan": keys, "summary": summary, "seeds": seeds})
    assert "| the teacher's answers, then its own | 3.000 ± 2.484 |" in text
    assert "| 100 | 4.00 | 3.00 | 6.00 |" in text
    pytest.importorskip("altair")  # of whoever plots
    figures.plot({"plan": keys, "summary": summary, "seeds": seeds}, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count("<path") > 5


def test_the_examples_configurations_are_valid() -> None:
    for name in ("off_policy", "rollouts"):
        config = load(str(on_policy.HERE / f"{name}.yaml"), [])
        assert (config.rollout is not None) == (name == "rollouts")
