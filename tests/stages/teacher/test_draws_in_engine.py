"""Draws inside the engine: exact against the softmax, and each with its own token, whatever vLLM does to the batch.

Shape legend: R rows of a step, V vocabulary, D draws per token, S tokens.
"""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, entropy, kstest

from stillhouse.stages.teacher import draws_in_engine
from stillhouse.stages.teacher.draws import REQUEST
from stillhouse.stages.teacher.draws_in_engine import DrawBuffer, DrawsV1, DrawsV2, draw, uniforms

GOLDEN, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def splitmix64(seed: int, number: int) -> int:
    """In Python's integers, from the paper's listing."""
    z = (seed + (number + 1) * GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_uniforms_are_splitmix64() -> None:
    seeds = [0, 1, 2**62 + 12345, 2**63 - 1]
    positions = [0, 7, 100_000, 3]
    found = uniforms(torch.tensor(seeds), torch.tensor(positions), 5)
    for r, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        expected = [(splitmix64(seed, (position << 20) + j) >> 40) / 2**24 for j in range(5)]
        assert found[r].tolist() == expected
    many = uniforms(torch.arange(1000), torch.zeros(1000, dtype=torch.int64), 64).numpy()
    assert kstest(many.ravel(), "uniform").pvalue > 0.001
    assert many.min() >= 0
    assert many.max() < 1


@pytest.mark.parametrize("V", [1, 63, 64, 100, 5000])
@pytest.mark.parametrize("scale", [0.0, 3.0, 40.0])
def test_draws_follow_the_softmax(V: int, scale: float) -> None:
    logits_V = torch.randn(V, generator=torch.Generator().manual_seed(V)) * scale
    logits_V[: V // 3] = -torch.inf
    n, D = 3000, 16
    logits_V = logits_V if V > 1 else torch.zeros(1)
    found = draw(logits_V.expand(n, V), torch.arange(n) * 7919, torch.arange(n), D).numpy()
    assert found.shape == (n, D)
    p = torch.softmax(logits_V.double(), 0).numpy()
    counts = np.bincount(found.ravel(), minlength=V)
    assert len(counts) == V
    assert not counts[p == 0].any()
    expected = p * n * D
    common = expected >= 8
    if common.sum() > 1:
        observed, wanted = (
            np.append(counts[common], counts[~common].sum()),
            np.append(expected[common], expected[~common].sum()),
        )
        if wanted[-1] < 8:
            observed, wanted = observed[:-1], wanted[:-1] * observed[:-1].sum() / wanted[:-1].sum()
        assert chisquare(observed, wanted).pvalue > 1e-4


def test_entropies_are_those_of_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 5000, generator=generator) * torch.linspace(0, 30, 40)[:, None] - 300
    logits[:, :2000] = -torch.inf  # masked tokens
    logits[7, 2001:] = -torch.inf  # no choice at all
    before = logits.clone()
    found = draws_in_engine.entropies(logits)
    assert torch.equal(logits, before)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = [entropy(torch.softmax(row.double(), 0).numpy()) for row in logits]
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), expected, atol=2e-5, rtol=1e-5)
    assert found[7] == 0
    monkeypatch.setattr(draws_in_engine, "CHUNK_VALUES", 12_000)
    assert torch.equal(draws_in_engine.entropies(logits), found)
    assert len(draws_in_engine.entropies(logits[:0])) == 0


def test_draws_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(9, 300)
    seeds, positions = torch.arange(9) + 5, torch.arange(9)
    whole = draw(logits, seeds, positions, 32)
    for r in range(9):
        assert torch.equal(draw(logits[r : r + 1], seeds[r : r + 1], positions[r : r + 1], 32)[0], whole[r])
    monkeypatch.setattr(draws_in_engine, "CHUNK_VALUES", 700)
    assert torch.equal(draw(logits, seeds, positions, 32), whole)
    assert torch.equal(draw(logits, seeds, positions, 50)[:, :32], whole), "others of the step asked for more"
    assert not torch.equal(draw(logits, seeds + 1, positions, 32), whole)
    assert not torch.equal(draw(logits, seeds, positions + 1, 32), whole)


