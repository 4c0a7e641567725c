"""Rows of an LMSYS-like source, good ones and every kind of broken ones."""

import json
import random
from typing import Any

CANARY = "answer-canary"


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any = CANARY) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def lmsys(conversation_id: Any, *messages: Any, flagged: Any = None, **columns: Any) -> dict[str, Any]:
    flags = [False] * len(messages) if flagged is None else flagged
    moderation = [{"flagged": flag, "categories": {"hate": flag}} for flag in flags]
    row = {"conversation_id": conversation_id, "conversation": list(messages), "language": "English"}
    return row | {"openai_moderation": moderation, "redacted": False} | columns


# A line of an LMSYS-like JSONL source, and why it is refused.
def broken(reason: str, *lines: str | bytes | dict[str, Any]) -> list[tuple[bytes, str]]:
    return [(encoded(line), reason) for line in lines]


def anything(*values: Any) -> tuple[Any, ...]:
    return values


def encoded(line: str | bytes | dict[str, Any]) -> bytes:
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line)).encode()


IMAGE = {"type": "image_url", "image_url": {"url": "http://x"}}
DEEP = "[" * 5000 + "]" * 5000
KINDS: list[tuple[bytes, str]] = [
    *broken(
        "invalid_json",
        '{"conversation_id": "x"',
        "nonsense",
        "{'a': 1}",
        '{"a": 1}}',
        f'{{"a": {DEEP}}}',
        f'{{"a": {"7" * 5000}}}',
    ),
    *broken(
        "undecodable",
        b'{"conversation_id": "\xff"}',
        b"\xc3",
        lmsys("s1", user("half \ud83d")),
        lmsys("s2", user("\udc00"), assistant()),
    ),
    *broken("not_an_object", "[]", "null", '"text"', "17", "true"),
    *broken("missing_conversation", {"conversation_id": "m1"}, {"conversation_id": "m2", "conversation": None}, {}),
    *broken(
        "malformed_conversation",
        *({"conversation_id": "c", "conversation": bad} for bad in anything("text", 3, {"role": "user"}, True)),
    ),
    *broken(
        "malformed_conversation",
        *(lmsys("f", user("hi"), bad) for bad in anything(None, "text", [], {"content": "no role"})),
    ),
    *broken(
        "malformed_conversation",
        *(
            lmsys("g", bad)
            for bad in anything({"role": "user"}, user(None), {"role": 3, "content": "x"}, {"role": None})
        ),
    ),
    *broken(
        "unknown_role",
        lmsys("r1", {"role": "wizard", "content": "hi"}),
        lmsys("r2", user("hi"), {"role": "Narrator", "content": "hi"}),
    ),
    *broken(
        "no_user_turn",
        lmsys("n1"),
        lmsys("n2", assistant()),
        lmsys("n3", {"role": "system", "content": "x"}, assistant()),
    ),
    *broken(
        "starts_with_assistant",
        lmsys("a1", assistant(), user("hi")),
        lmsys("a2", {"role": "tool", "content": "x"}, user("hi")),
    ),
    *broken(
        "not_text",
        *(
            lmsys("t", user(bad))
            for bad in anything(
                7,
                {"text": "hi"},
                [IMAGE],
                [{"type": "text", "text": "see"}, IMAGE],
                [["hi"]],
                [{"type": "code", "text": "hi"}],
            )
        ),
    ),
    *broken(
        "not_text",
        lmsys("t2", user([{"type": "text", "text": None}])),
        lmsys("t3", {"role": "system", "content": 1}, user("hi")),
    ),
    *broken(
        "empty", *(lmsys("e", user(bad), assistant(), user("more")) for bad in anything("", " \n\t ", "\u3000", []))
    ),
    *broken(
        "language",
        *(lmsys("l", user("hi"), language=bad) for bad in anything("Klingon", None, 5, ["English"], "\ud800")),
    ),
    *broken("too_long", lmsys("long", user("word " * 101)), lmsys("long2", user("word " * 5000))),
    *broken("duplicate_id", lmsys("good-0", user("question 0"), assistant(), user("and then?"))),
    *broken(
        "transcript",
        {"text": f"### Human: hi### Assistant: {CANARY}"},
        {"text": f"Human: hi\n\nAssistant: {CANARY}\n"},
        {"text": f"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{CANARY}<|im_end|>\n"},
        {"prompt": f"[INST] hi [/INST] {CANARY} [INST] more [/INST]"},
    ),
]


def good(i: int) -> bytes:
    return json.dumps(lmsys(f"good-{i}", user(f"question {i}"), assistant(), user("and then?"))).encode()


def mixed(seed: int, repeats: int = 4) -> tuple[bytes, list[str | None]]:
    """A JSONL source of good and broken lines in random order, and each row's expected reason."""
    rows: list[tuple[bytes, str | None]] = [*KINDS * repeats]
    rows.extend((good(i), None) for i in range(1, 200))
    random.Random(seed).shuffle(rows)
    rows.insert(0, (good(0), None))
    return b"\n".join(line for line, _ in rows), [reason for _, reason in rows]
