"""Scores by a real engine, which reads in pieces, against a forward pass of transformers. tests/slow/test_scoring.py
has more conversations, draws, probes, the prefix cache, and what was generated against what is scored of it."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from stillhouse.stages.score import Score
from stillhouse.stages.teacher import load_teacher
from stillhouse.stages.teacher.chat import Chat
from stillhouse.stages.teacher.engine import VLLMTeacher
from tests.support.scoring import answered
from tests.support.scoring_engine import conversations, errors, scoring_config


def test_scores_are_those_of_a_forward_pass(tmp_path: Path, tokenizer: Any) -> None:
    config, chat = scoring_config(tmp_path), Chat(tokenizer)
    teacher = load_teacher(config, chat.end_of_turn_ids())
    assert isinstance(teacher, VLLMTeacher)
    try:
        table = asyncio.run(Score(config, chat, teacher)(answered(*conversations(8))))
    finally:
        teacher.shutdown()
    table = table.filter(pc.is_null(table["drop_reason"]))
    assert sum(len(row) > 1 for row in table["finish_reasons"].to_pylist()) >= 2
    found = errors(table)
    assert found["own"] < 0.002
    assert found["top"] < 0.005  # stored in float16
    assert found["shifted"] > 20 * found["own"]
