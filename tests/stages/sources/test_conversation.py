"""Spellings of a conversation: each row of docs/sources.md, as JSON and as Parquet, and the mapping for all else."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.stages.sources import conversation, read_rows
from tests.support.data import ROOT
from tests.support.ingesting import configured, ingested
from tests.support.source_rows import CANARY, assistant, lmsys, user

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [user("One?"), assistant(), user("Two?"), assistant()]
SHAREGPT = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": CANARY}, {"from": "human", "value": "Two?"}]
PAIRS = [{"human": "One?", "assistant": CANARY}, {"human": "Two?", "assistant": CANARY}]


def lists(messages: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [message[name] for message in messages] for name in messages[0]}


def renamed(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": m["content"]} for role, m in zip(roles, TURNS, strict=False)]


TOOLS = ("ipython", "tool_call", "tool_response")
TWO: dict[str, dict[str, Any]] = {
    "conversations with role and content": {"conversations": TURNS},
    "messages with from and value": {"messages": SHAREGPT},
    "conversation with from and value": {"conversation": SHAREGPT},
    "speaker and text": {"dialogue": [{"speaker": m["role"], "text": m["content"]} for m in TURNS]},
    "items, as ShareGPT's own export": {"items": SHAREGPT},
    "turns": {"turns": TURNS},
    "rounds": {"conversation": PAIRS},
    "rounds of question and answer": {"conversations": [{"question": "One?", "answer": CANARY}, {"question": "Two?"}]},
    "role and text as a pair": {"messages": [[m["role"], m["content"]] for m in TURNS]},
    "messages as a JSON text": {"messages": json.dumps(TURNS)},
    "messages as a list of JSON texts": {"messages": [json.dumps(m) for m in TURNS]},
    "messages as an object of lists": {"messages": lists(TURNS)},
    "conversations as an object of lists": {"conversations": lists(SHAREGPT)},
    "an object of lists as a JSON text": {"conversation": json.dumps(lists(TURNS))},
    "rounds as an object of lists": {"conversation": lists(PAIRS)},
    "content parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": m}]} for m in ("One?", "Two?")]
    },
    "content parts of responses": {
        "messages": [{"role": "user", "content": [{"type": "input_text", "text": m}]} for m in ("One?", "Two?")]
    },
    "Google's contents": {"contents": [{"role": "user", "parts": [{"text": m}]} for m in ("One?", "Two?")]},
    "ChatGPT's export": {
        "messages": [
            {"author": {"role": "user"}, "content": {"content_type": "text", "parts": [m]}} for m in ("One?", "Two?")
        ]
    },
    "Google's parts as texts": {"contents": [{"role": "user", "parts": [m]} for m in ("One?", "Two?")]},
    "TRL's prompt": {"prompt": TURNS, "completion": [assistant()]},
    "verl's prompt": {"prompt": TURNS[:3], "data_source": "x", "reward_model": {"ground_truth": CANARY}},
    "prompt as a JSON text of messages": {"prompt": json.dumps(TURNS)},
    "prompt as a list of turns": {"prompt": ["One?", "Two?"]},
    "turns as texts": {"turns": ["One?", "Two?"]},
    "chosen and rejected": {"chosen": TURNS, "rejected": TURNS},
    "LLaMA-Factory's history": {"instruction": "Two?", "output": CANARY, "history": [["One?", CANARY]]},
    "batch of chat completions": {"custom_id": "a", "method": "POST", "body": {"model": "m", "messages": TURNS}},
    "batch of responses": {"custom_id": "a", "body": {"input": TURNS}},
    "batch with its body as a JSON text": {"body": json.dumps({"messages": TURNS})},
    "Anthropic's batch": {"custom_id": "a", "params": {"messages": TURNS}},
    "Google's batch": {"request": {"contents": [{"role": "user", "parts": [{"text": m}]} for m in ("One?", "Two?")]}},
    "roles Human and Assistant": {"messages": renamed("Human", "Assistant", "Human")},
    "roles User and Bot": {"messages": renamed("User", "Bot", "User")},
    "roles USER and CHATBOT": {"messages": renamed("USER", "CHATBOT", "USER", "CHATBOT")},
    "roles prompter and ai": {"messages": renamed("prompter", "ai", "prompter")},
    "roles of tools": {"messages": [*TURNS[:2], *({"role": r, "content": CANARY} for r in TOOLS), *TURNS[2:]]},
    "a union of columns, null but one": {"conversation": None, "messages": None, "conversations": SHAREGPT},
    "a union of columns, empty but one": {"conversation": [], "messages": "", "conversations": SHAREGPT},
    "a union of fields, empty but one": {
        "messages": [{"role": "user", "from": "", "content": "", "text": " ", "value": m} for m in ("One?", "Two?")]
    },
}
ONE: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "One?", "completion": CANARY},
    "instruction": {"instruction": "One?", "output": CANARY},
    "an empty input": {"instruction": "One?", "input": "", "output": CANARY},
    "question": {"question": "One?", "answer": CANARY},
    "problem": {"problem": "One?", "solution": CANARY},
    "query": {"query": "One?", "response": CANARY},
    "text": {"text": "One?"},
    "input": {"input": "One?", "output": CANARY},
    "batch of responses, a text": {"body": {"input": "One?"}},
    "a table of messages": {"role": "prompter", "text": "One?"},
    "a number of turns beside": {"turns": 2, "prompt": "One?"},
    "no messages": {"messages": [], "prompt": "One?"},
    "an empty prompt": {"prompt": "", "instruction": " ", "question": "One?"},
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "system": {"system": "Be brief.", "conversations": SHAREGPT},
    "system_prompt": {"system_prompt": "Be brief.", "question": "One?", "response": CANARY},
    "instructions of responses": {"body": {"input": "One?", "instructions": "Be brief."}},
    "system of Anthropic's batch": {"params": {"messages": TURNS, "system": [{"type": "text", "text": "Be brief."}]}},
    "systemInstruction": {
        "request": {
            "contents": [{"role": "user", "parts": [{"text": "One?"}]}],
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
        }
    },
    "systemInstruction with a text": {
        "request": {
            "contents": [{"role": "user", "parts": [{"text": "One?"}]}],
            "systemInstruction": {"text": "Be brief."},
        }
    },
    "a message": {"system": SYSTEM, "messages": TURNS},
    "a message with a value": {"system": {"from": "system", "value": "Be brief."}, "conversations": SHAREGPT},
    "one of two is empty": {"system": " ", "system_prompt": "Be brief.", "prompt": "One?"},
    "system in a round with capitals": {
        "conversation": [{"system": "Be brief.", "Human": "One?", "Assistant": CANARY}]
    },
    "system in a round": {"conversation": [{"system": "Be brief.", "human": "One?", "assistant": CANARY}]},
    "both": {"system": "Be brief.", "messages": [SYSTEM, *TURNS]},
    "role System": {"messages": [{"role": "System", "content": "Be brief."}, *TURNS]},
}


def write(row: dict[str, Any], path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "turns", "system"),
    [
        *(pytest.param(row, ["One?", "Two?"], None, id=name) for name, row in TWO.items()),
        *(pytest.param(row, ["One?"], None, id=name) for name, row in ONE.items()),
        *(pytest.param(row, None, "Be brief.", id=f"system: {name}") for name, row in SYSTEMS.items()),
    ],
)
def test_spelling(
    row: dict[str, Any], turns: list[str] | None, system: str | None, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    try:
        write(row, path)
    except pa.ArrowException:
        pytest.skip("no column can hold it")
    config = configured(path, turns="all")
    (record,) = ingested(read_rows(config.source), config)
    assert record["drop_reason"] is None
    assert record["user_turns"] == (turns or record["user_turns"])
    assert record["user_turns"][0] == "One?"
    assert record["system_prompt"] == system
    assert CANARY not in repr(record)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [], "conversation": []}, "no_user_turn"),
        ({"prompt": "", "question": " "}, "empty"),
        ({"messages": [{"role": "user", "content": "", "value": " "}]}, "empty"),
        ({"conversations": ""}, "malformed_conversation"),
        ({"conversations": "[{'human': 'x', 1: 'y'}]"}, None),
        ({"conversations": "[{2: 'x', 1: 'y'}]"}, "malformed_conversation"),
    ],
)
def test_what_holds_nothing_has_a_reason(row: dict[str, Any], reason: str | None) -> None:
    assert ingested([row])[0]["drop_reason"] == reason


def in_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: in_bytes(item) for name, item in value.items()}
    return (
        value.encode() if isinstance(value, str) else [in_bytes(v) for v in value] if isinstance(value, list) else value
    )


BINARY: dict[str, dict[str, Any]] = {
    "messages": {"messages": TURNS[:3]},
    "rounds": {"conversation": PAIRS},
    "messages as a JSON text": {"messages": json.dumps(TURNS[:3])},
    "a batch as a JSON text": {"body": json.dumps({"messages": TURNS})},
    "a prompt": {"prompt": "One?"},
    "a list of turns": {"prompt": ["One?", "Two?"]},
    "an instruction": {"instruction": "Say:", "input": "One?"},
    "a system prompt": {"prompt": "One?", "system": "Be brief."},
    "an answer in a table of messages": {"role": "assistant", "text": CANARY},
}


@pytest.mark.parametrize("name", BINARY)
def test_bytes_are_texts(name: str, tmp_path: Path) -> None:
    row = BINARY[name] | {"id": b"a\nb".hex(), "language": "en"}
    write(in_bytes(row) | {"id": b"a\nb"}, tmp_path / "a.parquet")
    config = configured(tmp_path / "a.parquet", turns="all")
    (record,) = ingested(read_rows(config.source), config)
    assert record == ingested([row], configured(tmp_path / "a.parquet", turns="all"))[0]


def test_bytes_that_are_no_text_are_told() -> None:
    rows: list[dict[str, Any]] = [{"prompt": b"\xff"}, {"messages": [user("One?") | {"content": b"\xff"}]}]
    rows += [{"messages": b"\xff"}, {"instruction": "Say:", "input": b"\xff"}, {"prompt": "One?", "system": b"\xff"}]
    assert [record["drop_reason"] for record in ingested(rows)] == ["undecodable"] * 5


def test_a_system_prompt_is_kept_or_its_row_is_refused() -> None:
    systems: list[Any] = [{"role": "system", "content": None}, {"parts": []}, "", {"says": "Be brief."}, 5, None]
    found = ingested([{"system": system, "prompt": "One?", "id": i} for i, system in enumerate(systems)])
    assert [record["drop_reason"] for record in found] == [None, None, None, "not_text", "not_text", None]
    config = configured(source={"columns": {"content": "said", "conversation": "log", "role": "who"}})
    (record,) = ingested([{"log": [{"who": "user", "said": "One?"}], "system": SYSTEM}], config)
    assert record["system_prompt"] == "Be brief."


def test_instruction_has_its_input() -> None:
    rows = [
        {"instruction": "Translate.", "input": "Bonjour"},
        {"instruction": "Answer.", "context": "Paris is big."},
        {"instruction": "Go.", "input": None, "context": " "},
    ]
    turns = [record["user_turns"] for record in ingested(rows)]
    assert turns == [["Translate.\n\nBonjour"], ["Answer.\n\nParis is big."], ["Go."]]


def test_a_bare_list_of_messages_is_a_row() -> None:
    assert ingested([TURNS])[0]["user_turns"] == ["One?"]


def test_answers_in_plain_columns_do_not_pass_for_the_users_words() -> None:
    rows: list[dict[str, Any]] = [
        {"role": "assistant", "text": CANARY},
        {"text": f"### Human: hi\n### Assistant: {CANARY}"},
        {"chosen": f"\n\nHuman: hi\n\nAssistant: {CANARY}"},
    ]
    records = ingested(rows)
    assert [record["drop_reason"] for record in records] == ["no_user_turn", "transcript", "missing_conversation"]
    # What only looks like one is kept.
    fine = ["Human: what is a bot?", "Write '### Assistant:' twice", "AI: friend or foe?", '["a", "b"]', "{not: json}"]
    assert [r["user_turns"] for r in ingested([{"text": text} for text in fine])] == [[text] for text in fine]
    # A `prompt` may end where the answer begins, and may tell of one.
    prompts = ["Human: hi\n\nAssistant:", "### Instruction:\nhi\n\n### Response:\n", "User: a\nBot: b\nWho is right?"]
    assert [r["user_turns"] for r in ingested([{"prompt": text} for text in prompts])] == [[text] for text in prompts]


MAPPED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "columns": (
        {
            "key": 5,
            "chat": [{"wer": "Kunde", "was": "One?"}, {"wer": "Bot", "was": CANARY}, {"wer": "Kunde", "was": "Two?"}],
        },
        {"columns": {"conversation": "chat", "role": "wer", "content": "was", "id": "key"}, "roles": {"Kunde": "user"}},
    ),
    "paths": (
        {
            "meta": {"key": "5"},
            "data": {"log": [{"by": {"kind": "user"}, "said": {"raw": m}} for m in ("One?", "Two?")]},
        },
        {"columns": {"conversation": "data.log", "role": "by.kind", "content": "said.raw", "id": "meta.key"}},
    ),
    "a text": ({"frage": "One?", "antwort": CANARY, "nr": "5"}, {"columns": {"conversation": "frage", "id": "nr"}}),
    "one of two": (
        {"messages": [assistant()], "alt": TURNS, "nr": 5, "sys": "Be brief."},
        {"columns": {"conversation": "alt", "id": "nr", "system": "sys"}},
    ),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", MAPPED)
def test_a_mapping_for_all_else(name: str, suffix: str, tmp_path: Path) -> None:
    row, source = MAPPED[name]
    write(row, tmp_path / f"a.{suffix}")
    config = configured(tmp_path / f"a.{suffix}", source)
    (record,) = ingested(read_rows(config.source), config)
    assert (record["drop_reason"], record["user_turns"], record["prompt_id"]) == (None, ["One?"], "5")
    assert CANARY not in repr(record)
    if name == "one of two":
        assert record["system_prompt"] == "Be brief."
    plain = configured(tmp_path / f"a.{suffix}")
    assert ingested(read_rows(plain.source), plain)[0]["drop_reason"] is not None


def test_a_mapped_text_is_no_whole_conversation_either() -> None:
    config = configured(source={"columns": {"conversation": "chat"}})
    (record,) = ingested([{"chat": f"Human: hi\nAssistant: {CANARY}"}], config)
    assert record["drop_reason"] == "transcript"


def test_a_mapped_language_is_what_counts() -> None:
    config = configured(source={"columns": {"language": "meta.lang"}}, languages=["de"])
    rows = [lmsys(i, user("hi"), meta={"lang": lang}) for i, lang in enumerate(["de", "en"])]
    assert [record["drop_reason"] for record in ingested(rows, config)] == [None, "language"]


def test_the_page_of_sources_names_every_spelling() -> None:
    page = (ROOT / "docs/sources.md").read_text().partition("## Files")[0]
    names = set(re.findall(r"[\w.]+", page))
    tuples = [value for value in vars(conversation).values() if isinstance(value, tuple)]
    spelled = {name for value in tuples for name in value if isinstance(name, str)}
    assert len(spelled) > 50
    assert {*spelled, *conversation.ROLES} <= names
    # And it tells whose turn a role is.
    of = dict(re.findall(r"^\| (the user|the assistant|the system prompt|neither) \| (.*) \|$", page, re.M))
    whose = {"user": "the user", "assistant": "the assistant", "system": "the system prompt", "tool": "neither"}
    assert {name: whose[role] for name, role in conversation.ROLES.items()} == {
        name: who for who, roles in of.items() for name in roles.split(", ")
    }