class Peaked:
    """Requests whose logits leave no choice: token `base + position` of each; so every draw names whose it is. Every
    third one asks for entropies instead, and its logits leave so many choices that an entropy names whose it is."""

    V = 1000

    def __init__(self, number: int) -> None:
        self.name, self.base = f"r{number}", 13 * number % 500
        self.tells_entropy = number % 3 == 0
        self.output_ids: list[int] = []

    def logits(self) -> torch.Tensor:
        row = torch.full((self.V,), -1e9)
        first = (self.base + len(self.output_ids)) % self.V
        row[first : first + (1 + first % 50 if self.tells_entropy else 1)] = 0
        return row

    def asked(self, probed: int) -> tuple[str, int, int, int, bool]:
        number = int(self.name[1:])
        return (self.name, number, probed, 0 if self.tells_entropy else 4, self.tells_entropy)

    def check(self, taken: tuple[bytes, bytes, bytes], probed: int) -> None:
        S = len(self.output_ids)
        expected = (self.base + np.arange(S + 1)) % self.V
        found = np.frombuffer(taken[0], dtype=np.int32).reshape(-1, 4)
        entropies = np.frombuffer(taken[2], dtype=np.float32)
        assert not len(found if self.tells_entropy else entropies)
        assert S <= len(found) + len(entropies) <= S + 1  # a token may have been begun and not written
        assert (found == expected[: len(found), None]).all()
        assert np.allclose(entropies, np.log(1 + expected[: len(entropies)] % 50), atol=1e-5)
        if 0 <= probed < S:
            assert np.frombuffer(taken[1], dtype=np.float32).argmax() == expected[probed]
        assert probed <= S or not taken[1]


