"""What the stages with a teacher share: what a conversation is asked with (system prompt, seed), whether the template
can do it, and how far a stage is."""

import contextlib
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import pyarrow as pa

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Load, Teacher, TemplateError
from stillhouse.stages.teacher.chat import Chat


class Progress(NamedTuple):
    """Counts since a stage was built, over all the shards that it works on."""

    num_done: int  # samples that have ended
    num_under_way: int  # samples that have begun and not ended
    num_tokens: int  # tokens that the teacher has written or read, those of answers under way included where it tells


class Conversing:
    """What a stage tells of its teacher and of itself while it works."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._num_done = self._num_under_way = self._num_ended_tokens = 0

    @property
    def broken(self) -> bool:
        """Whether the teacher has failed for good: only a new process helps."""
        return self._teacher.broken

    @property
    def load(self) -> Load:
        """How full the teacher's engine is, as far as it tells; may be read from another thread."""
        load: Load = getattr(self._teacher, "load", Load())
        return load

    def progress(self) -> Progress:
        """How far the stage is; may be called from another thread. A teacher that cannot tell how many tokens it has
        written counts those of the answers that have ended."""
        return Progress(self._num_done, self._num_under_way, self._num_tokens())

    def close(self) -> None:
        """End the teacher."""
        self._teacher.shutdown()

    def _num_tokens(self) -> int:
        return int(getattr(self._teacher, "num_tokens", self._num_ended_tokens))

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Around one sample."""
        self._num_under_way += 1
        try:
            yield
            self._num_done += 1
        finally:
            self._num_under_way -= 1


def system_prompts(config: Config, prompts: pa.Table) -> list[str | None]:
    """The system prompt of each row: its source's own where `generate.system_prompts` says so, else one that it
    draws."""
    asked = config.generate.system_prompts
    if asked == "source":
        own: list[str | None] = prompts.column("system_prompt").to_pylist()
        return own
    seed = config.sampling.seed
    return [draw_system_prompt(asked, seed, prompt_id) for prompt_id in prompts.column("prompt_id").to_pylist()]


def check_template(config: Config, chat: Chat) -> None:
    """Raises `TemplateError` when the teacher's template cannot do what the configuration asks of it: open a turn for
    the teacher, take a system prompt, or carry ids over turns."""
    asked = config.generate.system_prompts
    prompts = {None, ""} if asked == "source" else set(asked or [None])
    for system_prompt in sorted({prompt is not None for prompt in prompts}):
        chat.jinja.require(system_prompt)
        rewrites = chat.rewrites(system_prompt)
        if rewrites is not None and config.ingest.turns == "all":
            raise TemplateError(
                f"ingest.turns: all needs earlier turns as they were, but {rewrites}; set ingest.turns to first, "
                "generate.thinking to drop if that is what is stripped, or teacher.chat_template to one that keeps them"
            )


def longest_system_prompt(config: Config, chat: Chat) -> str | None:
    """The configured system prompt with the most tokens, to check lengths before a prompt has drawn its own. None where
    each prompt's own is used: `ingest` counts it."""
    asked = config.generate.system_prompts
    prompts = [prompt for prompt in asked or [] if prompt is not None] if asked != "source" else []
    return max(prompts, key=lambda prompt: len(chat.tokenizer.encode(prompt)), default=None)


def draw_system_prompt(system_prompts: list[str | None] | None, seed: int, prompt_id: str) -> str | None:
    """The one of `system_prompts` that the prompt `prompt_id` gets: the same for all its samples, on every machine."""
    if not system_prompts:
        return None
    return system_prompts[_digest(seed, "system", prompt_id) % len(system_prompts)]


def sample_seed(seed: int, sample_id: str, turn: int) -> int:
    """A 63-bit seed that depends on nothing but the run's seed, the sample and the turn."""
    return _digest(seed, str(turn), sample_id) >> 1


def _digest(seed: int, purpose: str, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest())
