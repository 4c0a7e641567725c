"""OpenAI's JSON lines: the text alone, for fine-tuning without the teacher's distributions.

Messages have a role and a content and nothing else: OpenAI's format knows no thinking, and `datasets` reads no folder
in which some files have a field that others lack. So thinking that a row keeps apart goes before its answer, as text,
in the marks that trainers and templates look for.
"""

import json

import pyarrow as pa

from stillhouse.stages.layouts import Layout, Settings

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))


def convert(table: pa.Table, settings: Settings) -> pa.Table:
    rows = [[_message(message) for message in messages] for messages in table.column("messages").to_pylist()]
    return pa.table({"messages": pa.array(rows, MESSAGES)})


def _message(message: dict[str, str | None]) -> dict[str, str | None]:
    thought = message["reasoning_content"]
    before = "" if thought is None else f"<think>\n{thought}\n</think>\n\n"
    return {"role": message["role"], "content": before + (message["content"] or "")}


def read_line(line: bytes) -> list[dict[str, str]]:
    """The messages of a line. Raises ValueError where it is no `{"messages": [...]}` of roles and contents alone that
    ends with the teacher's words: `datasets` reads no folder in which some lines have other fields."""
    try:
        found = json.loads(line)
        messages: list[dict[str, str]] = found["messages"]
        roles = [message["role"] for message in messages]
        is_text = all(isinstance(message["content"], str) for message in messages)
        fields = {*found} - {"messages"} | {name for message in messages for name in message} - {"role", "content"}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"is no object with messages ({type(error).__name__})") from None
    if fields:
        raise ValueError(f"has {len(fields)} fields beside messages, role and content")
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not is_text or not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("its messages are no conversation that ends with the teacher's words")
    return messages


def notes(settings: Settings, softcap: float | None) -> list[str]:
    return [
        "Answers that ended by length (`finish_reasons`, which these lines have no room for) will be closed by your "
        "trainer's template as if they were whole. Leave them out with review.drop_truncated, or filter the dataset as "
        "docs/training/text.md shows."
    ]


LAYOUT = Layout("fine-tuning on text (OpenAI's JSONL)", "text.md", "none", convert, notes, read_line=read_line)
