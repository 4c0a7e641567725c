"""Distributions behind given tokens, taken inside vLLM's workers while these read a prompt.

This module runs in the engine's processes. The conversation is the prompt of a request that writes one token, which
nobody reads. After each step, `Scoring` takes the hidden states of the supervised places (no others cost an output
layer), makes logits of `CHUNK_VALUES` at a time, and keeps of each row the most probable tokens, the given token's
log-probability and draws; `TakeScores` hands them to the driver when the request has ended. vLLM 0.32.

vLLM's own `prompt_logprobs` makes logits of every place of a prompt, of a whole step at once (V1 runner), and turns
prefix caching off.

Shape legend: T tokens of a step, H hidden size, N supervised places of a step, R rows worked on at once, V vocabulary,
K targets kept per token, D draws per token, Q more ids asked about per token.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from stillhouse.stages.teacher.draws_in_engine import draw, entropies
from stillhouse.stages.teacher.scores import SCORED, Part, Scored

CHUNK_VALUES = 1 << 26
"""Logits worked on at once: 256 rows of a vocabulary of 262,144. In bfloat16 these are 128 MiB, and their
log-probabilities in float32 256 MiB; drawing adds 200 MB."""


class Rows(NamedTuple):
    """What is kept of R rows, on the device."""

    target_ids: torch.Tensor  # [R, K] int32, most probable first
    target_logprobs: torch.Tensor  # [R, K] float32, nats
    token_logprobs: torch.Tensor  # [R] float32, nats
    draws: torch.Tensor  # [R, D] int32
    asked_logprobs: torch.Tensor  # [R, Q] float32, nats
    entropies: torch.Tensor  # [R, 1] float32, nats; or [R, 0]


def distributions(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    hidden_NH: torch.Tensor,
    tokens_N: torch.Tensor,
    asked_NQ: torch.Tensor,
    seeds_N: torch.Tensor,
    numbers_N: torch.Tensor,
    vocab_size: int,
    top_k: int,
    num_draws: int,
    has_entropy: bool = False,
) -> Iterator[tuple[slice, torch.Tensor, Rows]]:
    """Which rows these are, their log-probabilities [R, V] (gone with the next ones) and what is kept of them.

    `tokens_N` are the tokens of which the rows are to tell the probability, `asked_NQ` more of them; `numbers_N` their
    places among the supervised tokens of their conversation, by which with `seeds_N` they are drawn for."""
    step = max(1, CHUNK_VALUES // vocab_size)
    for start in range(0, len(hidden_NH), step):
        part = slice(start, start + step)
        # As vLLM's own sampler makes them of rows that it writes.
        logprobs_RV = torch.log_softmax(logits_of(hidden_NH[part]), dim=1, dtype=torch.float32)
        top_RK = torch.topk(logprobs_RV, top_k, dim=1)
        own_R = logprobs_RV.gather(1, tokens_N[part, None])[:, 0]
        asked_RQ = logprobs_RV.gather(1, asked_NQ[part])
        if num_draws:
            draws_RD = draw(logprobs_RV, seeds_N[part], numbers_N[part], num_draws)
        else:
            draws_RD = torch.empty((len(logprobs_RV), 0), dtype=torch.int32)
        entropies_RE = entropies(logprobs_RV)[:, None] if has_entropy else torch.empty((len(logprobs_RV), 0))
        ids_RK = top_RK.indices.to(torch.int32)
        yield part, logprobs_RV, Rows(ids_RK, top_RK.values, own_R, draws_RD, asked_RQ, entropies_RE)
        del logprobs_RV  # before there are others


class Span(NamedTuple):
    """Which tokens of a request a step has read."""

    request_id: str
    first: int  # place in the conversation
    offset: int  # of that one in the step's hidden states
    num_tokens: int


NOTHING = Part(*[b""] * len(Part._fields))


class _UnderWay:
    """A conversation that is being read."""

    def __init__(self, request_id: str, asked: Scored) -> None:
        self.request_id, self.asked = request_id, asked
        self.rows = np.frombuffer(asked.rows, np.int32)
        self.tokens = np.frombuffer(asked.tokens, np.int32)
        self.asked_SQ = np.frombuffer(asked.asked_ids, np.int32).reshape(len(self.tokens), -1)
        self.kept: list[tuple[npt.NDArray[np.int32], Rows]] = []  # numbers of supervised tokens, and what is theirs
        self.probe = b""

    def part(self) -> Part:
        """Of a token that came twice the last counts, as in an assignment to NumPy's places."""
        if not self.kept:
            return NOTHING
        numbers = np.concatenate([numbers for numbers, _ in self.kept]).tobytes()
        ids, logprobs, own, draws, asked, told = (
            np.concatenate([rows[i].cpu().numpy() for _, rows in self.kept]).tobytes() for i in range(len(Rows._fields))
        )
        return Part(numbers, ids, logprobs, own, draws, asked, told, self.probe)


