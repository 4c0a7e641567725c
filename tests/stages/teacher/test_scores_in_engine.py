"""Scores inside the engine: each supervised token gets its own distribution, whatever vLLM does to the batch, and never
are there more logits than a few hundred rows'.

Shape legend: T tokens of a conversation, H hidden size, V vocabulary, S supervised tokens, K targets and D draws
per token.
"""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from stillhouse.stages.teacher import scores_in_engine
from stillhouse.stages.teacher.scores import SCORED, TOKENS_PER_PROBE, Part, probed_of, request_of, scored_answer
from stillhouse.stages.teacher.scores_in_engine import Scoring, Span, TakeScores, distributions

H, V, K, D = 16, 300, 5, 8


class Model:
    """Hidden states are random numbers of token and place; the output layer a random matrix."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(V, H, generator=generator)
        self.head = torch.randn(H, V, generator=generator)
        self.most_rows = 0

    def hidden(self, token_ids: np.ndarray) -> torch.Tensor:
        places = torch.arange(len(token_ids))[:, None] / 7 * torch.arange(1, H + 1)
        return self.embedding[torch.from_numpy(token_ids.astype(np.int64))] + torch.sin(places)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.most_rows = max(self.most_rows, len(hidden))
        return hidden @ self.head

    def logprobs(self, token_ids: np.ndarray) -> np.ndarray:
        """By NumPy: what comes after each of the tokens [T, V]."""
        logits = self.hidden(token_ids).numpy().astype(np.float64) @ self.head.numpy().astype(np.float64)
        return (
            logits
            - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
            - logits.max(1, keepdims=True)
        )


def conversation(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    T = int(rng.integers(4, 60))
    supervised = rng.random(T) < 0.4
    supervised[0], supervised[-1] = False, True
    return rng.integers(0, V, T).astype(np.int32), supervised


def more(rng: np.random.Generator, supervised: np.ndarray, count: int) -> np.ndarray | None:
    """More ids to be asked about, so many for each supervised token."""
    return rng.integers(0, V, (int(supervised.sum()), count)).astype(np.int32) if count else None


def check(model: Model, answer: Any, token_ids: np.ndarray, supervised: np.ndarray, asked: Any = None) -> None:
    places = np.flatnonzero(supervised)
    logprobs_SV = model.logprobs(token_ids)[places - 1]
    assert answer.token_ids.tolist() == token_ids[places].tolist()
    assert answer.target_ids.tolist() == np.argsort(-logprobs_SV, axis=1)[:, :K].tolist()
    assert np.allclose(answer.target_logprobs, -np.sort(-logprobs_SV, axis=1)[:, :K], atol=1e-4)
    assert np.allclose(answer.token_logprobs, logprobs_SV[np.arange(len(places)), token_ids[places]], atol=1e-4)
    assert answer.draws.shape == (len(places), D)
    if answer.entropies is not None:
        assert np.allclose(answer.entropies, -(np.exp(logprobs_SV) * logprobs_SV).sum(axis=1), atol=1e-4)
    ids_SQ = np.frombuffer(asked.asked_ids if asked else b"", np.int32).reshape(len(places), -1)
    if ids_SQ.size:
        assert np.allclose(answer.asked_logprobs, np.take_along_axis(logprobs_SV, ids_SQ.astype(int), 1), atol=1e-4)
    else:
        assert answer.asked_logprobs is None


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_every_token_gets_its_own_in_any_batch(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations are read in pieces, beside others, from behind a cached beginning, and again after preemption."""
    monkeypatch.setattr(scores_in_engine, "CHUNK_VALUES", 7 * V)
    rng, chance, model = np.random.default_rng(0), random.Random(0), Model()
    worker = WORKERS[runner](model)
    todo = {f"r{i}": conversation(rng) for i in range(20)}
    asked = {
        name: request_of(f"name {name}", ids, supervised, i, 0.0, D, K, more(rng, supervised, i % 3), True)
        for i, (name, (ids, supervised)) in enumerate(todo.items())
    }
    waiting, running, parts = list(todo), dict[str, int](), dict[str, Part]()
    while waiting or running:
        while waiting and len(running) < 5:
            name = waiting.pop(0)
            running[name] = chance.randrange(0, int(np.flatnonzero(todo[name][1])[0]))  # from the cache
            worker.add(name, todo[name][0], asked[name])
        if chance.random() < 0.15:
            name = chance.choice([*running])
            running[name] = 0  # preempted: from the beginning
        read = {}
        for name in chance.sample([*running], chance.randint(1, len(running))):
            length = int(np.flatnonzero(todo[name][1])[-1])
            read[name] = (running[name], min(length, running[name] + chance.randint(1, 20)))
            running[name] = read[name][1]
        worker.step(read)
        for name in [name for name, (_, end) in read.items() if end == int(np.flatnonzero(todo[name][1])[-1])]:
            (part,) = worker.take([f"name {name}"])
            parts[name] = Part(*part)
            del running[name]
    for name, (ids, supervised) in todo.items():
        answer = scored_answer([parts[name]], asked[name])
        assert answer.entropies is not None
        check(model, answer, ids, supervised, asked[name])
    assert model.most_rows <= 7
    assert worker.take(["name r0"]) == [(b"",) * len(Part._fields)]  # forgotten


