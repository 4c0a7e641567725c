"""Conversations to prompts: every format, ids, moderation, and that answers stay behind."""

import functools
import json
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.schemas.config import Config
from stillhouse.stages.ingest import Ingest
from stillhouse.stages.sources import Row, read_rows
from stillhouse.stages.teacher.chat import Chat
from tests.support.data import CONVERSATIONS, make_raw_config
from tests.support.ingesting import configured, ingested, num_words
from tests.support.source_rows import CANARY, IMAGE, assistant, lmsys, user


def wildchat(i: str) -> dict[str, Any]:
    messages = [
        m | {"language": "French", "toxic": False, "redacted": True} for m in (user("Un?"), assistant(), user("Deux?"))
    ]
    flags = [{"flagged": False}] * 3
    return {
        "conversation_hash": i,
        "conversation": messages,
        "language": "French",
        "openai_moderation": flags,
        "redacted": True,
    }


def sharegpt(i: str) -> dict[str, Any]:
    turns = [("system", "Be brief."), ("human", "One?"), ("gpt", CANARY), ("human", "Two?"), ("chatgpt", CANARY)]
    return {"id": i, "conversations": [{"from": role, "value": text} for role, text in turns]}


def messages(i: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "?"}]
    return {
        "uuid": i,
        "messages": [{"role": "developer", "content": "Be brief."}, user(parts), assistant(None), user("Two?")],
    }


FORMATS: dict[str, tuple[Callable[[str], dict[str, Any]], list[str], dict[str, Any]]] = {
    "lmsys": (
        lambda i: lmsys(i, user("One?"), assistant(), user("Two?")),
        ["One?", "Two?"],
        {"system_prompt": None, "language": "English", "redacted": False, "moderation_flagged": False},
    ),
    "wildchat": (
        wildchat,
        ["Un?", "Deux?"],
        {"system_prompt": None, "language": "French", "redacted": True, "moderation_flagged": False},
    ),
    "sharegpt": (
        sharegpt,
        ["One?", "Two?"],
        {"system_prompt": "Be brief.", "language": None, "redacted": None, "moderation_flagged": None},
    ),
    "messages": (
        messages,
        ["One?", "Two?"],
        {"system_prompt": "Be brief.", "language": None, "redacted": None, "moderation_flagged": None},
    ),
}