class Scoring:
    """The conversations that this process reads, of a run whose targets are all alike (`top_k`, `num_draws`)."""

    def __init__(self, vocab_size: int, keeps: bool) -> None:
        """`keeps`: the other processes of a tensor-parallel group compute the same, so one of them keeps it."""
        self._vocab_size, self._keeps = vocab_size, keeps
        self._by_request: dict[str, _UnderWay] = {}
        self._by_name: dict[str, _UnderWay] = {}

    def begin(self, request_id: str, extra_args: dict[str, Any] | None) -> None:
        """Follow a request of ours; one that is known already goes on."""
        if extra_args is None or SCORED not in extra_args:
            return
        asked, known = Scored(*extra_args[SCORED]), self._by_request.get(request_id)
        if known is not None and known.asked.name == asked.name:
            return
        if known is not None:  # of that id, and given up
            self._by_name.pop(known.asked.name, None)
        self._by_request[request_id] = self._by_name[asked.name] = _UnderWay(request_id, asked)

    def read(
        self,
        spans: Iterable[Span],
        hidden_TH: torch.Tensor,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Keeps what is asked about the places that a step has read. Rows of all requests are worked on together."""
        found: list[tuple[_UnderWay, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        for span in spans:
            under_way = self._by_request.get(span.request_id)
            if under_way is None:
                continue
            low, high = np.searchsorted(under_way.rows, [span.first, span.first + span.num_tokens])
            if low < high:
                numbers = np.arange(low, high)
                places = under_way.rows[low:high].astype(np.int64) - span.first + span.offset
                found.append((under_way, numbers, places))
        if not found:
            return
        device = hidden_TH.device
        asked = found[0][0].asked
        owner_N = np.repeat(np.arange(len(found)), [len(numbers) for _, numbers, _ in found])
        number_N = np.concatenate([numbers for _, numbers, _ in found])
        place_N = np.concatenate([places for _, _, places in found])
        token_N = np.concatenate([under_way.tokens[numbers] for under_way, numbers, _ in found])
        # Rows of one step may ask about more or fewer ids: those that a row does not ask about are ids 0, and cut off.
        asked_NQ = np.zeros((len(token_N), max(one.asked_SQ.shape[1] for one, _, _ in found)), np.int64)
        for owner, (under_way, numbers, _) in enumerate(found):
            asked_NQ[owner_N == owner, : under_way.asked_SQ.shape[1]] = under_way.asked_SQ[numbers]
        seed_N = np.array([under_way.asked.seed for under_way, _, _ in found], np.int64)[owner_N]
        place, token, seed, number = (
            async_tensor_h2d(values.tolist(), device, torch.int64) for values in (place_N, token_N, seed_N, number_N)
        )
        more = async_tensor_h2d(asked_NQ, device, torch.int64)
        chunks = distributions(
            *(logits_of, hidden_TH[place], token, more, seed, number),
            *(self._vocab_size, asked.top_k, asked.num_draws, asked.entropy),
        )
        for part, logprobs_RV, rows in chunks:
            if self._keeps:
                self._keep([under_way for under_way, _, _ in found], owner_N[part], number_N[part], logprobs_RV, rows)
            del logprobs_RV

    def _keep(
        self,
        owners: Sequence[_UnderWay],
        owner_R: npt.NDArray[np.int64],
        number_R: npt.NDArray[np.int64],
        logprobs_RV: torch.Tensor,
        rows: Rows,
    ) -> None:
        """Give rows, which are in the order of their owners, to these."""
        for owner in np.unique(owner_R).tolist():
            low, high = np.searchsorted(owner_R, [owner, owner + 1])
            under_way, numbers = owners[owner], number_R[low:high]
            mine = Rows(*(values[low:high] for values in rows))
            mine = mine._replace(asked_logprobs=mine.asked_logprobs[:, : under_way.asked_SQ.shape[1]])
            under_way.kept.append((numbers.astype(np.int32), mine))
            probed = under_way.asked.probed
            if probed >= 0 and numbers[0] <= probed <= numbers[-1]:
                under_way.probe = logprobs_RV[low + probed - int(numbers[0])].cpu().numpy().tobytes()

    def take(self, names: Sequence[str]) -> list[tuple[bytes, ...]]:
        """A `Part`, as a plain tuple, for each of `names`, which are then forgotten."""
        parts = []
        for name in names:
            under_way = self._by_name.pop(name, None)
            if under_way is not None:
                self._by_request.pop(under_way.request_id, None)
            parts.append(tuple(under_way.part()) if under_way is not None else tuple(NOTHING))
        return parts


class TakeScores:
    """vLLM's `worker_extension_cls`: its methods become the worker's, for `collective_rpc`."""

    def begin_scoring(self) -> None:
        """Has the worker's model runner score from now on. To be called before the first request."""
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        runner = self.model_runner  # type: ignore[attr-defined]
        scoring = Scoring(int(runner.model_config.get_vocab_size()), get_tensor_model_parallel_rank() == 0)
        self.scoring = scoring
        if hasattr(runner, "prompt_logprobs_worker"):
            if runner.prompt_logprobs_worker is not None:  # None but on the last rank of a pipeline
                _score_v2(runner.prompt_logprobs_worker, scoring)
        else:
            _score_v1(runner, scoring)

    def take_scores(self, names: Sequence[str]) -> list[tuple[bytes, ...]]:
        """`Scoring.take`."""
        return self.scoring.take(names)


def _score_v1(runner: Any, scoring: Scoring) -> None:
    """On the V1 model runner (vllm/v1/worker/gpu_model_runner.py), after each step: where vLLM itself looks at hidden
    states for `prompt_logprobs`."""
    before = runner._get_prompt_logprobs_dict

    def after_step(hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
        spans = []
        for request_id, count in num_scheduled_tokens.items():
            request = runner.requests[request_id]
            if request.sampling_params is not None:
                scoring.begin(request_id, request.sampling_params.extra_args)
            index = runner.input_batch.req_id_to_index[request_id]
            offset = int(runner.query_start_loc.np[index])
            spans.append(Span(request_id, request.num_computed_tokens, offset, count))
        scoring.read(spans, hidden_states, runner.model.compute_logits)
        return before(hidden_states, num_scheduled_tokens)

    runner._get_prompt_logprobs_dict = after_step


def _score_v2(worker: Any, scoring: Scoring) -> None:
    """On the V2 model runner's `PromptLogprobsWorker` (vllm/v1/worker/gpu/sample/prompt_logprob.py)."""
    compute, add = worker.compute_prompt_logprobs, worker.add_request

    def add_request(req_id: str, req_idx: int, sampling_params: Any) -> None:
        scoring.begin(req_id, sampling_params.extra_args)
        add(req_id, req_idx, sampling_params)

    def compute_prompt_logprobs(
        logits_fn: Callable[[torch.Tensor], torch.Tensor], hidden_states: torch.Tensor, input_batch: Any, *rest: Any
    ) -> Any:
        spans = [
            Span(
                request_id,
                int(input_batch.num_computed_prefill_tokens_np[i]),
                int(input_batch.query_start_loc_np[i]),
                int(input_batch.num_scheduled_tokens[i]),
            )
            for i, request_id in enumerate(input_batch.req_ids)
        ]
        scoring.read(spans, hidden_states, logits_fn)
        return compute(logits_fn, hidden_states, input_batch, *rest)

    worker.add_request = add_request
    worker.compute_prompt_logprobs = compute_prompt_logprobs


class _Until:
    """A request that ends early, for who looks up what of it is cached."""

    def __init__(self, request: Any, num_tokens: int) -> None:
        self._request, self.num_tokens = request, num_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class _ReadsSupervised:
    """A scheduler that takes nothing from the prefix cache of a conversation's supervised tokens and what follows: of
    tokens that are not read again nothing could be told."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        manager = self.kv_cache_manager  # type: ignore[attr-defined]
        look_up = manager.get_computed_blocks

        def get_computed_blocks(request: Any) -> Any:
            params = request.sampling_params
            asked = None if params is None or not params.extra_args else params.extra_args.get(SCORED)
            if asked is None:
                return look_up(request)
            # vLLM always reads a request's last token: here the one before the first supervised token.
            first = int(np.frombuffer(Scored(*asked).rows, np.int32)[0])
            return look_up(_Until(request, first + 1))

        manager.get_computed_blocks = get_computed_blocks


class ScoringScheduler(_ReadsSupervised, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler for conversations that are scored."""


class AsyncScoringScheduler(_ReadsSupervised, AsyncScheduler):  # type: ignore[misc]
    """The same, where vLLM schedules a step ahead."""