class V1:
    """As vLLM's V1 model runner calls (vllm/v1/worker/gpu_model_runner.py, `_get_prompt_logprobs_dict`)."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.runner = SimpleNamespace(
            requests={},
            input_batch=SimpleNamespace(req_id_to_index={}),
            query_start_loc=SimpleNamespace(np=np.zeros(0, np.int32)),
            model=model,
            model_config=SimpleNamespace(get_vocab_size=lambda: V),
            _get_prompt_logprobs_dict=lambda hidden, counts: {},
        )
        self.worker = begun(self.runner)
        self.take = self.worker.take_scores

    def add(self, name: str, ids: np.ndarray, asked: Any) -> None:
        params = SimpleNamespace(extra_args={SCORED: [*asked]})
        self.runner.requests[name] = SimpleNamespace(sampling_params=params, ids=ids, num_computed_tokens=0)

    def step(self, read: dict[str, tuple[int, int]]) -> None:
        counts = [end - start for start, end in read.values()]
        self.runner.input_batch.req_id_to_index = {name: i for i, name in enumerate(read)}
        self.runner.query_start_loc.np = np.concatenate([[0], np.cumsum(counts)])
        for name, (start, _) in read.items():
            self.runner.requests[name].num_computed_tokens = start
        self._after(
            joined(self.model, {n: self.runner.requests[n].ids for n in read}, read),
            dict(zip(read, counts, strict=True)),
        )

    def _after(self, hidden: torch.Tensor, counts: dict[str, int]) -> None:
        shuffled = list(counts)
        random.shuffle(shuffled)  # the scheduler's order is not the batch's
        self.runner._get_prompt_logprobs_dict(hidden, {name: counts[name] for name in shuffled})


class V2:
    """As vLLM's V2 model runner calls its `PromptLogprobsWorker`."""

    def __init__(self, model: Model) -> None:
        self.model, self.ids = model, dict[str, np.ndarray]()
        self.prompts = SimpleNamespace(
            compute_prompt_logprobs=lambda *_: {}, add_request=lambda *_: None, remove_request=lambda *_: None
        )
        config = SimpleNamespace(get_vocab_size=lambda: V)
        self.take = begun(SimpleNamespace(prompt_logprobs_worker=self.prompts, model_config=config)).take_scores

    def add(self, name: str, ids: np.ndarray, asked: Any) -> None:
        self.ids[name] = ids
        self.prompts.add_request(name, 0, SimpleNamespace(extra_args={SCORED: [*asked]}))

    def step(self, read: dict[str, tuple[int, int]]) -> None:
        counts = np.array([end - start for start, end in read.values()])
        batch = SimpleNamespace(
            req_ids=[*read],
            num_computed_prefill_tokens_np=np.array([start for start, _ in read.values()]),
            num_scheduled_tokens=counts,
            query_start_loc_np=np.concatenate([[0], np.cumsum(counts)]),
        )
        hidden = joined(self.model, {name: self.ids[name] for name in read}, read)
        self.prompts.compute_prompt_logprobs(self.model.compute_logits, hidden, batch, None, None, None)


WORKERS: dict[str, Any] = {"v1": V1, "v2": V2}


