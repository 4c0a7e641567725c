"""The teacher on vLLM: start an engine, ask it, end it without a trace."""

import asyncio
import atexit
import itertools
import json
import os
import shutil
import tempfile
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import Config, SamplingConfig, is_local_path
from stillhouse.stages.teacher import Answer, Capacity, Load, TeacherError
from stillhouse.stages.teacher.arrays import keep_arrays, to_answer
from stillhouse.stages.teacher.draws import (
    REQUEST,
    Request,
    num_engine_draws,
    num_top_k,
    probed_token,
    uses_draws,
    with_draws,
)
from stillhouse.stages.teacher.failures import log_failures, start_failure
from stillhouse.stages.teacher.outputs import silence, watch_outputs
from stillhouse.stages.teacher.plugin import ENGINE_MARK
from stillhouse.stages.teacher.scores import SCORED, Part, request_of, scored_answer

SHUTDOWN_TIMEOUT_S = 30.0
"""What vLLM's processes get to end by themselves; its own default of 5 s kills them on a busy machine."""

FIRST_PORT, PORTS_EACH = 20_000, 100
RACES = ("Address already in use", "EADDRINUSE", "SyntaxError")
"""In the reasons why an engine did not start that another one, starting beside it, is to blame for: a port taken, or
vLLM's compile cache read while it was written (compilation/backends.py 0.32 writes it in place). It is tried again."""

DRAWS_IN_ENGINE = "stillhouse.stages.teacher.draws_in_engine"
SCORES_IN_ENGINE = "stillhouse.stages.teacher.scores_in_engine"
"""Imported by the engine's workers, by name: this process need not have torch loaded."""


