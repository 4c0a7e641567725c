"""vLLM that does not come to an end before it may: what happens to it happens while it answers, on any machine."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer
from stillhouse.stages.teacher.engine import VLLMTeacher


class HeldTeacher(VLLMTeacher):
    """After its first `FREE_ANSWERS` it has the engine write each answer again and again, until the file `RELEASE` is
    there. Both names are variables of `teacher.env`."""

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        super().__init__(config, stop_token_ids)
        self._num_free = int(os.environ["FREE_ANSWERS"])
        self._release = Path(os.environ["RELEASE"])

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        is_free, number = self._num_free > 0, 0
        self._num_free -= 1
        while True:
            answer = await super().answer(prompt_ids, f"{request_id}/{number}", seed, max_tokens)
            number += 1
            if is_free or self._release.exists():
                return answer
