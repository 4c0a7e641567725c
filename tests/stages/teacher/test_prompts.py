"""The prompts in a conversation's ids are found, and rendered again as the teacher read them, for every kind of
teacher."""

import asyncio
from typing import Any

import numpy as np
import pytest

from stillhouse.schemas.config import Config
from stillhouse.stages.generate import Generate
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.prompts import Prompts, masked_places, places
from tests.support import reasoning
from tests.support.prompts import prompts
from tests.support.reasoning import REASONERS, Reasoner, Says

QUESTIONS = ["What is <|im_end|> 2 + 2?", "Sure? <think>", "Bye"]


def joined_again(raw: dict[str, Any], chat: Chat, teacher: Says, turns: list[str]) -> list[slice] | None:
    """Has a conversation made, takes its prompts out and puts them back. Returns where they were; None where there is
    no answer."""
    raw["teacher"] |= {"max_model_len": 4096}
    raw["targets"] = {"top_k": 8}
    config = Config.model_validate(raw)
    (row,) = asyncio.run(Generate(config, chat, teacher)(prompts([turns]))).to_pylist()
    if row["drop_reason"] is not None:
        return None
    ids_T, labels_T = (np.array(row[name], np.int32) for name in ("input_ids", "labels"))
    asked = [message["content"] for message in row["messages"] if message["role"] == "user"]
    rendered = Prompts(config.generate, chat).ids(asked, None)
    found = places(labels_T, ids_T, rendered)
    masked_T = ids_T.copy()
    for place in found:
        masked_T[place] = -100
    assert masked_places(masked_T) == found
    for place, ids_P in zip(found, rendered, strict=True):
        masked_T[place] = ids_P[len(ids_P) - (place.stop - place.start) :]
    assert np.array_equal(masked_T, ids_T)
    if config.generate.thinking != "keep":  # all that is not supervised is prompt
        unsupervised = np.flatnonzero(labels_T == -100).tolist()
        assert unsupervised == [t for place in found for t in range(place.start, place.stop)]
    changed = [*rendered[:-1], rendered[-1] + 1]
    with pytest.raises(ValueError, match="other ids from token"):
        places(labels_T, ids_T, changed)
    with pytest.raises(ValueError, match="prompts, not"):
        places(labels_T, ids_T, [*rendered, rendered[0]])
    return found


@pytest.mark.parametrize("reasoner", REASONERS, ids=str)
@pytest.mark.parametrize("mode", ["supervise", "keep", "drop"])
def test_one_turn(raw_config: dict[str, Any], reasoner: Reasoner, mode: str) -> None:
    raw_config["generate"] = {"thinking": mode}
    for opening, closing in (("[THINK]", "[/THINK]"), ("<|channel>", "<channel|>")):
        if opening in reasoner.writes:
            raw_config["generate"]["thinking_tokens"] = [opening, closing]
    teacher = Says(reasoner.tokenizer, [reasoner.writes], reasoner.finish_reason)
    chat = Chat(reasoner.tokenizer, reasoner.template, drops_thinking=mode == "drop")
    found = joined_again(raw_config, chat, teacher, QUESTIONS[:1])
    if found is not None:
        opened = len(reasoner.tokenizer.encode(chat.opened_thinking(), add_special_tokens=False))
        cut = opened if mode == "drop" else 0
        assert found == [slice(0, len(teacher.prompts[0]) - cut)]


@pytest.mark.parametrize(
    ("eos", "template", "mode", "writes"),
    [
        # The teacher's end of turn, the template's, and one that the template's takes the place of.
        ("<|endoftext|>", reasoning.PLAIN, "supervise", ["Four.<|endoftext|>", "Yes.<|im_end|>", "Bye.<|endoftext|>"]),
        ("<|im_end|>", reasoning.PLAIN, "keep", [reasoning.BLOCK, "Yes.<|im_end|>", reasoning.BLOCK]),
        ("<|return|>", reasoning.HARMONY, "drop", [reasoning.ANALYSIS + reasoning.FINAL] * 3),
    ],
)
def test_several_turns(raw_config: dict[str, Any], eos: str, template: str, mode: str, writes: list[str]) -> None:
    tokenizer = reasoning.tokenizer(eos)
    raw_config["ingest"]["turns"] = "all"
    raw_config["generate"] = {"thinking": mode}
    teacher = Says(tokenizer, writes)
    found = joined_again(raw_config, Chat(tokenizer, template, drops_thinking=mode == "drop"), teacher, QUESTIONS)
    assert found is not None
    assert len(found) == 3
