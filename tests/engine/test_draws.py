"""Draws: exact against the full distribution, and each with its own token, whatever the engine does to the batch.

Shape legend: R rows of a step, V vocabulary, D draws per token, S tokens.
"""

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import chisquare, kstest

from stillhouse.schemas import targets
from stillhouse.schemas.config import Config
from stillhouse.stages import draws
from stillhouse.stages.chat import Chat
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import REQUEST, VLLMTeacher, check_draws, join_draws, load_teacher, probed_token
from tests.support.data import CONVERSATIONS, ROOT, TEACHER, make_raw_config
from tests.support.forward import forward
from tests.support.prompts import prompts

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
    found = draws.uniforms(torch.tensor(seeds), torch.tensor(positions), 5)
    for r, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        expected = [(splitmix64(seed, (position << 20) + j) >> 40) / 2**24 for j in range(5)]
        assert found[r].tolist() == expected
    many = draws.uniforms(torch.arange(1000), torch.zeros(1000, dtype=torch.int64), 64).numpy()
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
    found = draws.draw(logits_V.expand(n, V), torch.arange(n) * 7919, torch.arange(n), D).numpy()
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


def test_draws_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(9, 300)
    seeds, positions = torch.arange(9) + 5, torch.arange(9)
    whole = draws.draw(logits, seeds, positions, 32)
    for r in range(9):
        assert torch.equal(draws.draw(logits[r : r + 1], seeds[r : r + 1], positions[r : r + 1], 32)[0], whole[r])
    monkeypatch.setattr(draws, "CHUNK_VALUES", 700)
    assert torch.equal(draws.draw(logits, seeds, positions, 32), whole)
    assert torch.equal(draws.draw(logits, seeds, positions, 50)[:, :32], whole), "others of the step asked for more"
    assert not torch.equal(draws.draw(logits, seeds + 1, positions, 32), whole)
    assert not torch.equal(draws.draw(logits, seeds, positions + 1, 32), whole)


class Peaked:
    """Requests whose logits leave no choice: token `base + position` of each; so every draw names whose it is."""

    V = 1000

    def __init__(self, number: int) -> None:
        self.name, self.base = f"r{number}", 13 * number % 500
        self.output_ids: list[int] = []

    def logits(self) -> torch.Tensor:
        row = torch.full((self.V,), -1e9)
        row[(self.base + len(self.output_ids)) % self.V] = 0
        return row

    def check(self, taken: tuple[bytes, bytes], probed: int) -> None:
        S = len(self.output_ids)
        found = np.frombuffer(taken[0], dtype=np.int32).reshape(-1, 4)
        expected = (self.base + np.arange(S + 1)) % self.V
        assert S <= len(found) <= S + 1  # a token may have been begun and not written
        assert (found == expected[: len(found), None]).all()
        if 0 <= probed < S:
            assert np.frombuffer(taken[1], dtype=np.float32).argmax() == expected[probed]
        assert probed <= S or not taken[1]


