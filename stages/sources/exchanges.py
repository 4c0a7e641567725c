"""Answers that a source gives (`task: score`): which questions have one, and the ids that stand beside them.

Shape legend: T tokens of a conversation.
"""

from typing import Any, NamedTuple

import numpy as np

from stillhouse.schemas.config import ScoreConfig
from stillhouse.schemas.lists import supervised_runs
from stillhouse.schemas.tables import IGNORE_INDEX
from stillhouse.stages.sources.content import text_of
from stillhouse.stages.sources.conversation import ASSISTANT, USER, Message, at
from stillhouse.stages.sources.row import RefusedError

UNANSWERED = "unanswered"
MALFORMED_IDS = "malformed_ids"

INPUT_IDS, LABELS = "input_ids", "labels"
MASKS = ("assistant_masks", "assistant_mask", "loss_mask", "completion_mask")
"""Columns of 0 and 1 that say which ids are supervised, where there are no `labels`."""
LOWEST_LOGPROB, LARGEST_LOGPROB = float(np.finfo(np.float32).min), 1e-2
"""Of a student's own: float32 holds them, and an engine may compute its softmax in bfloat16."""


def columns(score: ScoreConfig | None) -> tuple[str, ...]:
    """Columns that ids are read from, beside those of every conversation."""
    if score is None or score.ids == "text":
        return ()
    return (INPUT_IDS, LABELS, *MASKS, *filter(None, [score.asked_ids, score.student_logprobs]))


def exchanges(messages: list[Message], first: int) -> list[int]:
    """Places of the user turns, from `first` on, that have one answer right after them, up to the first that has none
    or whose answer is followed by something else than a user turn. Raises `RefusedError` where there is none."""
    roles = [message.role for message in messages]
    kept = []
    for i in range(first, len(messages) - 1, 2):
        is_exchange = roles[i : i + 2] == [USER, ASSISTANT] and roles[i + 2 : i + 3] in ([], [USER])
        if not is_exchange or not all(text_of(message.content).strip() for message in messages[i : i + 2]):
            break
        kept.append(i)
    if not kept:
        raise RefusedError(UNANSWERED)
    return kept


class GivenIds(NamedTuple):
    """A row's own ids [T], its labels [T] (the ids where they are supervised, else -100), and for each supervised token
    as many more ids, flat, and its writer's log-probability. All end with the last supervised token."""

    ids: list[int]
    labels: list[int]
    asked: list[int] | None
    logprobs: list[float] | None


def given_ids(row: dict[str, Any], num_answers: int, num_kept: int, score: ScoreConfig) -> GivenIds:
    """What a row gives up to the end of the last of its first `num_kept` answers.

    Raises `RefusedError` unless each of the conversation's `num_answers` is one run of labels: with fewer, or more,
    nobody could tell whose a run is.
    """
    ids, labels = at(row, INPUT_IDS), at(row, LABELS)
    if labels is None and isinstance(ids, list):
        mask = next((value for name in MASKS if (value := at(row, name)) is not None), None)
        if isinstance(mask, list) and len(mask) == len(ids) and all(chosen in (0, 1) for chosen in mask):
            labels = [token if chosen else IGNORE_INDEX for token, chosen in zip(ids, mask, strict=True)]
    if not _are_ids(ids) or not _are_ids(labels) or len(ids) != len(labels):
        raise RefusedError(MALFORMED_IDS)
    ids_T, labels_T = np.array(ids, np.int32), np.array(labels, np.int32)
    ours_T = labels_T != IGNORE_INDEX
    starts, ends = supervised_runs(labels_T)
    are_wrong = (labels_T[ours_T] != ids_T[ours_T]).any() or (ids_T < 0).any()
    if are_wrong or not len(starts) or starts[0] == 0 or len(starts) != num_answers:
        raise RefusedError(MALFORMED_IDS)
    end = int(ends[num_kept - 1])
    asked = None if score.asked_ids is None else _asked(at(row, score.asked_ids), int(ours_T.sum()))
    if asked is not None:
        asked = asked[: int(ours_T[:end].sum()) * (len(asked) // int(ours_T.sum()))]
    logprobs = None
    if score.student_logprobs is not None:
        logprobs = _logprobs(at(row, score.student_logprobs), int(ours_T.sum()))[: int(ours_T[:end].sum())]
    return GivenIds(ids[:end], labels[:end], asked, logprobs)


def _asked(value: object, num_tokens: int) -> list[int]:
    """More ids of `num_tokens` tokens, flat. Raises `RefusedError` unless there are as many for each."""
    if isinstance(value, list) and all(isinstance(ids, list) for ids in value):
        if len(value) != num_tokens or len({len(ids) for ids in value}) != 1:
            raise RefusedError(MALFORMED_IDS)
        value = [number for ids in value for number in ids]
    if not isinstance(value, list) or not _are_ids(value) or not value or len(value) % num_tokens or min(value) < 0:
        raise RefusedError(MALFORMED_IDS)
    return value


def _logprobs(value: object, num_tokens: int) -> list[float]:
    """One log-probability for each of `num_tokens` tokens. Raises `RefusedError` for anything else."""
    if not isinstance(value, list) or len(value) != num_tokens:
        raise RefusedError(MALFORMED_IDS)
    if not all(isinstance(number, int | float) and LOWEST_LOGPROB <= number <= LARGEST_LOGPROB for number in value):
        raise RefusedError(MALFORMED_IDS)
    return [float(number) for number in value]


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(number, int) and not isinstance(number, bool) and -(2**31) <= number < 2**31 for number in value
    )
