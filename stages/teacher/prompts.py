"""The prompts in a conversation's ids: where they are, and the same ids rendered again from text.

Shape legend: T tokens of a conversation, P tokens of one prompt.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import GenerateConfig
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.guard import IntArray
from stillhouse.stages.teacher.thinking import Thinking


class Prompts:
    """Renders what the teacher of `chat` read before each of its answers, as `generate` did."""

    def __init__(self, config: GenerateConfig, chat: Chat) -> None:
        self._chat = chat
        self._thinking = Thinking(config, chat) if config.thinking == "drop" else None

    def ids(self, user_turns: Sequence[str], system_prompt: str | None) -> list[IntArray]:
        """For each user turn the ids [P] that come before its answer. Of those after the first, the first id may be
        the end of turn that the teacher has written itself. Raises `TemplateError` as `Chat` does."""
        first = self._chat.prompt_ids([{"role": "user", "content": user_turns[0]}], system_prompt)
        others = [self._chat.next_turn_ids(user_turns[:end], system_prompt) for end in range(2, len(user_turns) + 1)]
        rendered = [first, *others]
        return rendered if self._thinking is None else [self._thinking.cut(ids) for ids in rendered]


def places(labels_T: npt.NDArray[np.int32], input_ids_T: npt.NDArray[np.int32], prompts: list[IntArray]) -> list[slice]:
    """Where each of `prompts` is in a conversation. Raises ValueError where the conversation holds others.

    A prompt begins where a supervised token is followed by one that is not; thinking that is not supervised comes after
    a prompt and before supervised tokens.
    """
    is_ours = labels_T != IGNORE_INDEX
    starts = [0, *(np.flatnonzero(is_ours[:-1] & ~is_ours[1:]) + 1).tolist()]
    if len(starts) != len(prompts):
        raise ValueError(f"{len(starts)} prompts, not {len(prompts)}")
    found = []
    for start, ids_P in zip(starts, prompts, strict=True):
        for rest_P in (ids_P, ids_P[1:]) if start else (ids_P,):
            place = slice(start, start + len(rest_P))
            if np.array_equal(input_ids_T[place], rest_P) and not is_ours[place].any():
                found.append(place)
                break
        else:
            raise ValueError(f"other ids from token {start} on")
    return found


def masked_places(input_ids_T: npt.NDArray[np.int32]) -> list[slice]:
    """The runs of `IGNORE_INDEX` in ids whose prompts are masked."""
    is_masked = np.concatenate([[False], input_ids_T == IGNORE_INDEX, [False]])
    edges = np.flatnonzero(is_masked[1:] != is_masked[:-1]).tolist()
    return [slice(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)]