def test_v1_follows_rows_that_are_added_removed_and_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own batch keeper (`BatchUpdateBuilder`) tells of every change, preemptions among them."""
    from vllm.v1.sample.logits_processor import BatchUpdateBuilder, MoveDirectionality

    monkeypatch.setattr(draws, "STORE", draws.Store())
    processor = draws.DrawsV1(None, torch.device("cpu"), False)
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
                request.check(draws.STORE.take(request.name), int(request.name[1:]) % 9 - 1)
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
                params = SimpleNamespace(extra_args={REQUEST: (request.name, number, number % 9 - 1, 4)})
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
    monkeypatch.setattr(draws, "STORE", draws.Store())
    slots = 6
    prompt_len = SimpleNamespace(np=np.zeros(slots, np.int32), gpu=torch.zeros(slots, dtype=torch.int32))
    states = SimpleNamespace(max_num_reqs=slots, device=torch.device("cpu"), prompt_len=prompt_len)
    processor = draws.DrawsV2(None, states)
    chance, started, finished = random.Random(1), 0, 0
    running: dict[int, Peaked | None] = {}
    seen: dict[int, int] = {}  # by slot: tokens of the sequence that the model has read
    for _ in range(300):
        for slot in [s for s in running if chance.random() < 0.1]:
            request = running.pop(slot)
            if request is not None:
                request.check(draws.STORE.take(request.name), int(request.name[1:]) % 5 - 1)
                finished += 1
        for slot in set(range(slots)) - set(running):
            if chance.random() < 0.5:
                prompt_len.np[slot] = chance.randrange(1, 9)
                seen[slot] = 0
                running[slot] = None
                extra = None
                if chance.random() < 0.8:
                    running[slot] = request = Peaked(started)
                    extra = {REQUEST: (request.name, started, started % 5 - 1, 4)}
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
            seq_lens_upper_bound_np=np.array([seen[slot] for slot in order]),
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


# With an engine


D, TOKENS = 64, 2000


def sampled_config(folder: Any, **changes: Any) -> Config:
    raw = make_raw_config(folder)
    raw["teacher"] = {
        "model": str(TEACHER),
        "dtype": "float32",
        "max_model_len": 512,
        # Ten blocks for eight sequences: as soon as more than two pass their first block, one is preempted.
        "engine": {"enforce_eager": True, "max_num_seqs": 8, "num_gpu_blocks_override": 10, "block_size": 128},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    raw["ingest"] |= {"turns": "all", "max_prompt_tokens": 128}
    raw["sampling"] = {"max_tokens": 96, "temperature": 1.0, "seed": 11}
    raw["targets"] = {"method": "both", "top_k": 256, "num_draws": D, "probe_fraction": 0.5}
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value}
    return Config.model_validate(raw)


def conversations(count: int) -> list[list[str]]:
    rows = pq.read_table(CONVERSATIONS, columns=["conversation"]).column(0)[:3000].to_pylist()
    turns = [[m["content"] for m in messages if m["role"] == "user"][:2] for messages in rows]
    return [t for t in turns if len(t) == 2 and 20 < len(t[0]) < 150 and 10 < len(t[1]) < 150][:count]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[pa.Table]:
    """Conversations of two turns, on an engine that has to preempt."""
    config, chat = sampled_config(tmp_path_factory.mktemp("draws")), Chat(tokenizer)
    teacher = load_teacher(config, chat.end_of_turn_ids())
    assert isinstance(teacher, VLLMTeacher)
    try:
        yield asyncio.run(Generate(config, chat, teacher)(prompts(conversations(24))))
    finally:
        teacher.shutdown()


def whole_distributions(generated: pa.Table, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the first `limit` tokens, the full distribution by transformers in float32 [S, V], and their draws' counts."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    p, counts, total = [], [], 0
    for row, drawn in zip(generated.to_pylist(), targets.decode(generated, "draw"), strict=True):
        logprobs_SV, _ = forward(row, model)
        counts_SV = np.zeros(logprobs_SV.shape, dtype=np.int32)
        kept = drawn.logprobs > -np.inf
        tokens = np.broadcast_to(np.arange(len(kept))[:, None], kept.shape)[kept]
        counts_SV[tokens, drawn.ids[kept]] = np.round(np.exp(drawn.logprobs[kept]) * D)
        assert (counts_SV.sum(axis=1) == D).all()
        p.append(np.exp(logprobs_SV))
        counts.append(counts_SV)
        total += len(logprobs_SV)
        if total >= limit:
            break
    return np.concatenate(p)[:limit], np.concatenate(counts)[:limit]


def fit(p_SV: np.ndarray, counts_SV: np.ndarray) -> tuple[float, float]:
    """p-values of chi-square over all tokens, with the tokens of the vocabulary pooled by rank and by id."""
    V = p_SV.shape[1]
    order = np.argsort(-p_SV, axis=1)
    by_rank, by_id = [], []
    edges = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, V]
    for what in (p_SV * counts_SV.sum(axis=1, keepdims=True), counts_SV):
        ranked = np.take_along_axis(what, order, axis=1).sum(axis=0)
        by_rank.append(np.add.reduceat(ranked, edges[:-1]))
        by_id.append(np.bincount(np.arange(V) % 97, weights=what.sum(axis=0)))
    return tuple(float(chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue) for wanted, seen in (by_rank, by_id))  # type: ignore[return-value]


@pytest.mark.engine
def test_pooled_counts_fit_the_whole_distribution(generated: pa.Table) -> None:
    p_SV, counts_SV = whole_distributions(generated, TOKENS)
    assert len(p_SV) == TOKENS
    found = fit(p_SV, counts_SV)
    random_ = np.random.default_rng(0)

    def biased(weights_SV: np.ndarray) -> np.ndarray:
        weights_SV = (weights_SV / weights_SV.sum(axis=1, keepdims=True)).astype(np.float64)
        return np.stack([random_.multinomial(D, row / row.sum()) for row in weights_SV])

    top = np.where(p_SV >= np.partition(p_SV, -256, axis=1)[:, -256:-255], p_SV, 0)
    results = {
        "draws": found,
        "top 256": fit(p_SV, biased(top)),
        "temperature 0.97": fit(p_SV, biased(p_SV ** (1 / 0.97))),
    }
    results["shifted"] = fit(p_SV[1:], counts_SV[:-1])
    print(f"\n{TOKENS} tokens x {D} draws, chi-square p by rank and by id: {results}")
    assert min(found) > 1e-3
    for name, values in results.items():
        assert name == "draws" or min(values) < 1e-6, name


@pytest.mark.engine
def test_the_engine_was_made_to_preempt(generated: pa.Table) -> None:
    """Ten blocks of 128 tokens do not hold eight sequences of over 128."""
    long = [n for n in generated.column("num_input_tokens").to_pylist() if n > 128]
    assert len(long) > 12
    assert generated.column("drop_reason").null_count == generated.num_rows
    assert sum(len(reasons) > 1 for reasons in generated.column("finish_reasons").to_pylist()) > 3


@pytest.mark.engine
def test_probes_are_the_whole_distribution(generated: pa.Table) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    seen = 0
    rows = zip(generated.to_pylist(), targets.decode(generated), targets.decode(generated, "draw"), strict=True)
    for row, top_k, drawn in rows:
        if row["probe"] is None:
            continue
        seen += 1
        token = row["probe"]["token"]
        p_V = np.exp(forward(row, model)[0][token].astype(np.float64))
        assert row["probe"]["entropy"] == pytest.approx(-(p_V * np.log(np.maximum(p_V, 1e-300))).sum(), abs=2e-3)
        q_K = np.exp(top_k.logprobs[token].astype(np.float64))
        p_K = p_V[top_k.ids[token]]
        assert row["probe"]["kl_top_k"] == pytest.approx(-np.log(q_K.sum()), abs=5e-3)
        both = np.append(q_K, np.exp(float(top_k.tail[token]))), np.append(p_K, max(1 - p_K.sum(), 1e-7))
        coarse = (both[0] / both[0].sum() * np.log(both[0] / both[0].sum() / both[1])).sum()
        assert row["probe"]["kl_top_k_tail"] == pytest.approx(coarse, abs=1e-4)
        kept = drawn.logprobs[token] > -np.inf
        f = np.exp(drawn.logprobs[token][kept].astype(np.float64))
        assert row["probe"]["kl_draws"] == pytest.approx((f * np.log(f / p_V[drawn.ids[token][kept]])).sum(), abs=5e-3)
    assert seen >= 3


@pytest.mark.slow
@pytest.mark.engine
def test_prompts_that_come_in_chunks(tmp_path: Any, tokenizer: Any) -> None:
    """`check_draws` compares every answer's draws with vLLM's own log-probabilities. Greedy, because vLLM's CPU engine
    ends when a seeded request comes in chunks; draws alone, in bfloat16, as in a usual run."""
    config = sampled_config(
        tmp_path,
        teacher={
            "dtype": "bfloat16",
            "engine": {
                "enforce_eager": True, "max_num_seqs": 8, "enable_chunked_prefill": True, "max_num_batched_tokens": 32,
            },
        },
        sampling={"temperature": 0.0, "max_tokens": 24},
        targets={"method": "sampled", "num_draws": 50, "probe_fraction": 0.0},
        ingest={"turns": "first", "max_prompt_tokens": 400},
    )  # fmt: skip
    chat = Chat(tokenizer)
    teacher = load_teacher(config, chat.end_of_turn_ids())
    texts = [["word " * n] for n in (3, 40, 100, 31, 200, 7, 64, 65, 150)]
    try:
        table = asyncio.run(Generate(config, chat, teacher)(prompts(texts)))
    finally:
        teacher.shutdown()
    assert table.column("drop_reason").null_count == len(texts)
    assert "target_ids" not in table.column_names
    for row, drawn in zip(table.to_pylist(), targets.decode(table), strict=True):
        written = np.array([label for label in row["labels"] if label != -100])
        f = np.where(drawn.ids == written[:, None], np.exp(drawn.logprobs), 0).sum(axis=1)
        assert np.abs(f - np.exp(row["token_logprobs"])).mean() < 0.15
        assert len(f) == row["num_target_tokens"]


V2 = """
import asyncio, sys
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
from transformers import AutoTokenizer
from stillhouse.stages.chat import Chat
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import load_teacher
from tests.support.data import TEACHER
from tests.engine.test_draws import sampled_config
from tests.support.prompts import prompts

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    engine = {
        "enforce_eager": True, "max_num_seqs": 4, "enable_chunked_prefill": True, "max_num_batched_tokens": 32,
        "num_gpu_blocks_override": 8, "block_size": 32,
    }
    config = sampled_config(
        folder, teacher={"engine": engine, "max_model_len": 160}, ingest={"turns": "first", "max_prompt_tokens": 120},
        sampling={"max_tokens": 16}, targets={"probe_fraction": 1.0},
    )
    chat = Chat(AutoTokenizer.from_pretrained(TEACHER))
    teacher = load_teacher(config, chat.end_of_turn_ids())
    runner = teacher.engine.vllm_config.use_v2_model_runner
    texts = [[f"Tell me about the number {n}. " + "word " * n] for n in (1, 25, 40, 3, 60)]
    table = asyncio.run(Generate(config, chat, teacher)(prompts(texts)))
    teacher.shutdown()
    pq.write_table(table, folder / "table.parquet")
    print("V2" if runner else "V1")