def begun(runner: Any) -> TakeScores:
    worker = TakeScores()
    worker.model_runner = runner  # type: ignore[attr-defined]
    worker.begin_scoring()
    return worker


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed import parallel_state

    monkeypatch.setattr(parallel_state, "get_tensor_model_parallel_rank", lambda: 0)


def joined(model: Model, ids: dict[str, np.ndarray], read: dict[str, tuple[int, int]]) -> torch.Tensor:
    """Hidden states of a step, with padding behind them as CUDA graphs have."""
    parts = [model.hidden(ids[name])[start:end] for name, (start, end) in read.items()]
    return torch.cat([*parts, torch.full((3, H), torch.nan)])


def test_other_requests_cost_nothing() -> None:
    model, scoring = Model(), Scoring(V, keeps=True)
    scoring.begin("theirs", None)
    scoring.begin("also theirs", {"other": 1})
    scoring.read([Span("theirs", 0, 0, 10), Span("unknown", 0, 0, 5)], torch.zeros(10, H), model.compute_logits)
    assert model.most_rows == 0


def test_only_supervised_places_get_logits() -> None:
    model, scoring = Model(), Scoring(V, keeps=True)
    ids = np.arange(50, dtype=np.int32)
    supervised = np.isin(np.arange(50), [20, 21, 49])
    asked = request_of("a", ids, supervised, 0, 0.0, D, K)
    scoring.begin("r", {SCORED: [*asked]})
    scoring.read([Span("r", 0, 0, 49)], model.hidden(ids)[:49], model.compute_logits)
    assert model.most_rows == 3
    check(model, scored_answer([Part(*scoring.take(["a"])[0])], asked), ids, supervised)


def test_a_token_that_was_not_read_is_missed() -> None:
    model, scoring = Model(), Scoring(V, keeps=True)
    ids, supervised = np.arange(50, dtype=np.int32), np.arange(50) > 9
    asked = request_of("a", ids, supervised, 0, 0.0, D, K)
    scoring.begin("r", {SCORED: [*asked]})
    scoring.read([Span("r", 20, 0, 29)], model.hidden(ids)[20:49], model.compute_logits)
    with pytest.raises(RuntimeError, match="no distribution of 11 of 40 tokens"):
        scored_answer([Part(*scoring.take(["a"])[0])], asked)


def test_a_request_that_comes_again_under_its_id_begins_anew() -> None:
    model, scoring = Model(), Scoring(V, keeps=True)
    ids, supervised = np.arange(20, dtype=np.int32), np.arange(20) > 9
    for name in ("given up", "again"):
        scoring.begin("r", {SCORED: [*request_of(name, ids, supervised, 0, 0.0, D, K)]})
        scoring.read([Span("r", 0, 0, 19)], model.hidden(ids)[:19], model.compute_logits)
    assert scoring.take(["given up"]) == [(b"",) * len(Part._fields)]
    assert scoring.take(["again"])[0][0] != b""


def test_draws_depend_on_seed_and_token_alone_and_follow_the_distribution() -> None:
    hidden, model = torch.randn(1, H, generator=torch.Generator().manual_seed(3)), Model()
    n, num_draws = 400, 64
    rows = [
        rows
        for _, _, rows in distributions(
            model.compute_logits,
            hidden.expand(n, H),
            torch.zeros(n, dtype=torch.int64),
            torch.zeros(n, 0, dtype=torch.int64),
            torch.full((n,), 5),
            torch.arange(n),
            V,
            K,
            num_draws,
        )
    ]
    draws = torch.cat([part.draws for part in rows]).numpy()
    p_V = torch.softmax(model.compute_logits(hidden)[0].double(), 0).numpy()
    expected_V, found_V = p_V * draws.size, np.bincount(draws.ravel(), minlength=V)
    common = expected_V > 5
    expected = [*expected_V[common], expected_V[~common].sum()]
    assert chisquare([*found_V[common], found_V[~common].sum()], expected).pvalue > 1e-3
    assert len({row.tobytes() for row in draws}) == n