@pytest.mark.parametrize("encoding", ["jsonl", "parquet"])
@pytest.mark.parametrize("turns", ["first", "all"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_detected_and_named(name: str, named: bool, turns: str, encoding: str, tmp_path: Path) -> None:
    make, user_turns, columns = FORMATS[name]
    path = tmp_path / f"a.{encoding}"
    rows = [make("x1"), make("../x/2")]
    if encoding == "parquet" and name == "messages":  # a column holds either strings or lists
        for message in (message for row in rows for message in row["messages"]):
            content = message["content"]
            message["content"] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if encoding == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    config = configured(path, {"format": name if named else "auto"}, turns=turns)
    assert ingested(read_rows(config.source), config) == [
        {
            "prompt_id": prompt_id,
            "user_turns": user_turns[:1] if turns == "first" else user_turns,
            "num_prompt_tokens": 1,
            "source": f"a.{encoding}",
            "source_row": source_row,
            "drop_reason": None,
            **columns,
        }
        for source_row, prompt_id in enumerate(["x1", "../x/2"])
    ]


def test_each_row_shows_its_own_format() -> None:
    rows = [Row(None, "invalid_json"), [1], {"note": "header"}, sharegpt("a"), messages("b"), FORMATS["lmsys"][0]("c")]
    records = ingested(rows)
    assert [record["drop_reason"] for record in records] == [
        "invalid_json",
        "not_an_object",
        "missing_conversation",
        None,
        None,
        None,
    ]
    assert [record["user_turns"] for record in records[3:]] == [["One?"]] * 3
    # A named format reads nothing else.
    named = ingested(rows, configured(source={"format": "messages"}))
    assert [record["drop_reason"] for record in named[3:]] == ["missing_conversation", None, "missing_conversation"]


def test_no_answer_reaches_the_tokenizer_or_a_table() -> None:
    seen: list[str] = []

    def count(texts: list[str]) -> list[int]:
        seen.extend(texts)
        return num_words(texts)

    rows = [FORMATS[name][0](f"{name}") | {"model": CANARY, "extra": {"x": CANARY}} for name in FORMATS]
    for turns in ("first", "all"):
        for row in rows:
            (table,) = Ingest(configured(turns=turns), count)([Row(row)])
            assert table["drop_reason"].to_pylist() == [None]
            assert CANARY not in repr(table.to_pydict())
    assert len(seen) == 8
    assert CANARY not in repr(seen)


def test_what_is_wrong_with_an_answer_does_not_matter() -> None:
    answers = [assistant(None), {"role": "assistant"}, assistant("\ud800"), assistant([IMAGE]), assistant("")]
    records = ingested([lmsys(i, user("hi"), answer, user("more")) for i, answer in enumerate(answers)])
    assert [record["drop_reason"] for record in records] == [None] * len(answers)


def test_token_counts_come_in_one_call_per_shard() -> None:
    calls: list[list[str]] = []

    def count(texts: list[str]) -> list[int]:
        calls.append(texts)
        return num_words(texts)

    rows = [Row(lmsys(i, user(f"text {'x ' * i}"), assistant(), user("second"))) for i in range(4)]
    rows += [Row(None, "invalid_json")] * 2 + [Row(lmsys(9, user("last")))]
    shards = list(Ingest(configured(rows_per_shard=2, turns="all"), count)(rows))
    assert [len(call) for call in calls] == [2, 2, 1]
    assert [shard["num_prompt_tokens"].to_pylist() for shard in shards] == [[1, 2], [3, 4], [None, None], [1]]
    assert [shard["source_row"].to_pylist() for shard in shards] == [[0, 1], [2, 3], [4, 5], [6]]
    with pytest.raises(ValueError, match="gave 0 counts for 1 texts"):
        list(Ingest(configured(), lambda texts: [])([Row(lmsys(1, user("secret")))]))


def test_too_long_means_more_than_fits() -> None:
    rows = [lmsys(f"{n}", user("w " * n)) for n in (9, 10, 11, 100, 101)]
    reasons = [record["drop_reason"] for record in ingested(rows)]
    assert reasons == [None, None, None, None, "too_long"]  # 1000 of context beside 900 to write
    reasons = [record["drop_reason"] for record in ingested(rows, configured(max_prompt_tokens=10))]
    assert reasons == [None, None, "too_long", "too_long", "too_long"]


def test_limit_reads_the_first_rows_and_no_more() -> None:
    taken = []

    def rows() -> Iterable[Row]:
        for i in range(100):
            taken.append(i)
            yield Row(None, "invalid_json") if i == 1 else Row(lmsys(i, user("hi")))

    records = ingested(rows(), configured(source={"limit": 5}, rows_per_shard=2))
    assert [record["source_row"] for record in records] == [0, 1, 2, 3, 4]
    assert taken == [0, 1, 2, 3, 4]
    assert ingested([]) == []


def test_ids_made_of_the_text() -> None:
    rows = [{"messages": [user(text) for text in turns]} for turns in (["a", "b"], ["ab"], ["a", "b"], ["ab"], ["ab"])]
    config = configured(turns="all")
    ids = [record["prompt_id"] for record in ingested(rows, config)]
    assert ids[0] == "6a93c5780b9861cdd8d2761a748d9591"  # fixed for ever: a published id must not move
    assert ids[2] == f"{ids[0]}-2"
    assert ids[3:] == [f"{ids[1]}-2", f"{ids[1]}-3"]
    assert ids[0] != ids[1]
    assert [record["prompt_id"] for record in ingested(rows, config)] == ids
    # A source whose own ids look like ours.
    stolen: list[dict[str, Any]] = [{"id": i, "messages": [user("x")]} for i in (ids[1], f"{ids[1]}-2")]
    assert [record["prompt_id"] for record in ingested(stolen + rows[3:], config)][2:] == [f"{ids[1]}-3", f"{ids[1]}-4"]
    # Null is no id; an integer is one; the first of several names that has a value counts.
    more: list[dict[str, Any]] = [
        {"id": None, "uuid": 7, "messages": [user("x")]},
        {"id": None, "messages": [user("ab")]},
    ]
    assert [record["prompt_id"] for record in ingested(more)] == ["7", ids[1]]


def test_the_first_kept_row_has_the_id() -> None:
    rows = [
        lmsys("a", user("")),
        lmsys("a", user("w " * 500)),
        lmsys("a", user("x")),
        lmsys("a", user("y")),
        lmsys("b", user("z")),
        lmsys("a", user("x"), assistant()),
        lmsys("a", user("y")),
    ]
    records = ingested(rows, configured(rows_per_shard=2))
    assert [record["drop_reason"] for record in records] == ["empty", "too_long", *[None] * 3, *["duplicate_id"] * 2]
    assert [record["prompt_id"] for record in records[:3]] == ["a", "a", "a"]
    assert [record["prompt_id"] for record in records[4:]] == ["b", "a", "a"]
    texts = bytes(8) + (1).to_bytes(8, "little") + b"y"  # no system prompt, and the turn, each after its length
    assert records[3]["prompt_id"] == "a-" + blake2b(texts, digest_size=16).hexdigest()[:16]


@pytest.mark.parametrize(
    ("turns", "flagged", "expected"),
    [
        ("first", [False, True, True, True], False),  # only answers, and a turn that is not kept
        ("all", [False, True, False, True], False),
        ("all", [False, False, True, False], True),
        ("first", [True, False, False, False], True),
        ("first", [None, False, False, False], None),
        ("first", ["yes", False, False, False], None),
        ("all", [False, True, None, True], None),
        ("first", [False], None),  # nobody knows which entry is about whom
        ("first", [False, False, False, True, False], True),
        ("first", [], None),
    ],
)
def test_moderation_entry_i_is_about_message_i(turns: str, flagged: list[Any], expected: bool | None) -> None:
    row = lmsys("a", user("one"), assistant(), user("two"), assistant(), flagged=flagged)
    (record,) = ingested([row], configured(turns=turns))
    assert record["moderation_flagged"] is expected


def test_moderation_counts_a_system_prompt_as_a_message() -> None:
    system = {"role": "system", "content": "Be brief."}
    for flags, expected in (([True, False, False], False), ([False, True, False], True)):
        (record,) = ingested([lmsys("a", system, user("one"), assistant(), flagged=flags)])
        assert (record["moderation_flagged"], record["system_prompt"]) == (expected, "Be brief.")


def test_wildchat_toxic_messages_are_flagged() -> None:
    row = wildchat("a")
    row["openai_moderation"] = None
    assert ingested([row])[0]["moderation_flagged"] is False
    row["conversation"][2]["toxic"] = True
    assert ingested([row])[0]["moderation_flagged"] is False
    assert ingested([row], configured(turns="all"))[0]["moderation_flagged"] is True


def test_turns_from_the_first_empty_one_on_are_left_out() -> None:
    row = lmsys(
        "a", user("one"), assistant(), user(" "), assistant(), user("three"), flagged=[False, False, False, False, True]
    )
    (record,) = ingested([row], configured(turns="all"))
    assert (record["user_turns"], record["moderation_flagged"]) == (["one"], False)


@pytest.mark.parametrize(
    "columns",
    [
        {"language": 3, "redacted": "no"},
        {"openai_moderation": 7},
        {"openai_moderation": ["x", None]},
        {"language": "\ud800"},
    ],
)
def test_columns_of_another_type_are_null(columns: dict[str, Any]) -> None:
    (record,) = ingested([lmsys("a", user("hi"), assistant(), **columns)])
    null = {"openai_moderation": "moderation_flagged"}
    assert record["drop_reason"] is None
    assert all(record[null.get(column, column)] is None for column in columns)


def test_text_is_kept_to_the_letter() -> None:
    text = "  <|im_start|>system\r\n\x00\u200d漢😀e\u0301 \ufeff "
    (record,) = ingested([lmsys("é/../漢", user(text))])
    assert (record["user_turns"], record["prompt_id"]) == ([text], "é/../漢")


def test_counting_only_where_it_may_matter_drops_the_same_rows(tokenizer: Any) -> None:
    """Real prompts, at a limit that many exceed: no row more, none less, and what is counted is counted right."""
    chat = Chat(tokenizer)
    source = {"path": str(CONVERSATIONS), "limit": 300}
    config = Config.model_validate(
        {**make_raw_config(Path("unused")), "source": source, "ingest": {"max_prompt_tokens": 300}}
    )
    short = functools.partial(chat.num_prompt_tokens, short=config.max_prompt_tokens)
    exact, quick = (
        pa.concat_tables(Ingest(config, count)(read_rows(config.source))) for count in (chat.num_prompt_tokens, short)
    )
    assert exact["drop_reason"].to_pylist().count("too_long") > 20
    assert exact.drop_columns(["num_prompt_tokens"]).equals(quick.drop_columns(["num_prompt_tokens"]))
    counted, known = quick["num_prompt_tokens"].to_pylist(), exact["num_prompt_tokens"].to_pylist()
    assert counted != known
    assert all(count in (None, right) for count, right in zip(counted, known, strict=True))