"""


@pytest.mark.slow
@pytest.mark.engine
def test_the_v2_runner(tmp_path: Path) -> None:
    """GPU builds run it. Here it runs too, with Triton's interpreter for its kernels, a second a step: with
    seeded prompts in chunks, slots that are used again, and too few blocks for four sequences."""
    script = tmp_path / "v2.py"
    script.write_text(V2)
    path = os.pathsep.join([str(ROOT / "tests/support/triton_interpreter"), str(ROOT)])
    finished = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "VLLM_USE_V2_MODEL_RUNNER": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.split() == ["V2"]
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.column("drop_reason").null_count == table.num_rows == 5
    p_SV, counts_SV = whole_distributions(table, 1000)
    found, shifted = fit(p_SV, counts_SV), fit(p_SV[1:], counts_SV[:-1])
    print(f"\nV2: {len(p_SV)} tokens x {D} draws, chi-square p by rank and by id: {found}; shifted {shifted}")
    assert len(p_SV) > 40
    assert min(found) > 1e-3
    assert min(shifted) < 1e-6
    probes = [(row["probe"], row) for row in table.to_pylist() if row["probe"] is not None]
    assert probes
    for probe, row in probes:
        start = sum(r["num_target_tokens"] for r in table.to_pylist()[: table.to_pylist().index(row)])
        p_V = p_SV[start + probe["token"]].astype(np.float64)
        assert probe["entropy"] == pytest.approx(-(p_V * np.log(np.maximum(p_V, 1e-300))).sum(), abs=2e-3)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.cluster
def test_two_replicas_under_ray(tmp_path: Path) -> None:
    """Two engines at once, shards as they come: every row's draws are its own."""
    settings = {
        "run_dir": tmp_path / "run", "source.limit": 100, "ingest.rows_per_shard": 12, "ingest.turns": "all",
        "sampling.max_tokens": 32, "sampling.temperature": 1.0, "teacher.dtype": "float32",
        "targets.method": "sampled", "resources.generate.min_workers": 2, "resources.generate.max_workers": 2,
        "resources.generate.num_cpus": 0.5, "review.loop_tokens": 100000,
    }  # fmt: skip
    overrides = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    finished = subprocess.run(
        [sys.executable, "-m", "stillhouse", "run", "configs/quickstart.yaml", *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    table = pa.concat_tables(
        [pq.read_table(file) for file in sorted((tmp_path / "run/dataset/data").glob("*.parquet"))]
    )
    p_SV, counts_SV = whole_distributions(table, TOKENS)
    found = fit(p_SV, counts_SV)
    print(f"\nTwo replicas: {len(p_SV)} tokens x {D} draws, chi-square p by rank and by id: {found}")
    assert len(p_SV) > 500
    assert min(found) > 1e-3