def test_a_large_vocabulary_is_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 rows of 262,144 logits 256 are there at once."""
    vocab_size, seen = 262_144, []
    base_V = torch.randn(vocab_size, generator=torch.Generator().manual_seed(0))

    def logits_of(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return base_V.repeat(len(hidden), 1)

    N = 300
    tokens = torch.arange(N, dtype=torch.int64)
    chunks = distributions(logits_of, torch.zeros(N, 1), tokens, tokens[:, None], tokens, tokens, vocab_size, 64, 0)
    own = torch.cat([rows.token_logprobs for _, _, rows in chunks])
    assert seen == [256, 44]
    assert torch.allclose(own, torch.log_softmax(base_V.double(), 0)[:N].float(), atol=1e-4)


def test_every_token_has_the_same_chance_of_a_probe() -> None:
    for length in (10, 100, 500):
        found = [probed_of(seed, 0.1, length) for seed in range(5_000)]
        probed = [number for number in found if number >= 0]
        assert len(probed) / 5_000 == pytest.approx(0.1 * length / TOKENS_PER_PROBE, rel=0.3)
        assert max(probed) < length


def test_the_probe_is_the_whole_distribution_of_its_token() -> None:
    model, scoring = Model(), Scoring(V, keeps=True)
    ids, supervised = np.arange(40, dtype=np.int32), np.arange(40) > 9
    asked = request_of("a", ids, supervised, 1, 1000.0, 0, K)
    scoring.begin("r", {SCORED: [*asked]})
    for start in (0, 13, 26):
        scoring.read([Span("r", start, 0, 13)], model.hidden(ids)[start : start + 13], model.compute_logits)
    answer = scored_answer([Part(*scoring.take(["a"])[0])], asked)
    assert answer.probe is not None
    number, logprobs_V = answer.probe
    assert np.allclose(logprobs_V, model.logprobs(ids)[9 + number], atol=1e-4)
    assert answer.draws is None


def test_other_ranks_of_a_tensor_parallel_group_keep_nothing() -> None:
    model, scoring = Model(), Scoring(V, keeps=False)
    ids, supervised = np.arange(20, dtype=np.int32), np.arange(20) > 9
    asked = request_of("a", ids, supervised, 0, 0.0, D, K)
    scoring.begin("r", {SCORED: [*asked]})
    scoring.read([Span("r", 0, 0, 19)], model.hidden(ids)[:19], model.compute_logits)
    assert model.most_rows == 10  # all ranks make logits together
    other = Scoring(V, keeps=True)
    other.begin("r", {SCORED: [*asked]})
    other.read([Span("r", 0, 0, 19)], model.hidden(ids)[:19], model.compute_logits)
    parts = [Part(*taken.take(["a"])[0]) for taken in (scoring, other)]
    check(model, scored_answer(parts, asked), ids, supervised)


def test_the_cache_is_read_up_to_the_first_supervised_token() -> None:
    found: list[int] = []

    def get_computed_blocks(request: Any) -> Any:
        found.append(request.num_tokens - 1)
        return request.block_hashes

    class Scheduler:
        def __init__(self) -> None:
            self.kv_cache_manager = SimpleNamespace(get_computed_blocks=get_computed_blocks)

    class Scoring(scores_in_engine._ReadsSupervised, Scheduler):
        pass

    look_up = Scoring().kv_cache_manager.get_computed_blocks
    ids, supervised = np.arange(20, dtype=np.int32), np.arange(20) > 9
    asked = request_of("a", ids, supervised, 0, 0.0, D, K)
    params = SimpleNamespace(extra_args={SCORED: [*asked]})
    assert look_up(SimpleNamespace(num_tokens=19, sampling_params=params, block_hashes="x")) == "x"
    look_up(SimpleNamespace(num_tokens=19, sampling_params=SimpleNamespace(extra_args=None), block_hashes="x"))
    look_up(SimpleNamespace(num_tokens=19, sampling_params=None, block_hashes="x"))
    # Of vLLM's longest hit, num_tokens - 1: token 9, whose output predicts token 10, is read again.
    assert found == [9, 18, 18]


@pytest.mark.parametrize("supervised", [[False, False], [True, True]])
def test_a_question_about_nothing_is_refused(supervised: list[bool]) -> None:
    with pytest.raises(ValueError, match="at least one supervised token, and not the first"):
        request_of("a", np.array([1, 2], np.int32), np.array(supervised), 0, 0.0, D, K)
