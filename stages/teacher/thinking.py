"""A reasoning teacher's thinking: where it is in what the teacher wrote."""

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import GenerateConfig
from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.chat import Chat


class Thinking:
    """Finds a reasoning teacher's thinking in what it wrote.

    gpt-oss thinks in channels, whatever `thinking_tokens` are. Raises `TemplateError` when another teacher has no
    single tokens for `thinking_tokens`.
    """

    def __init__(self, config: GenerateConfig, chat: Chat) -> None:
        self._tokenizer = chat.tokenizer
        self._num_opening = 0
        self._is_harmony = chat.is_harmony
        if self._is_harmony:
            self._open = chat.control_ids["<|channel|>"]
            return
        ids = []
        for text in config.thinking_tokens:
            encoded = chat.tokenizer.encode(text, add_special_tokens=False)
            if len(encoded) != 1:
                raise TemplateError(
                    f"generate.thinking: {text!r} is {len(encoded)} tokens of this teacher, not one; set "
                    "generate.thinking_tokens to what it writes, or generate.thinking to supervise"
                )
            ids.append(encoded[0])
        self._open, self._close = ids
        # Some templates open the thinking themselves, so that the teacher's first token is already inside.
        prompt = chat.prompt_ids([{"role": "user", "content": "x"}])
        opened = np.flatnonzero(prompt == self._open)
        closed = np.flatnonzero(prompt == self._close)
        if len(opened) and (not len(closed) or closed[-1] < opened[-1]):
            self._num_opening = len(prompt) - int(opened[-1])

    def span(self, token_ids: npt.NDArray[np.int32]) -> slice:
        """Where in `token_ids` [S] the thinking is, its tokens and the blank ones behind it included; empty if none."""
        if self._is_harmony:
            return self._before_final(token_ids)
        start = 0
        while start < len(token_ids) and not self._num_opening and self._blank(token_ids[start]):
            start += 1
        if not self._num_opening and (start == len(token_ids) or token_ids[start] != self._open):
            return slice(0, 0)
        closed = np.flatnonzero(token_ids == self._close)
        if not len(closed):
            return slice(0, len(token_ids))
        stop = int(closed[-1]) + 1
        while stop < len(token_ids) and self._blank(token_ids[stop]):
            stop += 1
        return slice(0, stop)

    def cut(self, prompt_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """`prompt_ids` without the opening of thinking that the template wrote."""
        return prompt_ids[: len(prompt_ids) - self._num_opening]

    def _before_final(self, token_ids: npt.NDArray[np.int32]) -> slice:
        """In gpt-oss's channels: all that comes before the opening of the final one, which follows the prompt as well
        as it follows the thinking."""
        for start in np.flatnonzero(token_ids == self._open).tolist():
            if self._tokenizer.decode(token_ids[start + 1 :].tolist()).startswith("final<|message|>"):
                return slice(0, start)
        return slice(0, len(token_ids))

    def _blank(self, token_id: int) -> bool:
        text = self._tokenizer.decode([int(token_id)])
        return bool(text) and text.isspace()
