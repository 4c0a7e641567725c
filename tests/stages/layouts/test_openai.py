"""The layout of OpenAI's JSON lines."""

import pyarrow as pa
import pytest

from stillhouse.schemas import tables
from stillhouse.stages.layouts import Settings
from stillhouse.stages.layouts.openai import LAYOUT, read_line
from tests.support.datasets import V, published_table


def test_the_text_alone() -> None:
    table = published_table()
    rows = LAYOUT.convert(table, Settings("target", V)).to_pylist()
    assert rows == [
        {"messages": [{"role": m["role"], "content": m["content"]} for m in row["messages"]]}
        for row in table.to_pylist()
    ]


def test_thinking_goes_before_the_answer() -> None:
    answers = [{"role": "assistant", "content": "4", "reasoning_content": thought} for thought in ("2 + 2", "", None)]
    table = pa.table({"messages": pa.array([[answer] for answer in answers], tables.MESSAGES)})
    rows = LAYOUT.convert(table, Settings("target", V)).to_pylist()
    assert [row["messages"] for row in rows] == [
        [{"role": "assistant", "content": content}]
        for content in ("<think>\n2 + 2\n</think>\n\n4", "<think>\n\n</think>\n\n4", "4")
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"is no object with messages \(JSONDecodeError\)"),
        (b"[]", r"is no object with messages \(TypeError\)"),
        (b"{}", r"is no object with messages \(KeyError\)"),
        (b'{"messages": []}', "are no conversation"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "are no conversation"),
        (b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": 1}]}', "no conversation"),
    ],
)
def test_lines_that_are_no_conversation_are_refused(line: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_line(line)
