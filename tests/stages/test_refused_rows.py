"""Rows that ingest refuses: each costs itself only, has the documented reason, and leaves no text behind."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages import ingest
from stillhouse.stages.ingest import REASONS, Ingest
from stillhouse.stages.sources import read_rows
from tests.support.data import CONVERSATIONS
from tests.support.ingesting import configured, ingested, num_words
from tests.support.source_rows import CANARY, KINDS, assistant, lmsys, mixed, user


@pytest.mark.parametrize("rows_per_shard", [1, 64, 10_000])
@pytest.mark.parametrize("turns", ["first", "all"])
def test_broken_rows_cost_themselves_only(turns: str, rows_per_shard: int, tmp_path: Path) -> None:
    data, expected = mixed(seed=rows_per_shard)
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    config = configured(path, turns=turns, languages=["English", "French"], rows_per_shard=rows_per_shard)
    shards = list(Ingest(config, num_words)(read_rows(config.source)))
    records = [record for shard in shards for record in shard.to_pylist()]
    assert [record["drop_reason"] for record in records] == expected
    assert sum(reason is not None for reason in expected) >= 200
    assert len(KINDS) >= 60
    # Conservation, and the partition.
    assert [record["source_row"] for record in records] == list(range(len(expected)))
    assert {len(shard) for shard in shards[:-1]} <= {rows_per_shard}
    kept = [record for record in records if record["drop_reason"] is None]
    assert sorted(record["prompt_id"] for record in kept) == sorted(f"good-{i}" for i in range(200))
    assert all(len(record["user_turns"]) == (1 if turns == "first" else 2) for record in kept)
    for record in records:
        assert record["source"] == "a.jsonl"
        if record["drop_reason"] is not None:
            text = ("user_turns", "system_prompt", "language", "redacted", "moderation_flagged", "num_prompt_tokens")
            assert [record[column] for column in text] == [None] * 6
    with_id = {"language", "too_long", "duplicate_id", "empty", "starts_with_assistant", "unknown_role", "no_user_turn"}
    without_id = {"invalid_json", "not_an_object"}
    assert all(record["prompt_id"] for record in records if record["drop_reason"] in with_id)
    assert not any(record["prompt_id"] for record in records if record["drop_reason"] in without_id)
    assert CANARY not in repr(records)


def test_every_reason_is_documented_and_met() -> None:
    constants = {
        value for name, value in vars(ingest).items() if name[0].isalpha() and name.isupper() and isinstance(value, str)
    }
    assert constants == set(REASONS)
    # Those have tests elsewhere: of sources, of purges, of personal information, of answers, of CSV.
    elsewhere = {"truncated_source", "row_too_large", "purged", "personal_information", "placeholder_names"}
    elsewhere |= {"unanswered", "malformed_ids", "invalid_csv", "no_teacher"}
    assert {reason for _, reason in KINDS} == constants - elsewhere


def test_broken_rows_in_parquet(tmp_path: Path) -> None:
    """The kinds that a column type still allows; the file's own type decides for the others, all rows alike."""
    elsewhere = {"invalid_json", "undecodable", "not_an_object", "transcript"}  # a Parquet row is always an object
    kinds = [(json.loads(line), reason) for line, reason in KINDS if reason not in elsewhere]
    type_ = pa.schema(
        [
            ("conversation_id", pa.string()),
            ("conversation", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
            ("language", pa.string()),
        ]
    )
    rows = [lmsys("good-0", user("question 0"))]
    expected: list[str | None] = [None]
    for value, reason in kinds:
        try:
            pa.Table.from_pylist([value], schema=type_)
        except (pa.ArrowException, TypeError, AttributeError, UnicodeEncodeError):
            continue
        rows += [value, lmsys(f"good-{len(rows)}", user("hi"), assistant())]
        expected += [reason, None]
    assert len({*expected}) >= 9
    table = pa.Table.from_pylist(rows, schema=type_)
    bad = pa.array([b"bad\xff", b"fine"], pa.binary()).view(pa.string())
    tail = pa.table(
        {"conversation_id": bad, "conversation": table["conversation"].take([0, 2]), "language": ["English"] * 2}
    )
    pq.write_table(pa.concat_tables([table, tail.cast(type_)]), tmp_path / "a.parquet")
    # Files in which a whole column has another type.
    others: dict[str, tuple[dict[str, list[Any]], str]] = {
        "b": ({"conversation_id": [1, 2], "conversation": ["text", "text"]}, "malformed_conversation"),
        "c": ({"conversation_id": [1.5], "conversation": [[user("hi")]]}, "language"),
        "d": (
            {"conversation_id": ["d"], "conversation": [[{"role": b"\xff", "content": b"hi"}]]},
            "malformed_conversation",
        ),
        "e": ({"conversation_id": ["e"], "conversation": [[user(b"\xff")]]}, "undecodable"),
        "f": ({"conversation_id": ["f"], "conversation": [[user("hi")]], "language": [5]}, "language"),
        "g": ({"something": ["else"]}, "missing_conversation"),
    }
    for name, (columns, reason) in others.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        expected_here: list[str | None] = [reason] * len(next(iter(columns.values())))
        expected += (["undecodable", None] if name == "b" else []) + expected_here
    config = configured(tmp_path, languages=["English"])
    records = ingested(read_rows(config.source), config)
    assert [record["drop_reason"] for record in records] == expected
    assert [record["source_row"] for record in records] == list(range(len(expected)))
    assert CANARY not in repr(records)


def test_the_same_source_gives_the_same_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(mixed(seed=5)[0])
    config = configured(path, rows_per_shard=100)
    first, second = (list(Ingest(config, num_words)(read_rows(config.source))) for _ in range(2))
    assert first == second
    whole = configured(path, rows_per_shard=10_000)
    assert pa.concat_tables(first).to_pylist() == ingested(read_rows(whole.source), whole)


@pytest.mark.skipif(not CONVERSATIONS.exists(), reason="the quick start's data is not here")
@pytest.mark.long
def test_real_conversations() -> None:
    config = configured(CONVERSATIONS, turns="all", rows_per_shard=4000, languages=["unknown"])
    config = config.model_copy(update={"source": SourceConfig(path=str(CONVERSATIONS), name="sharegpt")})
    shards = list(Ingest(config, lambda texts: [1] * len(texts))(read_rows(config.source)))
    assert [len(shard) for shard in shards] == [4000, 4000, 4000, 4000, 1671]
    table = pa.concat_tables(shards)
    assert table["source_row"].to_pylist() == list(range(17_671))
    kept = [record for record in table.to_pylist() if record["drop_reason"] is None]
    assert len({record["prompt_id"] for record in kept}) == len(kept)
    assert Counter(table["drop_reason"].to_pylist()) == {
        None: 11_168,
        "starts_with_assistant": 6222,
        "no_user_turn": 274,
        "empty": 7,
    }
    some = kept[::50]
    columns = pq.read_table(CONVERSATIONS, columns=["conversation_id", "conversation"])
    conversations = columns.take([record["source_row"] for record in some]).to_pylist()
    for record, row in zip(some, conversations, strict=True):
        assert row["conversation_id"] == record["prompt_id"]
        asked = [message["content"] for message in row["conversation"] if message["role"] == "user"]
        assert record["user_turns"] == asked[: len(record["user_turns"])]
        assert len(record["user_turns"]) == len(asked) or not asked[len(record["user_turns"])].strip()
