"""The teacher: a language model that continues token ids and tells its distribution. The only `import vllm`.

Shape legend: S tokens written, V vocabulary, K targets kept per token, W = K + 1 (the token written, then the top K in
order), D draws per token.
"""

import asyncio
import atexit
import contextlib
import importlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
import weakref
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from stillhouse.schemas.config import Config, SamplingConfig, TargetsConfig, is_local_path

VLLM_SERIES = "0.32."
"""Releases of vLLM whose output processing `keep_arrays` was read against."""

SHUTDOWN_TIMEOUT_S = 30.0
"""What vLLM's processes get to end by themselves; its own default of 5 s kills them on a busy machine."""

ENGINE_MARK = "STILLHOUSE_ENGINE"
"""Environment variable by which a process of vLLM knows that a `VLLMTeacher` started it."""

REQUEST = "stillhouse"
"""Key of a request's `extra_args` that holds what `stages.draws.Request` has."""

logger = logging.getLogger("stillhouse")


@dataclass(frozen=True)
class Answer:
    """What the teacher wrote and the distribution behind every token of it.

    Row s of `target_ids` and `target_logprobs` is the distribution that token s was drawn from, before any sampling
    temperature or penalty. A stop token that ended the answer is the last token.
    """

    token_ids: npt.NDArray[np.int32]  # [S]
    target_ids: npt.NDArray[np.int32]  # [S, K], most probable first
    target_logprobs: npt.NDArray[np.float32]  # [S, K], nats
    token_logprobs: npt.NDArray[np.float32]  # [S], nats
    finish_reason: str  # stop | length
    draws: npt.NDArray[np.int32] | None = None  # [S, D] independent draws from the whole distribution
    probe: tuple[int, npt.NDArray[np.float32]] | None = None  # a token's number and its whole distribution [V], nats


class TeacherError(RuntimeError):
    """A teacher that cannot start, or one request that it refuses."""


class Teacher(Protocol):
    """Continues prompts; many calls of `answer` run at once."""

    vocab_size: int

    @property
    def broken(self) -> bool:
        """Whether it has failed for good, so that no other prompt can be answered either."""
        ...

    @property
    def last_token_at(self) -> float:
        """`time.monotonic()` when the newest token of any answer came; 0 where that is not known."""
        ...

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        """The continuation of `prompt_ids` [T]. Raises `TeacherError` when this one prompt cannot be answered."""
        ...

    def shutdown(self) -> None:
        """Ends everything the teacher started."""
        ...


def load_teacher(config: Config, stop_token_ids: list[int]) -> Teacher:
    """The teacher named by `teacher.backend`, called with (config, stop_token_ids)."""
    module, _, name = config.teacher.backend.partition(":")
    try:
        backend = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise TeacherError(
            f"teacher.backend: {config.teacher.backend!r} cannot be imported ({error}); write module:class"
        ) from None
    teacher: Teacher = backend(config, stop_token_ids)
    return teacher


