"""Exact draws from the teacher's full distribution, and its entropy, taken inside vLLM's workers, where the logits are.

This module runs in the engine's processes: a logits processor for each of vLLM's two model runners (`DrawsV1`,
`DrawsV2`), which leaves the logits as they are, and `TakeDraws`, by which the driver fetches an answer's draws when it
has ended. An answer may also be probed: the whole distribution of one of its tokens is kept, to measure what storing
costs. The recipe is Gemma 3's (256 draws per token) and Sparse Logit Sampling's (arXiv 2503.16870). vLLM 0.32.

A draw is a pure function of the request's seed, the token's position and the logits: it does not depend on the batch,
and a position that the engine computes twice (after preemption, or for a prompt that came in chunks) is overwritten
with draws from the same random numbers.

Shape legend: R rows of a step (one per sequence), V vocabulary, B blocks of it, D draws per token, S tokens written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from stillhouse.stages.teacher.draws import REQUEST, Request

if TYPE_CHECKING:
    from vllm.v1.sample.logits_processor import BatchUpdate

BLOCK = 64
"""Tokens per block of the vocabulary: a draw picks a block, then a token of it."""
CHUNK_VALUES = 1 << 24
"""Logits worked on at once: bounds what drawing adds to the device's memory to about 200 MB at any batch size."""
STEPS_ON_DEVICE = 32
"""Steps whose draws stay on the device before they are copied to the host together."""

