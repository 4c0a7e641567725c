"""vLLM's log-probabilities as the NumPy arrays that the engine sent, in place of vLLM's lists of Python objects.

Shape legend: S tokens written, K targets kept per token, W = K + 1 (the token written, then the top K in order).
"""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.stages.teacher import Answer

VLLM_SERIES = "0.32."
"""Releases of vLLM whose output processing `keep_arrays` was read against."""

logger = logging.getLogger("stillhouse")


class Rows:
    """One answer's ids and log-probabilities [S, W] as arrays: 8 bytes an entry, where vLLM's `FlatLogprobs` has four
    lists of Python objects. Grows by blocks of `TOKENS_PER_BLOCK` tokens.

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
        as in 0.32 are left out, and `to_answer` notices: an exception here would end every request of the engine."""
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
        """Ids and log-probabilities, [S, W] each. The blocks are freed."""
        if not self._ids:
            return np.empty((0, self._width), dtype=np.int32), np.empty((0, self._width), dtype=np.float32)
        S = self._num_tokens
        ids_SW, logprobs_SW = np.concatenate(self._ids)[:S], np.concatenate(self._logprobs)[:S]
        self._ids, self._logprobs, self._num_tokens = [], [], 0
        return ids_SW, logprobs_SW

    def __len__(self) -> int:
        return self._num_tokens


def keep_arrays(engine: Any) -> bool:
    """Have `engine` (an `AsyncLLM`) collect flat log-probabilities that are not detokenised in `Rows`, instead of
    turning each array of a step into Python lists. Returns whether this vLLM allows it.

    vLLM has no option for that. The names used are public, and replaced on this one engine only:
    `output_processor.add_request`, and `logprobs` and `update_from_output` of the request's `logprobs_processor`
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
    """The `Answer` that vLLM's output for one request holds: S ids, and `Rows` or `FlatLogprobs`.

    Raises RuntimeError when these do not hold the token itself and then `top_k` others for every token.
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