class VLLMTeacher:
    """vLLM's `AsyncLLM` (0.32), one engine with its processes.

    The log-probabilities stay the NumPy arrays that the engine sent (`keep_arrays`); on a vLLM that this was not read
    against, they come in vLLM's own flat lists, with a warning. `engine` is the `AsyncLLM`.
    """

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        os.environ.update(config.teacher.env)
        os.environ[ENGINE_MARK] = "1"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
        self._sampling = config.sampling
        self._stop_token_ids = stop_token_ids
        self._top_k = num_top_k(config.targets)
        self._num_draws = num_engine_draws(config.targets)
        self._probe_fraction = config.targets.probe_fraction if _uses_draws(config) else 0.0
        self._names = itertools.count()
        self._waiting: dict[str, asyncio.Future[list[Any]]] = {}
        self._fetching: asyncio.Task[None] | None = None
        self.engine = _start(config)
        self._end = weakref.finalize(self, _end, self.engine)
        # At exit `multiprocessing` waits for the engine's processes without end, maybe before finalisers have their
        # turn; what is registered last runs first.
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
        return self._pulse.at

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import TokensPrompt

        final = None
        params = sampling_params(self._sampling, self._top_k, self._stop_token_ids, seed, max_tokens)
        probed = probed_token(seed, self._probe_fraction, max_tokens)
        name = str(next(self._names)) if self._num_draws or probed >= 0 else None
        if name is not None:
            params.extra_args = {REQUEST: (name, seed, probed, self._num_draws)}
        try:
            async for output in self.engine.generate(
                TokensPrompt(prompt_token_ids=prompt_ids.tolist()), params, request_id
            ):
                final = output
        except VLLMClientError as error:  # vLLM's word for a request it will not take; not a ValueError in 0.32
            raise TeacherError(f"vLLM refuses a prompt of {len(prompt_ids)} tokens ({type(error).__name__})") from None
        if final is None:
            raise TeacherError("vLLM ended a request without an output")
        completion = final.outputs[0]
        answer = to_answer(completion.token_ids, completion.logprobs, self._top_k, completion.finish_reason)
        return answer if name is None else self._with_draws(answer, probed, await self._fetched(name))

    def _with_draws(self, answer: Answer, probed: int, parts: list[Any]) -> Answer:
        """`answer` with what each of the engine's workers kept for it."""
        draws = probe = None
        if self._num_draws:
            draws = join_draws([part[0] for part in parts], len(answer.token_ids), self._num_draws)
            check_draws(draws, answer.token_ids, answer.token_logprobs)
        kept = [part[1] for part in parts if part[1]]
        if kept and probed < len(answer.token_ids):
            logits_V = np.frombuffer(kept[0], dtype=np.float32)
            logits_V = logits_V - logits_V.max()
            probe = (probed, logits_V - np.log(np.exp(logits_V.astype(np.float64)).sum()).astype(np.float32))
        return replace(answer, draws=draws, probe=probe)

    async def _fetched(self, name: str) -> list[Any]:
        """What the workers kept for `name`, one entry per worker. Requests that end together share a call, because a
        call waits for the engine's step to end."""
        self._waiting[name] = future = asyncio.get_running_loop().create_future()
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        parts: list[Any] = await future
        return parts

    async def _fetch(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            try:
                by_worker = await self.engine.collective_rpc("take_draws", args=(list(waiting),))
                for future, parts in zip(waiting.values(), zip(*by_worker, strict=True), strict=True):
                    if not future.done():
                        future.set_result(list(parts))
            except Exception as error:
                # Whatever it is, those who wait must hear of it.
                for future in waiting.values():
                    if not future.done():
                        future.set_exception(error)

    def shutdown(self) -> None:
        self._end()
        atexit.unregister(self._at_exit)


class Pulse:
    """When an engine last gave a sign of life (`time.monotonic()`; 0 when it has not)."""

    at = 0.0


def watch_outputs(engine: Any) -> Pulse:
    """A `Pulse` of what `engine` (an `AsyncLLM`) sends: answers themselves come only when they are done."""
    pulse, processor = Pulse(), getattr(engine, "output_processor", None)
    process = getattr(processor, "process_outputs", None)
    if processor is not None and process is not None:

        def process_outputs(outputs: Any, *arguments: Any, **keywords: Any) -> Any:
            if outputs:
                pulse.at = time.monotonic()
            return process(outputs, *arguments, **keywords)

        processor.process_outputs = process_outputs
    return pulse


class Rows:
    """What vLLM would put into `FlatLogprobs`, one answer's [S, W], as arrays: 8 bytes an entry instead of four lists
    of Python objects. Grows by blocks of `TOKENS_PER_BLOCK` tokens.

    The arrays of a step are copied, because they are views of the message that carries the step of every sequence.
    """

    TOKENS_PER_BLOCK = 32

    def __init__(self, top_k: int) -> None:
        self._width = top_k + 1
        self._ids: list[npt.NDArray[np.int32]] = []  # blocks [TOKENS_PER_BLOCK, W], all but the last one full
        self._logprobs: list[npt.NDArray[np.float32]] = []
        self._num_tokens = 0

    def update_from_output(self, output: Any) -> None:
        """`LogprobsProcessor.update_from_output` for one step of one request (`EngineCoreOutput`). Arrays that are not
        as in 0.32 are left out, which `to_answer` finds; an exception here would end every request of the engine."""
        lists = output.new_logprobs
        if lists is None:
            return
        ids, logprobs = lists.logprob_token_ids, lists.logprobs
        if ids.ndim != 2 or ids.shape != logprobs.shape or ids.shape[1] < self._width or ids.dtype.kind != "i":
            return
        for position in range(len(ids)):  # one; several with speculative decoding
            row = self._num_tokens % self.TOKENS_PER_BLOCK
            if row == 0:
                self._ids.append(np.empty((self.TOKENS_PER_BLOCK, self._width), dtype=np.int32))
                self._logprobs.append(np.empty((self.TOKENS_PER_BLOCK, self._width), dtype=np.float32))
            # A step is as wide as its widest request asks.
            self._ids[-1][row] = ids[position, : self._width]
            self._logprobs[-1][row] = logprobs[position, : self._width]
            self._num_tokens += 1

    def joined(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Ids and log-probabilities, [S, W] each. The blocks are given up."""
        if not self._ids:
            return np.empty((0, self._width), dtype=np.int32), np.empty((0, self._width), dtype=np.float32)
        S = self._num_tokens
        ids_SW, logprobs_SW = np.concatenate(self._ids)[:S], np.concatenate(self._logprobs)[:S]
        self._ids, self._logprobs, self._num_tokens = [], [], 0
        return ids_SW, logprobs_SW

    def __len__(self) -> int:
        return self._num_tokens


def keep_arrays(engine: Any) -> bool:
    """Lets `engine` (an `AsyncLLM`) answer flat log-probabilities that are not detokenised with `Rows`, instead of
    turning each array of a step into Python lists. Whether it could.

    vLLM has no option for that. What is used is public by name, on this one engine: `output_processor.add_request`,
    and of the state that it makes, `logprobs_processor` with `logprobs` and `update_from_output`
    (vllm/v1/engine/output_processor.py and logprobs.py, 0.32). `FlatLogprobs` would cost the front end, which is one
    thread, 13 us a token at K = 64 and 50 us at K = 256 (docs/generation.md).
    """
    import vllm
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists

    processor = getattr(engine, "output_processor", None)
    as_read = (
        vllm.__version__.startswith(VLLM_SERIES)
        and callable(getattr(processor, "add_request", None))
        and isinstance(getattr(processor, "request_states", None), dict)
        and {"logprobs", "num_logprobs", "tokenizer"} <= set(getattr(LogprobsProcessor, "__dataclass_fields__", ()))
        and callable(getattr(LogprobsProcessor, "update_from_output", None))
        and getattr(LogprobsLists, "_fields", ())[:2] == ("logprob_token_ids", "logprobs")
    )
    if not as_read:
        logger.warning(
            "teacher: vLLM %s is not the %sx whose output processing is known here; log-probabilities take the slower "
            "way through vLLM's lists",
            vllm.__version__,
            VLLM_SERIES,
        )
        return False
    assert processor is not None
    add_request = processor.add_request

    def add_request_with_rows(request: Any, *arguments: Any, **keywords: Any) -> None:
        add_request(request, *arguments, **keywords)
        params = request.sampling_params
        if params is None or not params.flat_logprobs or params.detokenize or params.logprobs is None:
            return
        of_request = processor.request_states[request.request_id].logprobs_processor
        of_request.logprobs = rows = Rows(params.logprobs)
        of_request.update_from_output = rows.update_from_output

    processor.add_request = add_request_with_rows
    return True


def to_answer(token_ids: Any, logprobs: Any, top_k: int, finish_reason: str) -> Answer:
    """`Answer` of what vLLM returned for one request: S ids, and `Rows` or `FlatLogprobs`.

    Raises RuntimeError when these do not hold, per token, the token itself and then `top_k` others.
    """
    S, W = len(token_ids), top_k + 1
    written = np.array(token_ids, dtype=np.int32)
    if isinstance(logprobs, Rows):
        ids_SW, logprobs_SW = logprobs.joined()
    else:
        ids_SW = np.array(logprobs.token_ids, dtype=np.int32)
        logprobs_SW = np.array(logprobs.logprobs, dtype=np.float32)
    if ids_SW.size != S * W or logprobs_SW.size != S * W or not np.array_equal(ids_SW.reshape(S, W)[:, 0], written):
        raise RuntimeError(
            f"teacher: vLLM returned {ids_SW.size} log-probabilities for {S} tokens at top_k {top_k}, or in another "
            f"order; this is not the layout of vLLM {VLLM_SERIES}x, so install that one"
        )
    ids_SW, logprobs_SW = ids_SW.reshape(S, W), logprobs_SW.reshape(S, W)
    return Answer(written, ids_SW[:, 1:], logprobs_SW[:, 1:], logprobs_SW[:, 0].copy(), finish_reason)


def num_top_k(targets: TargetsConfig) -> int:
    """How many of the most probable tokens the engine must return; 0 when only its draws are kept."""
    return 0 if targets.method == "sampled" and targets.draws_from == "engine" else targets.top_k


def num_engine_draws(targets: TargetsConfig) -> int:
    """Draws per token that the engine takes; 0 when none are kept or they are taken from its top K."""
    return targets.num_draws if targets.method != "top_k" and targets.draws_from == "engine" else 0


def _uses_draws(config: Config) -> bool:
    """Whether the engine needs `stages.draws`, for draws or for probes."""
    if "speculative_config" in config.teacher.engine:  # vLLM runs no logits processors then; the config refused draws
        return False
    return bool(num_engine_draws(config.targets) or config.targets.probe_fraction)


def probed_token(seed: int, fraction: float, max_tokens: int) -> int:
    """The number of the token of an answer to probe, or -1 for most answers. It may lie beyond the answer's end: so
    every token of every answer has the same chance."""
    random = np.random.default_rng([seed, max_tokens])
    return int(random.integers(max_tokens)) if random.random() < fraction else -1


def join_draws(parts: list[bytes], num_tokens: int, num_draws: int) -> npt.NDArray[np.int32]:
    """[S, D]: an answer's draws from what each worker saw of it (`stages.draws.Store.take`).

    The engine may have begun a token more before it heard that the answer ended. Raises RuntimeError when a token of
    the answer has no draws.
    """
    draws_SD = np.full((num_tokens, num_draws), -1, dtype=np.int32)
    for part in parts:
        seen = np.frombuffer(part, dtype=np.int32).reshape(-1, num_draws)[:num_tokens]
        draws_SD[: len(seen)] = np.where(seen >= 0, seen, draws_SD[: len(seen)])
    missing = int((draws_SD < 0).any(axis=1).sum())
    if missing:
        raise RuntimeError(
            f"teacher: {missing} of an answer's {num_tokens} tokens have no draws; this vLLM calls logits processors "
            "otherwise than 0.32, so install that one or set targets.draws_from to top_k"
        )
    return draws_SD


def check_draws(
    draws_SD: npt.NDArray[np.int32], token_ids: npt.NDArray[np.int32], token_logprobs: npt.NDArray[np.float32]
) -> None:
    """Raises RuntimeError when the draws do not belong to the tokens, such as when they are shifted by one.

    vLLM gave the probability of every token written on another way; so often, within 10 standard deviations, must the
    token be among the draws of its row.
    """
    num_draws = draws_SD.shape[1]
    p = np.exp(token_logprobs.astype(np.float64))
    expected, drawn = p.sum(), float((draws_SD == token_ids[:, None]).sum()) / num_draws
    deviation = np.sqrt(((p * (1 - p)).sum() + 1.0) / num_draws)
    if abs(drawn - expected) > 10 * deviation:
        raise RuntimeError(
            f"teacher: of {len(token_ids)} tokens written {drawn:.1f} are among their own draws where {expected:.1f} "
            f"are expected (deviation {deviation:.2f}); the draws belong to other tokens, so set targets.draws_from to "
            "top_k and report this"
        )


class FailureLog(logging.Handler):
    """Appends each exception that a process of vLLM logs to a file, as a line of JSON: its type and message.

    vLLM's front end only knows that "Engine core initialization failed"; the reason is in a log record of a process
    that it started.
    """

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            # The folder is gone once the engine runs.
            with contextlib.suppress(FileNotFoundError), open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(describe(record.exc_info[1])) + "\n")


def describe(error: BaseException) -> str:
    """Type and message of an error in one line of at most 500 characters; of pydantic's, the first error's message.

    Only for errors of a start: what vLLM says later can hold text of prompts.
    """
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        error = first.get("ctx", {}).get("error", ValueError(f"{first['loc']}: {first['msg']}"))
    line = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {line if len(line) <= 500 else line[:499] + '…'}"


def end_with_parent() -> None:
    """A plugin of vLLM's (entry point `vllm.general_plugins`), called in each process of an engine: ends it when the
    one that started it is gone.

    vLLM's engine outlives a front end that was killed, and keeps the GPU's memory from the next one. In processes that
    are not of an engine of ours, nothing happens.
    """
    parent = multiprocessing.parent_process()
    if ENGINE_MARK not in os.environ or parent is None:
        return

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def _start(config: Config) -> Any:
    """A running `AsyncLLM`. Raises `TeacherError` with vLLM's reason when it cannot start."""
    model = config.teacher.model
    if is_local_path(model) and not Path(model).is_dir():
        raise TeacherError(f"teacher.model: there is no folder {model!r}; write the folder of the teacher's weights")
    # Not `TemporaryDirectory`: its finaliser, made first, would put vLLM's own behind `multiprocessing`'s wait at exit.
    folder = tempfile.mkdtemp(prefix="stillhouse-")
    failures = Path(folder, "failures.jsonl")
    try:
        return _start_logged(config, failures)
    except TeacherError:
        raise
    except Exception as error:  # of any type: nothing runs yet that could be in doubt
        reason = describe(error)
        if failures.exists():
            # The first process to fail is the cause of what the others say.
            reason = json.loads(failures.read_text(encoding="utf-8").splitlines()[0])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # Outside of `except`, so that no traceback keeps the half-built engine and its processes alive.
    raise TeacherError(
        f"teacher: vLLM cannot start {model!r} ({reason}); change the key of `teacher` or of `teacher.engine` or "
        "`teacher.env` that this is about"
    )


def _start_logged(config: Config, failures: Path) -> Any:
    """A running `AsyncLLM` whose processes log their exceptions to `failures` too."""
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    top_k = num_top_k(config.targets)
    engine = dict(config.teacher.engine)
    if _uses_draws(config):
        engine["worker_extension_cls"] = "stillhouse.stages.draws.TakeDraws"
    engine.setdefault("disable_log_stats", True)
    engine.setdefault("use_tqdm_on_load", False)
    if current_platform.is_cpu():
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
    if _uses_draws(config):
        runner = "V2" if vllm_config.use_v2_model_runner else "V1"
        vllm_config.model_config.logits_processors = [f"stillhouse.stages.draws:Draws{runner}"]
    _log_failures(vllm_config, failures)
    return AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=args.disable_log_stats)


def _log_failures(vllm_config: Any, path: Path) -> None:
    """Adds `FailureLog` to what vLLM's processes log with, unless the user has a logging configuration of their own or
    the processes are Ray's (they may be on machines that do not see `path`)."""
    from vllm.config.logging import LoggingConfig
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    mine = vllm_config.logging_config
    if (
        mine.pylogging_config_file is not None
        or mine.formatter != "text"
        or not mine.configure_logging
        or vllm_config.parallel_config.distributed_executor_backend not in (None, "mp", "uni")
    ):
        return
    logging_config = deepcopy(DEFAULT_LOGGING_CONFIG)
    # What vLLM's module holds dates from its import, which may be before our settings.
    logging_config["handlers"]["vllm"].update(level=mine.log_level, stream=os.environ["VLLM_LOGGING_STREAM"])
    logging_config["handlers"]["failures"] = {"()": f"{__name__}.FailureLog", "path": str(path)}
    logging_config["loggers"]["vllm"].update(handlers=["vllm", "failures"], level=mine.log_level)
    file = path.with_name("logging.json")
    file.write_text(json.dumps(logging_config), encoding="utf-8")
    vllm_config.logging_config = LoggingConfig(log_level=mine.log_level, pylogging_config_file=str(file))


def _shutdown(teacher: "weakref.ref[VLLMTeacher]") -> None:
    if (alive := teacher()) is not None:
        alive.shutdown()


def _end(engine: Any) -> None:
    """Ends an engine's processes. A function, so that the finaliser that calls it holds no teacher."""
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
