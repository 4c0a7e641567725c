"""What ingest and review do with personal information."""

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from stillhouse.schemas import tables
from stillhouse.schemas.config import (
    Config,
    PersonalConfig,
    ReviewConfig,
    ScoreConfig,
    config_hash,
    deciding_values,
)
from stillhouse.stages.ingest import Ingest
from stillhouse.stages.review import Review, Sketch, assign
from stillhouse.stages.sources import Row
from tests.support.ingesting import configured, ingested, num_words

MAIL = "write to anna@web.de"


def conversation(*turns: str, system: str | None = None) -> dict[str, Any]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*before, *({"role": "user", "content": turn} for turn in turns)]}


def with_personal(personal: dict[str, Any], **ingest: Any) -> Config:
    return configured(**ingest).model_copy(update={"personal": PersonalConfig(**personal)})


def test_masked_before_anything_is_made_of_it() -> None:
    rows = [conversation(MAIL, "and anna@web.de", system="I am bob@web.de"), conversation("hello")]
    first, second = ingested(rows, with_personal({}, turns="all"))
    assert first["user_turns"] == ["write to EMAIL_1", "and EMAIL_1"]
    assert first["system_prompt"] == "I am EMAIL_2"
    assert first["prompt_personal"]["email"] == 3
    assert second["user_turns"] == ["hello"]
    assert set(second["prompt_personal"].values()) == {0}
    # Ids are made of the masked text: a digest of the other would be a test for guesses of the address.
    masked = conversation("write to EMAIL_1", "and EMAIL_1", system="I am EMAIL_2")
    assert ingested([masked], configured(turns="all"))[0]["prompt_id"] == first["prompt_id"]


def test_answers_of_the_source_have_the_marks_of_its_questions() -> None:
    messages = [
        {"role": "user", "content": MAIL},
        {"role": "assistant", "content": "To anna@web.de, not bob@web.de?"},
        {"role": "user", "content": "To bob@web.de."},
        {"role": "assistant", "content": "Done."},
    ]
    config = with_personal({}, turns="all").model_copy(update={"task": "score", "score": ScoreConfig()})
    (table,) = Ingest(config, num_words)([Row({"messages": messages})])
    (row,) = table.to_pylist()
    assert row["user_turns"] == ["write to EMAIL_1", "To EMAIL_2."]
    assert row["answers"] == ["To EMAIL_1, not EMAIL_2?", "Done."]
    assert row["prompt_personal"]["email"] == 4
    assert "web.de" not in str(row)


def test_dropped_from_a_number_of_finds_on() -> None:
    rows = [conversation(MAIL), conversation(f"{MAIL} or bob@web.de"), conversation("no")]
    one, two, none = ingested(rows, with_personal({"prompts": "drop", "drop_from": 2}))
    assert [row["drop_reason"] for row in (one, two, none)] == [None, "personal_information", None]
    assert one["user_turns"] == [MAIL]
    assert two["user_turns"] is None
    assert two["prompt_personal"]["email"] == 2


def test_kept_rows_are_counted() -> None:
    (row,) = ingested([conversation(MAIL)], with_personal({"prompts": "keep"}))
    assert row["user_turns"] == [MAIL]
    assert row["prompt_personal"]["email"] == 1


def test_placeholders_are_a_switch_of_their_own() -> None:
    rows = [conversation(f"NAME_1 says {MAIL}")]
    for placeholders, reason, counted in (("drop", "placeholder_names", 1), ("keep", None, 1), (None, None, None)):
        (row,) = ingested(rows, with_personal({"placeholders": placeholders}))
        assert row["drop_reason"] == reason
        assert row["prompt_personal"].get("placeholder") == counted


def reviewed(answers: list[str], personal: PersonalConfig | None) -> pa.Table:
    rows = [
        {
            "sample_id": f"{n}/0",
            "messages": [{"role": "user", "content": MAIL}, {"role": "assistant", "content": answer}],
            "labels": [1],
            "finish_reasons": ["stop"],
            "language": "English",
        }
        for n, answer in enumerate(answers)
    ]
    table, config = pa.Table.from_pylist(rows, tables.completions([])), ReviewConfig()
    (assignment,) = assign([Sketch(config)(table)], config)
    return Review(config, [], personal=personal)(table, assignment)


def test_answers_are_dropped_or_counted() -> None:
    answers = ["Mail bob@web.de or call (212) 736-5000.", "NAME_1 is fine.", "Yes."]
    config = PersonalConfig(placeholders="drop")
    table = reviewed(answers, config)
    assert table["drop_reason"].to_pylist() == ["personal_information", "placeholder_names", None]
    assert table.schema.field("response_personal") == tables.reviewed([], kinds=config.counted).field(
        "response_personal"
    )
    counts = table["response_personal"].to_pylist()
    assert (counts[0]["email"], counts[0]["phone"], counts[1]["placeholder"], sum(counts[2].values())) == (1, 1, 1, 0)
    kept = reviewed(answers, PersonalConfig(answers="keep"))
    assert kept["drop_reason"].null_count == 3
    assert kept["response_personal"].to_pylist()[0]["email"] == 1
    assert "response_personal" not in reviewed(answers, None).column_names


def test_configurations_without_it_are_what_they_were() -> None:
    config = configured()
    assert not [key for key in deciding_values(config) if "personal" in key]
    assert config_hash(with_personal({})) != config_hash(config)
    assert config_hash(with_personal({"answers": "keep"})) != config_hash(with_personal({}))


def test_kinds_are_checked() -> None:
    values: list[dict[str, Any]] = [
        {"kinds": ["name"]},
        {"kinds": []},
        {"prompts": "hide"},
        {"answers": "mask"},
        {"drop_from": 0},
    ]
    for wrong in values:
        with pytest.raises(ValidationError):
            PersonalConfig(**wrong)
