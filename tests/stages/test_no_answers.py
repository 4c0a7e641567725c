"""What a teacher returns and is no answer: it is counted, or tried again, and never stored."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas import targets
from stillhouse.schemas.config import Config
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher import Answer, fault
from stillhouse.stages.teacher.chat import Chat
from tests.support.prompts import prompts

V = 49152
NAN, INF = float("nan"), float("inf")


def answer(S: int = 5, K: int = 4) -> Answer:
    ids_SK = np.arange(S, dtype=np.int32)[:, None] + 1000 * np.arange(1, K + 1, dtype=np.int32)
    ids_SK[-1, 0] = 2
    logprobs_SK = np.log(np.tile(np.array([0.5, 0.2, 0.1, 0.1], dtype=np.float32), (S, 1)))
    return Answer(ids_SK[:, 0].copy(), ids_SK, logprobs_SK, logprobs_SK[:, 0].copy(), "stop")


def put(name: str, place: Any, value: Any) -> Callable[[Answer], Answer]:
    def change(right: Answer) -> Answer:
        array = getattr(right, name).copy()
        array[place] = value
        return replace(right, **{name: array})

    return change


WRONG: dict[str, Callable[[Answer], Answer]] = {
    "one NaN": put("target_logprobs", (3, 2), NAN),
    "a row of NaN": put("target_logprobs", 1, NAN),
    "all NaN": lambda right: replace(
        right, target_logprobs=right.target_logprobs * NAN, token_logprobs=right.token_logprobs * NAN
    ),
    "infinite": put("target_logprobs", (0, 0), INF),
    "a probability of 3": put("target_logprobs", (0, 0), np.log(3.0)),
    "logits": lambda right: replace(right, target_logprobs=np.abs(right.target_logprobs) + 4),
    "sums to 1.5": put("target_logprobs", (2, slice(None)), np.log(0.375)),
    "the written token NaN": put("token_logprobs", 4, NAN),
    "the written token impossible": put("token_logprobs", 0, -INF),
    "the written token above 0": put("token_logprobs", 0, 0.5),
    "an id outside": put("target_ids", (0, 3), V),
    "a negative id": put("target_ids", (0, 3), -1),
    "a written id outside": put("token_ids", 1, V + 5),
    "a row missing": lambda right: replace(right, target_logprobs=right.target_logprobs[1:]),
    "a token missing": lambda right: replace(right, token_ids=right.token_ids[1:]),
    "a probe with NaN": lambda right: replace(right, probe=(1, np.full(V, NAN, dtype=np.float32))),
    "a draw outside": lambda right: replace(right, draws=np.full((5, 3), V, dtype=np.int32)),
}
RIGHT: dict[str, Callable[[Answer], Answer]] = {
    "as it is": lambda right: right,
    "masked tokens": put("target_logprobs", (2, 3), -INF),
    "certain": lambda right: replace(
        right, target_logprobs=np.tile(np.array([0.0, -INF, -INF, -INF], dtype=np.float32), (5, 1))
    ),
    "a softmax in bfloat16": put("target_logprobs", (0, 0), np.log(0.604)),
    "draws outside of the K": lambda right: replace(right, draws=np.full((5, 3), -1, dtype=np.int32)),
    "nothing written": lambda right: replace(
        right, token_ids=right.token_ids[:0], target_ids=right.target_ids[:0],
        target_logprobs=right.target_logprobs[:0], token_logprobs=right.token_logprobs[:0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_numbers_that_are_no_log_probabilities_are_found(wrong: str) -> None:
    assert fault(WRONG[wrong](answer()), V) is not None


@pytest.mark.parametrize("right", RIGHT)
def test_numbers_that_are_are_not(right: str) -> None:
    assert fault(RIGHT[right](answer()), V) is None


class Answers:
    """Gives `answers` by the number of the turn."""

    vocab_size = V
    broken = False
    last_token_at = 0.0

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers

    async def answer(self, prompt_ids: Any, request_id: str, seed: int, max_tokens: int) -> Answer:
        return self._answers[int(request_id.rpartition("/")[2])]

    def shutdown(self) -> None:
        pass


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> Chat:
    return Chat(tokenizer)


def generate(raw: dict[str, Any], chat: Chat, *answers: Answer) -> pa.Table:
    raw["targets"]["top_k"] = 4
    turns = [["Hello", "And now?"][: len(answers)]]
    return asyncio.run(Generate(Config.model_validate(raw), chat, Answers(*answers))(prompts(turns)))


@pytest.mark.parametrize("precision", [0.0, 1 / 64])
def test_they_are_counted_and_not_stored(raw_config: dict[str, Any], chat: Chat, precision: float) -> None:
    raw_config["targets"]["precision"] = precision
    bad = WRONG["one NaN"](answer())
    table = generate(raw_config, chat, bad)
    assert table.column("drop_reason").to_pylist() == ["invalid_logprobs"]
    # After a good answer the conversation ends with that.
    table = generate(raw_config, chat, answer(), bad)
    assert table.column("drop_reason").to_pylist() == [None]
    assert table.column("finish_reasons").to_pylist() == [["stop"]]
    (row,) = targets.decode(table)
    assert row.logprobs.shape == (5, 4)
    assert np.isfinite(row.logprobs).all()


@pytest.mark.parametrize("reason", ["repetition", "tool_calls", "content_filter", ""])
def test_an_answer_that_ended_otherwise_is_counted(raw_config: dict[str, Any], chat: Chat, reason: str) -> None:
    table = generate(raw_config, chat, replace(answer(), finish_reason=reason))
    assert table.column("drop_reason").to_pylist() == ["unfinished_answer"]
    table = generate(raw_config, chat, answer(), replace(answer(), finish_reason=reason))
    assert table.column("drop_reason").to_pylist() == [None]
    assert table.column("finish_reasons").to_pylist() == [["stop"]]


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_an_answer_that_the_engine_gave_up_is_asked_again(
    raw_config: dict[str, Any], chat: Chat, reason: str | None, turn: int
) -> None:
    """vLLM gives up all that is under way when it is told to stop: nothing is wrong with these prompts."""
    answers = [answer(), replace(answer(), finish_reason=reason)][1 - turn :]
    with pytest.raises(RuntimeError, match=f"generate: the teacher ended an answer with {reason!r}"):
        generate(raw_config, chat, *answers)
