"""The teacher: a language model that continues token ids and tells the distribution behind every token.

This module is the public face: what an answer holds and what a teacher can do. It is cheap to import, because every
process of vLLM imports it (see `plugin`): no configuration, no engine, no torch.

Shape legend: S tokens written, V vocabulary, K targets kept per token, D draws per token.
"""

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from stillhouse.schemas.config import Config


MASS_TOLERANCE = 1e-2
"""By how much probabilities may sum to more than 1: an engine may compute its softmax in bfloat16."""


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
    finish_reason: str | None  # stop | length, given where it was scored; anything else is no answer
    draws: npt.NDArray[np.int32] | None = None  # [S, D] independent draws from the whole distribution
    probe: tuple[int, npt.NDArray[np.float32]] | None = None  # a token's number and its whole distribution [V], nats
    asked_logprobs: npt.NDArray[np.float32] | None = None  # [S, Q], nats: of the ids that a scorer was asked about
    entropies: npt.NDArray[np.float32] | None = None  # [S] nats, of the whole distribution behind each token

    def only(self, kept: npt.NDArray[np.bool_]) -> "Answer":
        """The answer with the tokens that `kept` [S] marks, and what belongs to them."""
        probe = self.probe
        if probe is not None:
            probe = (int(kept[: probe[0]].sum()), probe[1]) if kept[probe[0]] else None
        return replace(
            self,
            token_ids=self.token_ids[kept],
            target_ids=self.target_ids[kept],
            target_logprobs=self.target_logprobs[kept],
            token_logprobs=self.token_logprobs[kept],
            draws=None if self.draws is None else self.draws[kept],
            entropies=None if self.entropies is None else self.entropies[kept],
            asked_logprobs=None if self.asked_logprobs is None else self.asked_logprobs[kept],
            probe=probe,
        )


def fault(answer: Answer, vocab_size: int) -> str | None:
    """What is wrong with the numbers of an answer, in a few words; None where they can be log-probabilities of ids
    below `vocab_size`. A model whose activations overflow returns NaN, and an engine passes it on."""
    S, K = answer.target_ids.shape
    if not len(answer.token_ids) == S == len(answer.token_logprobs) or answer.target_logprobs.shape != (S, K):
        return f"{len(answer.token_ids)} tokens, {S} rows of targets, {len(answer.token_logprobs)} log-probabilities"
    # A token that the model cannot write has -inf; one that it did write has not.
    if not np.isfinite(answer.token_logprobs).all():
        return "a written token's log-probability is not finite"
    whole = [] if answer.probe is None else [answer.probe[1][None]]
    for logprobs_SK in [answer.target_logprobs, *whole]:
        if np.isnan(logprobs_SK).any():
            return "a log-probability is not a number"
        if not (np.exp(logprobs_SK.astype(np.float64)).sum(axis=1) <= 1 + MASS_TOLERANCE).all():
            return "the probabilities of a token's targets sum to more than 1"
    if answer.asked_logprobs is not None and np.isnan(answer.asked_logprobs).any():
        return "a log-probability that was asked for is not a number"
    if (answer.token_logprobs > MASS_TOLERANCE).any():
        return "a written token's log-probability is above 0"
    if answer.entropies is not None:
        if answer.entropies.shape != (S,):
            return f"{len(answer.token_ids)} tokens, {len(answer.entropies)} entropies"
        if not ((answer.entropies >= 0) & (answer.entropies <= np.log(vocab_size) + MASS_TOLERANCE)).all():
            return f"an entropy is not between 0 and that of {vocab_size:,} equal choices"  # NaN is not
    for ids in [answer.token_ids, answer.target_ids, *([] if answer.draws is None else [answer.draws])]:
        if ids.size and (ids.max() >= vocab_size or (ids is not answer.draws and ids.min() < 0)):
            return f"an id is outside of the vocabulary of {vocab_size:,}"
    return None


class TeacherError(RuntimeError):
    """A teacher that cannot start, or one request that it refuses."""


class TemplateError(ValueError):
    """A template or tokenizer that cannot be used, or that refuses a conversation; the message says why."""


class ControlTextError(TemplateError):
    """An answer whose text spells a control token: its ids as text would not be those that a model writes."""


class Load(NamedTuple):
    """How full an engine is."""

    num_waiting: int = 0  # requests that it has accepted and not begun
    kv_cache_use: float = 0.0  # share of its key-value cache that is taken, 0 to 1


class Capacity(NamedTuple):
    """How much an engine takes at once; None where it does not say."""

    max_num_seqs: int | None = None  # answers that it writes at once
    max_num_batched_tokens: int | None = None  # of one step, prompts included
    cache_tokens: int | None = None  # that its key-value cache holds


class Teacher(Protocol):
    """Continues prompts; many calls of `answer` run at once.

    One that can tell how many tokens it has written, those of answers under way included, also has `num_tokens`; one
    that can tell how full its engine is has a `load`, and how much it takes a `capacity`.
    """

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
        """End everything the teacher started."""
        ...


class Scorer(Teacher, Protocol):
    """A teacher that can also tell its distribution behind tokens that somebody else wrote (`task: score`)."""

    async def score(
        self,
        token_ids: npt.NDArray[np.int32],
        supervised: npt.NDArray[np.bool_],
        request_id: str,
        seed: int,
        asked_ids: npt.NDArray[np.int32] | None = None,
    ) -> Answer:
        """The distributions behind those of `token_ids` [T] that `supervised` [T] marks, never the first: an `Answer`
        of these S tokens, whose finish reason is `given`; with the log-probabilities of `asked_ids` [S, Q] there.
        Raises `TeacherError` when these ids cannot be read."""
        ...


def load_teacher(config: "Config", stop_token_ids: list[int]) -> Teacher:
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
