"""The teacher: a language model that continues token ids and tells its distribution. The only `import vllm`.

Shape legend: S tokens written, K targets kept per token.
"""

import importlib
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from schemas.config import Config, SamplingConfig


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


class TeacherError(RuntimeError):
    """A teacher that cannot start, or one request that it refuses."""


class Teacher(Protocol):
    """Continues prompts; many calls of `answer` run at once."""

    vocab_size: int

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
    """vLLM's `AsyncLLM` (0.32). Log-probabilities come in vLLM's flat form: per position K + 1 entries, the token
    written first, then the top K in order, so they reshape into arrays without an object per token.
    """

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        os.environ.update(config.teacher.env)
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        self._sampling = config.sampling
        self._stop_token_ids = stop_token_ids
        self._top_k = config.targets.top_k
        engine = dict(config.teacher.engine)
        engine.setdefault("disable_log_stats", True)
        if current_platform.is_cpu():
            # vLLM's CPU sampler fails on a seeded request whose prompt was split ("CPU Generator does not use offset").
            engine.setdefault("enable_chunked_prefill", False)
            engine.setdefault("max_num_batched_tokens", max(2048, config.teacher.max_model_len))
        args = AsyncEngineArgs(
            model=config.teacher.model,
            revision=config.teacher.revision,
            dtype=config.teacher.dtype,
            max_model_len=config.teacher.max_model_len,
            max_logprobs=self._top_k,
            logprobs_mode="raw_logprobs",
            seed=config.sampling.seed,
            **engine,
        )
        self._engine = AsyncLLM.from_engine_args(args)
        self.vocab_size = int(self._engine.model_config.get_vocab_size())

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        from vllm.inputs import TokensPrompt

        final = None
        params = sampling_params(self._sampling, self._top_k, self._stop_token_ids, seed, max_tokens)
        try:
            async for output in self._engine.generate(
                TokensPrompt(prompt_token_ids=prompt_ids.tolist()), params, request_id
            ):
                final = output
        except ValueError as error:  # vLLM's word for a request it will not take; a dead engine raises otherwise
            raise TeacherError(f"vLLM refuses a prompt of {len(prompt_ids)} tokens ({type(error).__name__})") from None
        if final is None:
            raise TeacherError("vLLM ended a request without an output")
        completion = final.outputs[0]
        return self._answer(completion.token_ids, completion.logprobs, completion.finish_reason)

    def _answer(self, token_ids: Any, flat: Any, finish_reason: str) -> Answer:
        S, K = len(token_ids), self._top_k
        ids = np.array(flat.token_ids, dtype=np.int32)
        logprobs = np.array(flat.logprobs, dtype=np.float32)
        written = np.array(token_ids, dtype=np.int32)
        if ids.size != S * (K + 1) or not np.array_equal(ids.reshape(S, K + 1)[:, 0], written):
            raise RuntimeError(
                f"teacher: vLLM returned {ids.size} log-probabilities for {S} tokens at top_k {K}, or in another order; "
                "this vLLM's flat_logprobs layout is not the one of 0.32"
            )
        ids_SK, logprobs_SK = ids.reshape(S, K + 1), logprobs.reshape(S, K + 1)
        return Answer(written, ids_SK[:, 1:], logprobs_SK[:, 1:], logprobs_SK[:, 0], finish_reason)

    def shutdown(self) -> None:
        self._engine.shutdown()


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
