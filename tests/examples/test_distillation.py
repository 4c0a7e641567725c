"""What a training repo copies (examples/distill_student/distillation.py): losses against other ways to compute them.

Shape legend: S tokens, K targets per token, V vocabulary, D width.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from examples.distill_student.distillation import (
    DistillationDataset,
    DistillationLoss,
    collate,
    distillation_loss,
    predicting_states,
    targets_of,
)
from stillhouse.schemas import targets
from tests.support.distributions import log_softmax, table_of

S, V, D = 40, 97, 16
SOFTCAP = 3.0


def student(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden_SD, head_VD = (torch.randn(shape, generator=generator) * scale for shape in [(S, D), (V, D)])
    return hidden_SD.requires_grad_(), head_VD.requires_grad_()


def teacher(scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [S, V] in float64, and ids, most probable first."""
    generator = torch.Generator().manual_seed(2)
    logprobs_SV = (torch.randn((S, V), generator=generator, dtype=torch.float64) * scale).log_softmax(1)
    return logprobs_SV, logprobs_SV.argsort(1, descending=True)


def top_k(K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, log-probabilities and tail as they are stored, but for rounding."""
    logprobs_SV, order = teacher()
    logprobs_SK = logprobs_SV.gather(1, order[:, :K])
    tail_S = logprobs_SV.gather(1, order[:, K:]).logsumexp(1) if K < V else torch.full((S,), targets.TAIL_FLOOR)
    return order[:, :K], logprobs_SK.float(), tail_S.float()


def student_logprobs(hidden_SD: torch.Tensor, head_VD: torch.Tensor, softcap: float | None) -> torch.Tensor:
    logits_SV = hidden_SD.double() @ head_VD.double().T
    return (logits_SV if softcap is None else softcap * torch.tanh(logits_SV / softcap)).log_softmax(1)


def agree(loss_S: torch.Tensor, expected_S: torch.Tensor, hidden_SD: torch.Tensor, head_VD: torch.Tensor) -> None:
    """Values and both gradients."""
    np.testing.assert_allclose(loss_S.detach(), expected_S.detach(), rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(loss_S.sum(), [hidden_SD, head_VD])
    for gradient, expected in zip(gradients, torch.autograd.grad(expected_S.sum(), [hidden_SD, head_VD]), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("softcap", [None, SOFTCAP])
def test_all_of_the_vocabulary_is_torchs_kl(softcap: float | None, chunk: int) -> None:
    hidden_SD, head_VD = student()
    ids_SK, logprobs_SK, _ = top_k(V)
    loss_S = distillation_loss(hidden_SD, head_VD, ids_SK, logprobs_SK, softcap=softcap, chunk=chunk)
    expected_SV = torch.nn.functional.kl_div(
        student_logprobs(hidden_SD, head_VD, softcap), teacher()[0], reduction="none", log_target=True
    )
    agree(loss_S, expected_SV.sum(1), hidden_SD, head_VD)


@pytest.mark.parametrize("softcap", [None, SOFTCAP])
@pytest.mark.parametrize("with_tail", [True, False])
def test_top_k_is_the_kl_of_summed_distributions(with_tail: bool, softcap: float | None) -> None:
    hidden_SD, head_VD = student()
    ids_SK, logprobs_SK, tail_S = top_k(10)
    loss_S = distillation_loss(hidden_SD, head_VD, ids_SK, logprobs_SK, tail_S if with_tail else None, softcap)
    p_SV, q_SV = teacher()[0].exp(), student_logprobs(hidden_SD, head_VD, softcap).exp()
    expected = []
    for s in range(S):
        inside = torch.zeros(V, dtype=torch.bool)
        inside[ids_SK[s]] = True
        p, q = p_SV[s, inside], q_SV[s, inside]
        if with_tail:
            p, q = torch.cat([p, p_SV[s, ~inside].sum()[None]]), torch.cat([q, q_SV[s, ~inside].sum()[None]])
        else:
            p = p / p.sum()
        expected.append((p * (p / q).log()).sum())
    agree(loss_S, torch.stack(expected), hidden_SD, head_VD)


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("elsewhere", ["text", "nothing"])
@pytest.mark.parametrize("with_tail", [True, False])
def test_tokens_without_targets(with_tail: bool, elsewhere: str, chunk: int) -> None:
    """They get cross-entropy or nothing; what the others get does not change."""
    hidden_SD, head_VD = student()
    ids_SK, logprobs_SK, tail_S = top_k(10)
    whole_S = distillation_loss(hidden_SD, head_VD, ids_SK, logprobs_SK, tail_S if with_tail else None)
    is_kept_S = torch.arange(S) % 3 == 0
    encoded = targets.encode_top_k(ids_SK.numpy(), logprobs_SK.numpy(), asked_S=is_kept_S.numpy())
    (row,) = targets.decode(table_of([encoded]))
    stored = {name: torch.tensor(np.asarray(values)) for name, values in row._asdict().items()}
    written_S = torch.randint(0, V, (S,), generator=torch.Generator().manual_seed(4))
    loss_S = distillation_loss(
        hidden_SD,
        head_VD,
        stored["ids"].long(),
        stored["logprobs"],
        stored["tail"] if with_tail else None,
        chunk=chunk,
        written_S=written_S if elsewhere == "text" else None,
    )
    ce_S = -student_logprobs(hidden_SD, head_VD, None).gather(1, written_S[:, None])[:, 0]
    expected_S = torch.where(is_kept_S, whole_S.double(), ce_S if elsewhere == "text" else torch.zeros(S))
    np.testing.assert_allclose(loss_S.detach(), expected_S.detach(), rtol=2e-3, atol=2e-3)  # targets are float16
    gradients = torch.autograd.grad(loss_S[~is_kept_S].sum(), [hidden_SD, head_VD], retain_graph=True)
    for gradient, expected in zip(
        gradients, torch.autograd.grad(expected_S[~is_kept_S].sum(), [hidden_SD, head_VD]), strict=True
    ):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_tail_too_small_for_one_minus_sum_has_its_digits() -> None:
    hidden_SD, head_VD = torch.ones((1, 1)), torch.tensor([[0.0], [-40.0], [-41.0]])
    tail_S = torch.tensor([-2.0])
    loss_S = distillation_loss(hidden_SD, head_VD, torch.tensor([[0]]), torch.log1p(-tail_S.exp())[:, None], tail_S)
    p, q = np.exp(-2.0), np.exp(-40.0) + np.exp(-41.0)
    assert loss_S.item() == pytest.approx(p * np.log(p / q) + (1 - p) * np.log1p(-p), rel=1e-6)


def test_draws_are_cross_entropy_of_counts() -> None:
    num_draws = 64
    hidden_SD, head_VD = student()
    draws_SD = torch.multinomial(teacher()[0].exp(), num_draws, True, generator=torch.Generator().manual_seed(3))
    encoded = targets.encode_draws(draws_SD.numpy().astype(np.int32))
    table = table_of([top_k_row()], [encoded], num_draws)
    (row,) = targets.decode(table, "draw")
    ids_SK, logprobs_SK = torch.tensor(row.ids.astype(np.int64)), torch.tensor(row.logprobs)
    loss_S = distillation_loss(hidden_SD, head_VD, ids_SK, logprobs_SK)
    logq_SV = student_logprobs(hidden_SD, head_VD, None)
    frequencies = [draws.bincount(minlength=V) / num_draws for draws in draws_SD]
    entropies = [-(f[f > 0] * f[f > 0].log()).sum() for f in frequencies]
    agree(loss_S, -logq_SV.gather(1, draws_SD).mean(1) - torch.stack(entropies), hidden_SD, head_VD)


def top_k_row(K: int = 8) -> targets.TopK:
    return targets.encode_top_k(*(tensor.numpy() for tensor in top_k(K)[:2]))


@pytest.mark.parametrize("with_tail", [True, False])
@pytest.mark.parametrize("pad_id", [0, 5])
def test_padding_changes_nothing(pad_id: int, with_tail: bool) -> None:
    hidden_SD, head_VD = student()
    ids_SK, logprobs_SK, tail_S = top_k(10)
    tail = tail_S if with_tail else None
    padded_ids, padded_logprobs = (
        torch.nn.functional.pad(tensor, (0, 6), value=value)
        for tensor, value in [(ids_SK, pad_id), (logprobs_SK, -torch.inf)]
    )
    loss_S = distillation_loss(hidden_SD, head_VD, padded_ids, padded_logprobs, tail)
    agree(loss_S, distillation_loss(hidden_SD, head_VD, ids_SK, logprobs_SK, tail), hidden_SD, head_VD)


def test_a_token_without_draws_has_no_loss() -> None:
    hidden_SD, head_VD = student()
    ids_SK, logprobs_SK, _ = top_k(10)
    logprobs_SK[3] = -torch.inf
    loss_S = distillation_loss(hidden_SD, head_VD, ids_SK, logprobs_SK)
    gradient = torch.autograd.grad(loss_S.sum(), hidden_SD)[0]
    assert loss_S[3] == 0
    assert (gradient[3] == 0).all()
    assert torch.isfinite(gradient).all()
    assert (gradient[4] != 0).any()


@pytest.mark.parametrize("with_tail", [True, False])
def test_the_teacher_itself_has_no_loss_and_shifted_by_one_has(with_tail: bool) -> None:
    hidden_SD, head_VD = student(scale=0.8)
    logprobs_SV = student_logprobs(hidden_SD, head_VD, None).detach()
    ids_SK = logprobs_SV.argsort(1, descending=True)[:, : 10 if with_tail else V]
    logprobs_SK = logprobs_SV.gather(1, ids_SK)
    encoded = targets.encode_top_k(ids_SK.numpy(), logprobs_SK.numpy())
    assert encoded.logprobs is not None
    stored_ids = torch.tensor(encoded.ids.reshape(S, -1).astype(int))
    stored = torch.tensor(encoded.logprobs.reshape(S, -1).astype(float))
    tail_S = torch.tensor(encoded.tail.astype(np.float32)) if with_tail else None
    loss_S = distillation_loss(hidden_SD, head_VD, stored_ids, stored, tail_S)
    assert loss_S.abs().max() < 1e-5
    shifted_tail = None if tail_S is None else tail_S.roll(1)
    shifted_S = distillation_loss(hidden_SD, head_VD, stored_ids.roll(1, 0), stored.roll(1, 0), shifted_tail)
    assert shifted_S.mean() > 1.0


def test_states_are_those_of_the_position_before() -> None:
    labels_BT = torch.tensor([[-100, -100, 7, 8, -100, 9], [-100, 3, -100, -100, -100, -100]])
    hidden_BTD = torch.arange(12.0).reshape(2, 6, 1)
    assert predicting_states(hidden_BTD, labels_BT).ravel().tolist() == [1, 2, 4, 6]


def test_no_logits_outlive_their_chunk() -> None:
    hidden_SD, head_VD = student()
    ids_SK, logprobs_SK, tail_S = top_k(10)
    chunk, saved = 5, list[torch.Tensor]()

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        distillation_loss(hidden_SD, head_VD, ids_SK, logprobs_SK, tail_S, SOFTCAP, chunk)
    assert saved
    assert not [t for t in saved if t.ndim == 2 and t.shape[1] == V]


def mib_of_a_large_vocabulary(chunk: int) -> float:
    """By how much a forward and backward pass over 64 tokens and Gemma's vocabulary raises this process's memory."""
    head_VD, hidden_SD = torch.randn(262_144, 2), torch.randn(64, 2, requires_grad=True)
    ids_SK, logprobs_SK = torch.randint(0, 262_144, (64, 8)), torch.full((64, 8), -3.0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = memory_mib("VmRSS")
    distillation_loss(hidden_SD, head_VD, ids_SK, logprobs_SK, torch.full((64,), -0.5), chunk=chunk).sum().backward()
    return memory_mib("VmHWM") - before


def memory_mib(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def test_memory_at_gemmas_vocabulary() -> None:
    """One [S, V] is 64 MiB, and at least four of them exist at once; one chunk's logits are 4 MiB."""
    # Libraries that torch loads for its first checkpoint are no part of it.
    hidden_SD, head_VD = student()
    distillation_loss(hidden_SD, head_VD, *top_k(10), chunk=7).sum().backward()
    assert mib_of_a_large_vocabulary(chunk=4) < 128
    assert mib_of_a_large_vocabulary(chunk=64) > 192


def test_a_dataset_comes_back_whole(tmp_path: Path) -> None:
    """From tables as a run writes them, over files and batches, with lists of one length and of many."""
    random = np.random.default_rng(0)
    logprobs_SV = log_softmax(random.normal(0, 2, (300, 50)))
    order = np.argsort(-logprobs_SV, axis=1)
    for top_p in (1.0, 0.8):
        folder = tmp_path / str(top_p)
        folder.mkdir()
        lengths, expected, start = [[3, 9], [20], [4, 4, 4, 4]], [], 0
        for n, file in enumerate(lengths):
            rows, draws, ids, labels = [], [], [], []
            for length in file:
                own = slice(start, start + length)
                top = np.take_along_axis(logprobs_SV, order, axis=1)[own, :6]
                rows.append(targets.encode_top_k(order[own, :6], top, top_p))
                draws.append(targets.encode_draws(random.integers(0, 50, (length, 16)).astype(np.int32)))
                prompt = int(random.integers(1, 5))
                ids.append(random.integers(0, 50, prompt + length).astype(np.int32))
                labels.append(np.concatenate([np.full(prompt, -100, np.int32), ids[-1][prompt:]]))
                expected.append((ids[-1], labels[-1], order[own, :6], top))
                start += length
            table = table_of(rows, draws, 16)
            for name, column in [("input_ids", ids), ("labels", labels)]:
                table = table.append_column(name, pa.array(column, pa.list_(pa.int32())))
            pq.write_table(table.append_column("sample_id", pa.array(["x"] * len(file))), folder / f"{n}.parquet")
        dataset = DistillationDataset(folder)
        assert len(dataset) == len(expected)
        assert len(list(dataset)) == len(expected)
        batch = collate([dataset[i] for i in (1, 2, 6)])
        chosen = [expected[i] for i in (1, 2, 6)]
        assert [batch["input_ids"][b, : len(e[0])].tolist() for b, e in enumerate(chosen)] == [
            e[0].tolist() for e in chosen
        ]
        assert batch["labels"][batch["attention_mask"] == 0].unique().tolist() == [-100]
        assert batch["attention_mask"].sum(1).tolist() == [len(e[0]) for e in chosen]
        ids_SK, logprobs_SK = (np.concatenate([e[i] for e in chosen]) for i in (2, 3))
        kept = batch["target_logprobs"].numpy() > -np.inf
        assert len(kept) == (batch["labels"] != -100).sum()
        assert kept.all() == (top_p == 1.0)
        assert (batch["target_ids"].numpy() == ids_SK)[kept].all()
        np.testing.assert_allclose(batch["target_logprobs"].numpy()[kept], logprobs_SK[kept], atol=2e-3)
        mass_S = batch["target_logprobs"].exp().sum(1) + batch["target_tail"].exp()
        np.testing.assert_allclose(mass_S, 1.0, atol=3e-3)
        assert "target_tail" not in collate([DistillationDataset(folder, tail=False)[0]])
        drawn = collate([DistillationDataset(folder, "draw")[i] for i in range(7)])
        assert "target_tail" not in drawn
        np.testing.assert_allclose(drawn["target_logprobs"].exp().sum(1), 1.0, atol=1e-6)
        assert [t.dtype for t in drawn.values()].count(torch.float32) == 1


@pytest.mark.parametrize("across_devices", [False, True])
def test_a_trainers_loss_is_the_sum_over_accumulated_batches(across_devices: bool) -> None:
    """Two batches of one step and all their rows in one batch give the same gradient, and it is the loss's own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config)
    lengths = [3, 9, 5, 6]
    _, order = teacher()
    rows = []
    for n, length in enumerate(lengths):
        labels = np.concatenate([[-100, -100], order[:length, 0].numpy()])
        targets_SK = [tensor[n : n + length].numpy() for tensor in top_k(10)]
        names = ("target_ids", "target_logprobs", "target_tail")
        rows.append({"input_ids": np.maximum(labels, 0), "labels": labels} | dict(zip(names, targets_SK, strict=True)))

    class Accelerator:
        num_processes = 2
        autocast = staticmethod(torch.enable_grad)
        unwrap_model = staticmethod(lambda model: model)

    class Arguments:
        average_tokens_across_devices = across_devices

    trainer: Any = DistillationLoss()
    trainer.accelerator, trainer.args = Accelerator(), Arguments()
    batches = [collate(rows[:1]), collate(rows[1:])]
    for batch in batches:
        trainer.compute_loss(model, batch, num_items_in_batch=sum(lengths)).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    whole = collate(rows)
    hidden_BTD = model.model(whole["input_ids"], attention_mask=whole["attention_mask"]).last_hidden_state
    hidden_SD = predicting_states(hidden_BTD, whole["labels"])
    loss = distillation_loss(hidden_SD, model.lm_head.weight, **targets_of(whole)).mean()
    (loss * (2 if across_devices else 1)).backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-6)
    loss_alone, outputs = trainer.compute_loss(model, whole, return_outputs=True)
    assert loss_alone.item() == pytest.approx(loss.item(), rel=1e-5)
    assert outputs.logits.shape[1] == 1


def test_the_experiments_full_kl_is_the_loss_over_all_of_the_vocabulary() -> None:
    from examples.distill_student.distill import full_kl

    hidden_SD, head_VD = student()
    other_SD, other_VD = student(scale=0.5)
    loss_S = full_kl(hidden_SD, other_SD, head_VD, other_VD)
    logprobs_SV = student_logprobs(other_SD, other_VD, None).detach()
    everything = torch.arange(V).expand(S, V)
    agree(loss_S, distillation_loss(hidden_SD, head_VD, everything, logprobs_SV), hidden_SD, head_VD)


def test_tokens_are_interpolated_where_a_curve_comes_down() -> None:
    from examples.distill_student.distill import tokens_to_reach

    points = [{"tokens": tokens, "kl": kl} for tokens, kl in [(100, 4.0), (200, 3.0), (400, 3.5), (800, 2.0)]]
    assert tokens_to_reach(points, "kl", 3.5) == pytest.approx(100 * 2**0.5)
    assert tokens_to_reach(points, "kl", 2.0) == pytest.approx(800)
    assert tokens_to_reach(points, "kl", 5.0) == 100  # at most: it was there before it was measured
    assert tokens_to_reach(points, "kl", 1.0) == float("inf")
