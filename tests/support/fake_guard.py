"""A guard model for tests: the real protocol and tokenizer, no model. It is as sure of yes as the last number in its
prompt says, and writes its verdict in the form of `SAYS`."""

import functools
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import Answer, TeacherError
from stillhouse.stages.teacher.pretrained import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>system\n{{ policy or 'Is it unsafe?' }}<|im_end|>\n<|im_start|>assistant\n"
)
PROMPTS: list[str] = []
"""What the guards of this process were asked."""


@functools.cache
def _tokenizer(model: str) -> Any:
    return load_tokenizer(model, None, False)


class FakeGuard:
    """`says` is the form of its answers, `words` what stands there for yes and for no."""

    broken = False
    last_token_at = 0.0
    says = "{}"
    words = ("unsafe", "safe")

    def __init__(self, config: Config, stop_token_ids: list[int]) -> None:
        assert (config.sampling.temperature, config.targets.method) == (0.0, "top_k")
        self.vocab_size = 49152
        self._tokenizer = _tokenizer(config.teacher.model)
        self._top_k = config.targets.top_k

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        text = self._tokenizer.decode(prompt_ids)
        PROMPTS.append(text)
        if "refuse me" in text:
            raise TeacherError("no")
        p = float(["0.0", *re.findall(r"\d\.\d+", text)][-1])
        yes, no = (self._tokenizer.encode(self.says.format(word)) for word in self.words)
        place = next(i for i, pair in enumerate(zip(yes, no, strict=False)) if pair[0] != pair[1])
        written = np.array((yes if p >= 0.5 else no)[:max_tokens], np.int32)
        ids_SK = np.tile(np.arange(30000, 30000 + self._top_k, dtype=np.int32), (len(written), 1))
        probs_SK = np.full(ids_SK.shape, 0.1 / self._top_k)
        if place < len(written):
            ids_SK[place, :2], probs_SK[place, :2] = (yes[place], no[place]), (0.8 * p + 1e-9, 0.8 * (1 - p) + 1e-9)
        logprobs_SK = np.log(probs_SK).astype(np.float32)
        if "overflow" in text:
            logprobs_SK[:] = np.nan
        return Answer(written, ids_SK, logprobs_SK, logprobs_SK[:, 0], "stop")

    def shutdown(self) -> None:
        PROMPTS.append("the end")