def test_v1_follows_rows_that_are_added_removed_and_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own batch keeper (`BatchUpdateBuilder`) tells of every change, preemptions among them."""
    from vllm.v1.sample.logits_processor import BatchUpdateBuilder, MoveDirectionality

    monkeypatch.setattr(draws_in_engine, "BUFFER", DrawBuffer())
    processor = DrawsV1(None, torch.device("cpu"), False)
    chance, builder = random.Random(0), BatchUpdateBuilder()
    batch: list[Peaked | None] = []  # None: a request of somebody else's
    waiting: list[Peaked] = []
    started = finished = others = preempted = 0
    for _ in range(400):
        leaving = [row for row in range(len(batch)) if chance.random() < 0.1]
        for row in leaving:
            builder.removed_append(row)
            request = batch[row]
            if request is not None and chance.random() < 0.4:
                waiting.append(request)  # preempted: it comes back with what it has written
                preempted += 1
            elif request is not None:
                request.check(draws_in_engine.BUFFER.take(request.name), int(request.name[1:]) % 9 - 1)
                finished += 1
        holes = sorted(leaving)
        for _ in range(chance.randrange(4)):
            row = holes.pop(0) if holes else len(batch)
            if row < len(batch):
                builder.pop_removed()
            else:
                batch.append(None)
            if chance.random() < 0.2:
                batch[row], params, output_ids = None, SimpleNamespace(extra_args=None), []
                others += 1
            else:
                if not waiting or chance.random() < 0.5:
                    waiting.append(Peaked(started))
                    started += 1
                request = waiting.pop(0)
                number = int(request.name[1:])
                params = SimpleNamespace(extra_args={REQUEST: request.asked(number % 9 - 1)})
                batch[row], output_ids = request, request.output_ids
            builder.added.append((row, params, None, output_ids))
        for hole in sorted(holes, reverse=True):  # the last row fills the hole, as vLLM's batch does
            last = len(batch) - 1
            if hole != last:
                builder.moved.append((last, hole, MoveDirectionality.UNIDIRECTIONAL))
                batch[hole] = batch[last]
            batch.pop()
        if len(batch) > 1 and chance.random() < 0.3:
            one, other = chance.sample(range(len(batch)), 2)
            builder.moved.append((one, other, MoveDirectionality.SWAP))
            batch[one], batch[other] = batch[other], batch[one]
        processor.update_state(builder.get_and_reset(len(batch)))
        if not batch:
            continue
        logits = torch.stack([torch.zeros(Peaked.V) if r is None else r.logits() for r in batch])
        assert processor.apply(logits.clone()).equal(logits)
        for request in batch:
            # A prompt that is still being read is sampled too, and the token thrown away.
            if request is not None and chance.random() < 0.8:
                request.output_ids.append(-1)
    assert min(started, finished, others, preempted) > 30
    assert not processor.is_argmax_invariant()


def test_v2_follows_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The V2 runner's interface as vLLM 0.32 has it: slots that are used again, rows in another order each step,
    prompts that come in chunks, requests of others."""
    monkeypatch.setattr(draws_in_engine, "BUFFER", DrawBuffer())
    slots = 6
    prompt_len = SimpleNamespace(np=np.zeros(slots, np.int32), gpu=torch.zeros(slots, dtype=torch.int32))
    states = SimpleNamespace(max_num_reqs=slots, device=torch.device("cpu"), prompt_len=prompt_len)
    processor = DrawsV2(None, states)
    chance, started, finished = random.Random(1), 0, 0
    running: dict[int, Peaked | None] = {}
    seen: dict[int, int] = {}  # by slot: tokens of the sequence that the model has read
    for _ in range(300):
        for slot in [s for s in running if chance.random() < 0.1]:
            request = running.pop(slot)
            if request is not None:
                request.check(draws_in_engine.BUFFER.take(request.name), int(request.name[1:]) % 5 - 1)
                finished += 1
        for slot in set(range(slots)) - set(running):
            if chance.random() < 0.5:
                prompt_len.np[slot] = chance.randrange(1, 9)
                seen[slot] = 0
                running[slot] = None
                extra = None
                if chance.random() < 0.8:
                    running[slot] = request = Peaked(started)
                    extra = {REQUEST: request.asked(started % 5 - 1)}
                    started += 1
                assert processor.add_request(slot, SimpleNamespace(extra_args=extra)) == (extra is not None)
        prompt_len.gpu = torch.from_numpy(prompt_len.np.copy())
        processor.apply_staged_writes()
        order = [slot for slot in running if chance.random() < 0.9]
        chance.shuffle(order)
        if not order:
            continue
        for slot in order:
            left = int(prompt_len.np[slot]) - seen[slot]
            seen[slot] += chance.randint(1, left) if left > 0 else 1
        context = SimpleNamespace(
            expanded_idx_mapping=torch.tensor(order, dtype=torch.int32),
            idx_mapping_np=np.array(order),
            pos=torch.tensor([seen[slot] - 1 for slot in order]),
            # A CUDA graph's batch is padded, and this array with it.
            seq_lens_upper_bound_np=np.array([*(seen[slot] for slot in order), 0, 0]),
        )
        logits = torch.stack([torch.zeros(Peaked.V) if r is None else r.logits() for r in map(running.get, order)])
        assert processor.apply(logits.clone(), context).equal(logits)
        for slot in order:
            request = running[slot]
            if request is not None and seen[slot] >= prompt_len.np[slot]:
                request.output_ids.append(-1)
    assert min(started, finished) > 30
    processor.add_request(0, SimpleNamespace(extra_args={REQUEST: ("x", 1, -1, 4)}))
    context.idx_mapping_np = np.array([0])
    with pytest.raises(RuntimeError, match="speculative"):
        processor.apply(torch.zeros(3, Peaked.V), context)
