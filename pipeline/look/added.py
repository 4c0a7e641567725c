"""What a chat template adds to a conversation: words in the teacher's prompt that no message holds. Some write a system
prompt of their own where a conversation has none, and a student then trains on it.

Control tokens are the template's alone (`stages.teacher.guard`), so the prompt falls apart at them.
"""

from collections.abc import Sequence
from typing import Any

MIN_WORDS = 3
"""Fewer are the names of roles and channels."""
_ROLES = {"system", "developer", "user", "human", "assistant"}


def added_by_template(tokenizer: Any, ids: Sequence[int], messages: Sequence[dict[str, Any]]) -> str | None:
    """What stands in `ids` before the user's first words and is in no message. None where that is less than
    `MIN_WORDS`, and where it cannot be told: the user's words are withheld, or are not found as they are."""
    said = [message["content"] for message in messages]
    first = next((message["content"] for message in messages if message["role"] == "user"), None)
    if not first or not first.strip():
        return None
    found = []
    for part in _parts(tokenizer, ids):
        before, is_there, _ = part.partition(first.strip())
        found.append(_without_role(before))
        if is_there:
            break
    else:
        return None
    text = "\n".join(part for part in found if part and part not in {(content or "").strip() for content in said})
    for message in messages:  # the source's system prompt, inside of what the template writes around it
        if message["role"] == "system" and message["content"]:
            text = text.replace(message["content"].strip(), "")
    return text.strip() if len(text.split()) >= MIN_WORDS else None


def _parts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text between control tokens."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    parts: list[list[int]] = [[]]
    for i in ids:
        if i in special:
            parts.append([])
        else:
            parts[-1].append(i)
    return [tokenizer.decode(part) for part in parts if part]


def _without_role(part: str) -> str:
    """A part without the name of the role that it begins or ends with."""
    lines = part.strip().splitlines()
    while lines and lines[0].strip(" :").lower() in _ROLES:
        lines.pop(0)
    while lines and lines[-1].strip(" :").lower() in _ROLES:
        lines.pop()
    return "\n".join(lines).strip()