class VLLMTeacher:
    """vLLM's `AsyncLLM` (0.32), one engine with its processes.

    The log-probabilities stay the NumPy arrays that the engine sent (`arrays.keep_arrays`); on a vLLM of another
    series they come in vLLM's own flat lists, with a warning. `engine` is the `AsyncLLM`.
    """

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        os.environ.update(config.teacher.env)
        os.environ[ENGINE_MARK] = "1"
        if (port := first_port(os.environ.get("CUDA_VISIBLE_DEVICES", ""))) is not None:
            os.environ.setdefault("VLLM_PORT", str(port))
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
        self._sampling = config.sampling
        self._stop_token_ids = stop_token_ids
        self._top_k = num_top_k(config.targets)
        self._num_draws = num_engine_draws(config.targets)
        self._has_entropy = config.targets.has_entropy
        is_probed = uses_draws(config) or config.task == "score"
        self._probe_fraction = config.targets.probe_fraction if is_probed else 0.0
        self._scores = config.task == "score"
        self._beginning: asyncio.Future[Any] | None = None
        self._names = itertools.count()
        self._waiting: dict[str, asyncio.Future[list[Any]]] = {}
        self._fetching: asyncio.Task[None] | None = None
        self.engine = _start(config)
        self._end = weakref.finalize(self, _end, self.engine)
        # At exit `multiprocessing` waits for the engine's processes without a limit, maybe before finalisers run; what
        # is registered last runs first.
        self._end.atexit = False
        self._at_exit = partial(_shutdown, weakref.ref(self))
        atexit.register(self._at_exit)
        self.vocab_size = int(self.engine.model_config.get_vocab_size())
        keep_arrays(self.engine)
        self._pulse = watch_outputs(self.engine)

    @property
    def broken(self) -> bool:
        return bool(self.engine.errored)

    @property
    def last_token_at(self) -> float:
        return self._pulse.last_token_at

    @property
    def num_tokens(self) -> int:
        return self._pulse.num_tokens

    @property
    def load(self) -> Load:
        return self._pulse.load

    @property
    def capacity(self) -> Capacity:
        config = self.engine.vllm_config
        scheduler, blocks = config.scheduler_config, config.cache_config.num_gpu_blocks
        return Capacity(
            scheduler.max_num_seqs,
            scheduler.max_num_batched_tokens,
            None if blocks is None else blocks * config.cache_config.block_size,
        )

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        params = sampling_params(self._sampling, self._top_k, self._stop_token_ids, seed, max_tokens)
        probed = probed_token(seed, self._probe_fraction, max_tokens)
        asked = Request(str(next(self._names)), seed, probed, self._num_draws, self._has_entropy)
        is_asked = asked.num_draws > 0 or asked.probed >= 0 or asked.entropy
        if is_asked:
            params.extra_args = {REQUEST: tuple(asked)}
        final = await self._read(prompt_ids, params, request_id, f"a prompt of {len(prompt_ids)} tokens")
        if final is None:
            raise RuntimeError("vLLM ended a request without an output")  # as it does when it is told to stop
        completion = final.outputs[0]
        answer = to_answer(completion.token_ids, completion.logprobs, self._top_k, completion.finish_reason)
        return with_draws(answer, await self._fetched(asked.name), asked) if is_asked else answer

    async def score(
        self,
        token_ids: npt.NDArray[np.int32],
        supervised: npt.NDArray[np.bool_],
        request_id: str,
        seed: int,
        asked_ids: npt.NDArray[np.int32] | None = None,
    ) -> Answer:
        """As `Scorer.score`; of an engine that was started with `task: score`."""
        if self._beginning is None:
            self._beginning = asyncio.ensure_future(self.engine.collective_rpc("begin_scoring"))
        await asyncio.shield(self._beginning)
        asked = request_of(
            *(str(next(self._names)), token_ids, supervised, seed),
            *(self._probe_fraction, self._num_draws, self._top_k),
            asked_ids=asked_ids,
            entropy=self._has_entropy,
        )
        last = int(np.flatnonzero(supervised)[-1])  # is predicted by those before it
        params = scoring_params(self.engine.vllm_config.scheduler_config.scheduler_cls)
        params.extra_args = {SCORED: tuple(asked)}
        final = await self._read(token_ids[:last], params, request_id, f"{len(token_ids)} tokens")
        if final is None or final.outputs[0].finish_reason != "length":
            raise RuntimeError("vLLM ended a request without reading it")  # as it does when it is told to stop
        return scored_answer([Part(*part) for part in await self._fetched(asked.name)], asked)

    async def _read(self, ids: npt.NDArray[np.int32], params: Any, request_id: str, what: str) -> Any:
        """The only output of a request, None where vLLM was told to stop. Raises `TeacherError` where it refuses it."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import TokensPrompt

        final = None
        try:
            async for output in self.engine.generate(TokensPrompt(prompt_token_ids=ids.tolist()), params, request_id):
                final = output
        except VLLMClientError as error:  # vLLM's word for a request it will not take; not a ValueError in 0.32
            raise TeacherError(f"vLLM refuses {what} ({type(error).__name__})") from None
        return final

    async def _fetched(self, name: str) -> list[Any]:
        """What the workers kept for the request `name`, one entry per worker. Requests that end together share a call,
        because a call waits for the engine's step to end."""
        self._waiting[name] = future = asyncio.get_running_loop().create_future()
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        parts: list[Any] = await future
        return parts

    async def _fetch(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            try:
                take = "take_scores" if self._scores else "take_draws"
                by_worker = await self.engine.collective_rpc(take, args=(list(waiting),))
                for future, parts in zip(waiting.values(), zip(*by_worker, strict=True), strict=True):
                    if not future.done():
                        future.set_result(list(parts))
            except Exception as error:
                # Of any type: those who wait must hear of it.
                for future in waiting.values():
                    if not future.done():
                        future.set_exception(error)

    def shutdown(self) -> None:
        self._end()
        atexit.unregister(self._at_exit)


def first_port(gpus: str) -> int | None:
    """Where the engine on `gpus` (as in CUDA_VISIBLE_DEVICES) looks for free ports; None for an engine without one.

    vLLM takes a port that is free and binds it seconds later, and meanwhile an engine that starts beside it, or any
    connection that the machine opens, may take the same. Engines on one machine differ in their first GPU; below 32768
    Linux gives no ports to connections, and Ray's own are below 20000.
    """
    first = gpus.partition(",")[0]
    return FIRST_PORT + PORTS_EACH * int(first) if first.isdecimal() else None


def _start(config: Config) -> Any:
    """A running `AsyncLLM`. Raises `TeacherError` with vLLM's reason when it cannot start."""
    model = config.teacher.model
    if is_local_path(model) and not Path(model).is_dir():
        raise TeacherError(f"teacher.model: there is no folder {model!r}; write the folder of the teacher's weights")
    reason = ""
    for _ in range(2):
        engine, reason = _try_start(config)
        if engine is not None:
            return engine
        if not any(sign in reason for sign in RACES):
            break
    # Outside of `except`, so that no traceback keeps the half-built engine and its processes alive.
    raise TeacherError(
        f"teacher: vLLM cannot start {model!r} ({reason}); change the key of `teacher` or of `teacher.engine` or "
        "`teacher.env` that this is about"
    )


def _try_start(config: Config) -> tuple[Any, str]:
    """A running `AsyncLLM`, or None and vLLM's reason."""
    # Not `TemporaryDirectory`: its finaliser, made first, would put vLLM's own behind `multiprocessing`'s wait at exit.
    folder = tempfile.mkdtemp(prefix="stillhouse-")
    failures = Path(folder, "failures.jsonl")
    try:
        return _start_logged(config, failures), ""
    except TeacherError:
        raise
    except Exception as error:  # of any type: nothing runs yet that could be in doubt
        reason = start_failure(error)
        if failures.exists():
            # The first process to fail is the cause of what the others say.
            reason = json.loads(failures.read_text(encoding="utf-8").splitlines()[0])
        return None, reason
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start_logged(config: Config, failures: Path) -> Any:
    """A running `AsyncLLM` whose processes log their exceptions to `failures` too."""
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    top_k = num_top_k(config.targets)
    engine = dict(config.teacher.engine)
    scores = config.task == "score"
    if scores:
        engine["worker_extension_cls"] = f"{SCORES_IN_ENGINE}.TakeScores"
    elif uses_draws(config):
        engine["worker_extension_cls"] = f"{DRAWS_IN_ENGINE}.TakeDraws"
    # The scheduler counts only for an engine that logs: it may, to nobody unless the user wants vLLM's own statistics.
    is_silent = engine.pop("disable_log_stats", True)
    engine.setdefault("use_tqdm_on_load", False)
    if current_platform.is_cpu() and not scores:
        # vLLM's CPU sampler fails on a seeded request whose prompt was split ("CPU Generator does not use offset").
        engine.setdefault("enable_chunked_prefill", False)
        engine.setdefault("max_num_batched_tokens", max(2048, config.teacher.max_model_len))
    args = AsyncEngineArgs(
        model=config.teacher.model,
        revision=config.teacher.revision,
        dtype=config.teacher.dtype,
        max_model_len=config.teacher.max_model_len,
        # vLLM's own word for the whole vocabulary, -1, would return it unsorted and without ids.
        max_logprobs=top_k,
        logprobs_mode="raw_logprobs",
        seed=config.sampling.seed,
        **engine,
    )
    vllm_config = args.create_engine_config()
    vocab_size = int(vllm_config.model_config.get_vocab_size())
    if top_k > vocab_size:
        raise TeacherError(f"targets.top_k: {top_k} exceeds the teacher's vocabulary of {vocab_size}; lower it")
    if scores and vllm_config.scheduler_config.scheduler_cls is None:
        kind = "AsyncScoringScheduler" if vllm_config.scheduler_config.async_scheduling else "ScoringScheduler"
        vllm_config.scheduler_config.scheduler_cls = f"{SCORES_IN_ENGINE}.{kind}"
    elif uses_draws(config) and not scores:
        runner = "V2" if vllm_config.use_v2_model_runner else "V1"
        vllm_config.model_config.logits_processors = [f"{DRAWS_IN_ENGINE}:Draws{runner}"]
    log_failures(vllm_config, failures)
    started = AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=False)
    if is_silent:
        silence(started)
    return started


def _shutdown(teacher: "weakref.ref[VLLMTeacher]") -> None:
    if (alive := teacher()) is not None:
        alive.shutdown()


def _end(engine: Any) -> None:
    """End an engine's processes. A function, so that the finaliser that calls it keeps no teacher alive."""
    engine.shutdown(timeout=SHUTDOWN_TIMEOUT_S)
    # `AsyncLLM.__del__` shuts down again, and fails when that is at the interpreter's end and its module is gone.
    engine.shutdown = _nothing


def _nothing() -> None:
    pass


def sampling_params(sampling: SamplingConfig, top_k: int, stop_token_ids: list[int], seed: int, max_tokens: int) -> Any:
    """vLLM's `SamplingParams` for one answer."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=max_tokens,
        stop_token_ids=sorted({*stop_token_ids, *sampling.stop_token_ids}),
        seed=seed,
        logprobs=top_k,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params(scheduler_cls: object) -> Any:
    """vLLM's `SamplingParams` for reading one conversation: one token is written, by no random number. Under a
    scheduler that is not ours nothing is taken from the prefix cache."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        skip_reading_prefix_cache=not str(scheduler_cls).startswith(SCORES_IN_ENGINE),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