# splitmix64 (Steele, Lea, Flood 2014), in two's complement.
_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def uniforms(seeds_R: torch.Tensor, positions_R: torch.Tensor, count: int) -> torch.Tensor:
    """Random numbers [R, count], float32 in [0, 1), multiples of 2^-24. Number j of row r depends on its seed, its
    position and j only (`seeds_R`, `positions_R` int64; count up to 2^20)."""
    counter = (positions_R[:, None] << 20) + torch.arange(1, count + 1, device=seeds_R.device)
    x = seeds_R[:, None] + counter * _GAMMA
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return _shifted(x ^ _shifted(x, 31), 40).to(torch.float32) * 2**-24


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x >> bits without its sign: torch has no unsigned shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def draw(logits_RV: torch.Tensor, seeds_R: torch.Tensor, positions_R: torch.Tensor, num_draws: int) -> torch.Tensor:
    """`num_draws` independent draws [R, D] int32, with replacement, from softmax(logits) of each row.

    A block of the vocabulary is drawn by its mass, then a token within it, each with a random number of its own: so a
    token's probability is right to float32's relative precision even where the mass before it is large. Probabilities
    below 2^-24 are not resolved, as in any softmax in float32.
    """
    R, V = logits_RV.shape
    if R == 1:
        # CUDA sums a single row in an order that changes from run to run and need not be monotonic; of two rows, each
        # by a tree that is.
        return draw(logits_RV.expand(2, V), seeds_R.expand(2), positions_R.expand(2), num_draws)[:1]
    step = max(2, CHUNK_VALUES // V)
    if step < R:
        parts = zip(logits_RV.split(step), seeds_R.split(step), positions_R.split(step), strict=True)
        return torch.cat([draw(*part, num_draws) for part in parts])
    if V % BLOCK:
        logits_RV = torch.nn.functional.pad(logits_RV, (0, BLOCK - V % BLOCK), value=-torch.inf)
    weights_RV = (logits_RV - logits_RV.amax(dim=1, keepdim=True)).exp_()
    weights_RBT = weights_RV.view(R, -1, BLOCK)
    mass_RB = weights_RBT.sum(dim=2).cumsum(dim=1)
    random = uniforms(seeds_R, positions_R, 2 * num_draws)
    block_RD = _picked(mass_RB, random[:, 0::2])
    rows = torch.arange(R, device=logits_RV.device)[:, None]
    within_RDT = weights_RBT[rows, block_RD].cumsum(dim=2)
    token_RD = _picked(within_RDT, random[:, 1::2, None])[..., 0]
    return (block_RD * BLOCK + token_RD).to(torch.int32)


def _picked(cumulative: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """The first index along the last dimension whose cumulative mass exceeds `random` times the whole. Rounding never
    makes it one without mass."""
    whole = cumulative[..., -1:]
    target = torch.minimum(random * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, target.contiguous(), right=True)


def entropies(logits_RV: torch.Tensor) -> torch.Tensor:
    """The entropy [R] float32, nats, of softmax(logits) of each row; two copies of `CHUNK_VALUES` logits are made."""
    parts = []
    for part_RV in logits_RV.split(max(1, CHUNK_VALUES // logits_RV.shape[1])):
        shifted_RV = part_RV - part_RV.amax(dim=1, keepdim=True)
        weights_RV = shifted_RV.exp()
        mass_R = weights_RV.sum(dim=1)
        # Of a token without a chance -inf times 0 would be NaN; e to -200 is 0 too.
        weighed_R = shifted_RV.clamp_(min=-200.0).mul_(weights_RV).sum(dim=1)
        parts.append(mass_R.log() - weighed_R / mass_R)
    return torch.cat(parts).clamp_(min=0.0)


@dataclass
class Step:
    """What one step drew, still on the device."""

    draws: torch.Tensor | None  # [R, D]
    entropies: torch.Tensor | None  # [R]
    requests: list[Request | None]  # per row; None: not ours
    positions: list[int] | torch.Tensor  # per row: the token's number within the answer; negative: part of the prompt


class DrawBuffer:
    """The draws and probed distributions of the answers under way in this process."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._rows: dict[str, dict[int, npt.NDArray[np.int32]]] = {}
        self._entropies: dict[str, dict[int, float]] = {}
        self._probes: dict[str, bytes] = {}

    def add(self, step: Step) -> None:
        self._steps.append(step)
        if len(self._steps) >= STEPS_ON_DEVICE:
            self._copy_to_host()

    def add_probe(self, name: str, logits_V: torch.Tensor) -> None:
        self._probes[name] = logits_V.float().cpu().numpy().tobytes()

    def _copy_to_host(self) -> None:
        for step in self._steps:
            draws = None if step.draws is None else step.draws.cpu().numpy()
            entropies = None if step.entropies is None else step.entropies.tolist()
            positions = step.positions.tolist() if isinstance(step.positions, torch.Tensor) else step.positions
            for row, (request, position) in enumerate(zip(step.requests, positions, strict=True)):
                if request is None or position < 0:
                    continue
                if request.num_draws and draws is not None:
                    self._rows.setdefault(request.name, {})[position] = draws[row, : request.num_draws]
                if request.entropy and entropies is not None:
                    self._entropies.setdefault(request.name, {})[position] = entropies[row]
        self._steps.clear()

    def take(self, name: str) -> tuple[bytes, bytes, bytes]:
        """Of an answer the draws, int32 [n, D] with rows of -1 where this process saw none, the logits of its probed
        token, float32 [V], and the entropies, float32 [n] with NaN where it saw none; as bytes, empty where there are
        none. The buffer forgets them."""
        self._copy_to_host()
        probe, rows, found = self._probes.pop(name, b""), self._rows.pop(name, {}), self._entropies.pop(name, {})
        draws = np.full((max(rows, default=-1) + 1, len(next(iter(rows.values()), ()))), -1, dtype=np.int32)
        for position, row in rows.items():
            draws[position] = row
        entropies = np.full(max(found, default=-1) + 1, np.nan, dtype=np.float32)
        entropies[[*found]] = [*found.values()]
        return draws.tobytes(), probe, entropies.tobytes()


BUFFER = DrawBuffer()


def wanted(requests: Sequence[Request]) -> tuple[int, bool]:
    """The most draws that one of them asks for, and whether one asks for entropies."""
    return max(request.num_draws for request in requests), any(request.entropy for request in requests)


class TakeDraws:
    """vLLM's `worker_extension_cls`: its methods become the worker's, for `collective_rpc`."""

    def take_draws(self, names: Sequence[str]) -> list[tuple[bytes, bytes, bytes]]:
        """`DrawBuffer.take` for each of `names`."""
        return [BUFFER.take(name) for name in names]


class DrawsV1(LogitsProcessorV1):  # type: ignore[misc]
    """For the V1 model runner (vllm/v1/sample/logits_processor/interface.py): sees float32 logits before penalties and
    temperature."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        # By row, with the output ids: vLLM's own list, which grows.
        self._requests: dict[int, tuple[Request, list[int]]] = {}
        self._seeds: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None

    def is_argmax_invariant(self) -> bool:
        return False  # it is, but vLLM skips such processors for greedy requests, and runs them after temperature

    def update_state(self, batch_update: "BatchUpdate | None") -> None:
        if batch_update is None:
            return
        from vllm.v1.sample.logits_processor import MoveDirectionality

        for row in batch_update.removed:
            self._requests.pop(row, None)
        for row, params, _, output_ids in batch_update.added:
            self._requests.pop(row, None)
            if params is not None and params.extra_args and REQUEST in params.extra_args:
                self._requests[row] = (Request(*params.extra_args[REQUEST]), output_ids)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._requests.pop(source, None), self._requests.pop(target, None)
            if moved is not None:
                self._requests[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._requests[source] = replaced
        self._seeds = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._requests:
            return logits
        if self._seeds is None:
            self._requests = dict(sorted(self._requests.items()))
            seeds = [request.seed for request, _ in self._requests.values()]
            self._seeds = async_tensor_h2d(seeds, self._device, torch.int64)
            rows = list(self._requests)
            is_all = rows == list(range(len(logits)))
            self._rows = None if is_all else async_tensor_h2d(rows, self._device, torch.int64)
        requests = [request for request, _ in self._requests.values()]
        # vLLM appends a placeholder where it has not yet copied a token: the length is right.
        positions = [len(output_ids) for _, output_ids in self._requests.values()]
        for row, request, position in zip(self._requests, requests, positions, strict=True):
            if position == request.probed:
                BUFFER.add_probe(request.name, logits[row])
        num_draws, has_entropy = wanted(requests)
        if num_draws or has_entropy:
            mine = logits if self._rows is None else logits[self._rows]
            draws = None
            if num_draws:
                # From pinned memory: a copy that waits would hold up every step until the forward pass before it has
                # ended.
                positions_R = async_tensor_h2d(positions, self._device, torch.int64)
                draws = draw(mine, self._seeds, positions_R, num_draws)
            BUFFER.add(Step(draws, entropies(mine) if has_entropy else None, [*requests], positions))
        return logits


class DrawsV2(LogitsProcessorV2):  # type: ignore[misc]
    """For the V2 model runner (vllm/v1/worker/gpu/sample/logits_processor/interface.py): sees float32 logits before
    temperature and after penalties, which is why `schemas.config` refuses penalties with draws."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self._states = req_states
        self._requests: list[Request | None] = [None] * req_states.max_num_reqs  # by slot
        self._seeds = torch.zeros(req_states.max_num_reqs, dtype=torch.int64)
        self._seeds_on_device = self._seeds.to(req_states.device)
        self._changed = False

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        self._requests[req_idx] = None
        if not sampling_params.extra_args or REQUEST not in sampling_params.extra_args:
            return False
        self._requests[req_idx] = request = Request(*sampling_params.extra_args[REQUEST])
        self._seeds[req_idx] = request.seed
        self._changed = True
        return True

    def apply_staged_writes(self) -> None:
        if self._changed:
            # Copies first: the next request may be written while the device still reads.
            self._seeds_on_device = async_tensor_h2d(self._seeds, self._states.device)
            self._changed = False

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        requests = [self._requests[slot] for slot in ctx.idx_mapping_np]
        mine = [request for request in requests if request is not None]
        if not mine:
            return logits
        if len(logits) != len(requests):
            raise RuntimeError(
                f"draws: {len(logits)} rows of logits for {len(requests)} requests; speculative decoding cannot be "
                "combined with targets.method sampled"
            )
        prompt_len = self._states.prompt_len
        # Without speculation the bound is exact: how many tokens the model has seen. CUDA graphs pad the batch, and
        # with it this array.
        num_written = ctx.seq_lens_upper_bound_np[: len(requests)] - prompt_len.np[ctx.idx_mapping_np]
        for row, request in enumerate(requests):
            if request is not None and num_written[row] == request.probed:
                BUFFER.add_probe(request.name, logits[row])
        num_draws, has_entropy = wanted(mine)
        if num_draws or has_entropy:
            slots = ctx.expanded_idx_mapping.long()
            # Row r predicts what comes after the token at its position.
            positions = ctx.pos.long() + 1 - prompt_len.gpu[slots].long()
            draws = draw(logits, self._seeds_on_device[slots], positions, num_draws) if num_draws else None
            BUFFER.add(Step(draws, entropies(logits) if has_entropy else None, requests, positions))
        return logits
