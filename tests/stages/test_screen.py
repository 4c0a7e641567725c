"""Screen on tables of five rows, with the profanity model that ships in its wheel and a stand-in with exact scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.schemas import tables
from stillhouse.schemas.config import ConfigError, ProfanityCheckConfig, ScreenConfig
from stillhouse.stages import screen
from stillhouse.stages.screen import Screen

PROFANITY = ProfanityCheckConfig(name="profanity-check", thresholds={"profanity": 0.9})
TURNS = [
    ["What is the capital of France?"],
    ["Tell me a joke", "fuck you, you stupid bitch", "sorry"],
    ["fuck you, you stupid bitch"],
    ["a nice day"],
    [""],
]
FLAGGED = [False, False, True, True, None]


class Exact:
    """Scores a text by the two numbers written in it; label b has no threshold."""

    labels = ("a", "b")
    thresholds = {"a": 0.5}  # noqa: RUF012

    def score(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[float(x) for x in text.split()] for text in texts], np.float32).reshape(-1, 2)


def prompts(turns: Sequence[Any] = tuple(TURNS), flagged: Sequence[bool | None] = tuple(FLAGGED)) -> pa.Table:
    values: dict[str, Any] = {"prompt_id": [f"p{i}" for i in range(len(turns))]}
    values |= {"user_turns": turns, "moderation_flagged": flagged, "cluster_size": range(len(turns))}
    columns = [pa.array(values.get(f.name, [None] * len(turns)), f.type) for f in tables.DEDUPED]
    return pa.table(columns, schema=tables.DEDUPED)


def test_reasons_and_scores() -> None:
    table = prompts()
    result = Screen(ScreenConfig(classifiers=[PROFANITY]))(table)
    assert result.schema == tables.marked(tables.screened(("profanity",)))
    assert result.select(table.column_names) == table
    flagged, unsafe = "moderation_flagged", "unsafe_prompt"
    assert result["drop_reason"].to_pylist() == [None, unsafe, flagged, flagged, None]
    scores = [row["profanity"] for row in result["prompt_scores"].to_pylist()]
    assert scores[1] == scores[2] > 0.9, "the worst turn counts, alone, and flagged rows are scored as well"
    assert max(scores[0], scores[3], scores[4]) < 0.5


def test_drop_flagged_is_a_choice() -> None:
    result = Screen(ScreenConfig(drop_flagged=False, classifiers=[PROFANITY]))(prompts())
    assert result["drop_reason"].to_pylist() == [None, "unsafe_prompt", "unsafe_prompt", None, None]


def test_without_classifiers_there_is_no_scores_column() -> None:
    result = Screen(ScreenConfig())(prompts())
    assert result.schema == tables.marked(tables.DEDUPED)
    assert result["drop_reason"].to_pylist() == [None, None, "moderation_flagged", "moderation_flagged", None]


def test_highest_turn_per_label_and_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "combined", lambda configs: Exact())
    turns = [["0.1 0.9", "0.4 0.2"], ["0.5 0.0"], ["0.0 1.0", "0.2 0.1", "0.499 0"], [], ["0 0", "0 0", "0.75 0.25"]]
    result = Screen(ScreenConfig())(prompts(turns, [False] * 5))
    scores = np.array([[float(row["a"]), float(row["b"])] for row in result["prompt_scores"].to_pylist()])
    expected = np.array([[0.4, 0.9], [0.5, 0.0], [0.499, 1.0], [0.0, 0.0], [0.75, 0.25]])
    np.testing.assert_allclose(scores, expected, atol=1e-7)
    assert result["drop_reason"].to_pylist() == [None, "unsafe_prompt", None, None, "unsafe_prompt"]


def test_a_turn_that_is_null_scores_as_an_empty_one() -> None:
    result = Screen(ScreenConfig(classifiers=[PROFANITY]))(prompts([[None], [""], None, [], [None, "a"]], [None] * 5))
    scores = [row["profanity"] for row in result["prompt_scores"].to_pylist()]
    assert scores[0] == scores[1] > 0.0 == scores[2] == scores[3]
    assert result["drop_reason"].null_count == 5


def test_slices_and_chunks_score_as_the_whole() -> None:
    stage, table = Screen(ScreenConfig(classifiers=[PROFANITY])), prompts()
    whole = stage(table)
    assert stage(table.slice(1, 3)) == whole.slice(1, 3)
    assert stage(pa.concat_tables([table.slice(0, 2), table.slice(2)])) == whole


@pytest.mark.parametrize("classifiers", [[], [PROFANITY]])
def test_no_rows(classifiers: list[Any]) -> None:
    labels = ("profanity",) if classifiers else ()
    for table in (prompts([], []), tables.DEDUPED.empty_table()):
        result = Screen(ScreenConfig(classifiers=classifiers))(table)
        assert result.num_rows == 0
        assert result.schema == tables.marked(tables.screened(labels))


def test_columns_it_does_not_know_are_kept() -> None:
    table = prompts().append_column("extra", pa.array(range(5)))
    result = Screen(ScreenConfig(classifiers=[PROFANITY]))(table)
    assert result.column_names == [*table.column_names, "prompt_scores", "drop_reason"]


def test_two_classifiers_with_a_label_in_common_are_refused() -> None:
    with pytest.raises(ConfigError, match="profanity"):
        Screen(ScreenConfig(classifiers=[PROFANITY, PROFANITY]))
