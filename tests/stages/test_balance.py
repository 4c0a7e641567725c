"""Quotas against counts made by hand, and against a plain search for the share that they ask for."""

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from stillhouse.schemas.config import BalanceConfig, ConfigError
from stillhouse.stages.balance import SKETCH, Sketch, assign, assignment_schema, mark
from stillhouse.stages.kinds.topics import terms, topics

TOPICS = {
    "cooking": "bake bread oven flour dough yeast recipe butter salt pan simmer sauce garlic onion".split(),  # noqa: SIM905
    "space": "planet orbit rocket moon star galaxy telescope astronaut comet gravity launch mars saturn".split(),  # noqa: SIM905
    "law": "court judge contract lawyer clause tenant lease appeal verdict statute plaintiff liability".split(),  # noqa: SIM905
    "dogs": "puppy leash bark vet breed collar kennel paw tail fetch terrier groom walk treat".split(),  # noqa: SIM905
}


def prompts(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "prompt_id": pa.array([row["id"] for row in rows], pa.string()),
            "user_turns": pa.array([row.get("turns", ["hello"]) for row in rows], pa.list_(pa.string())),
            "language": pa.array([row.get("language") for row in rows], pa.string()),
        }
    )


def balanced(rows: list[dict[str, Any]], config: BalanceConfig, size: int = 7) -> dict[str, dict[str, Any]]:
    """The marked rows by id, in shards of `size`."""
    shards = [prompts(rows[start : start + size]) for start in range(0, len(rows), size)]
    assignments = assign([Sketch(config)(shard) for shard in shards], config)
    marked = [mark(shard, assignment) for shard, assignment in zip(shards, assignments, strict=True)]
    return {row["prompt_id"]: row for table in marked for row in table.to_pylist()}


def kept(found: dict[str, dict[str, Any]], column: str = "language") -> Counter[Any]:
    return Counter(row[column] for row in found.values() if row["drop_reason"] is None)


def rows_of(counts: dict[str | None, int]) -> list[dict[str, Any]]:
    return [{"id": f"{name}{i}", "language": name} for name, many in counts.items() for i in range(many)]


def quota(**values: Any) -> BalanceConfig:
    return BalanceConfig.model_validate({"quotas": [values]})


def test_no_group_has_more_rows_than_it_may() -> None:
    found = balanced(rows_of({"en": 50, "de": 12, "fr": 3, None: 20}), quota(by=["language"], max_rows=12))
    assert kept(found) == {"en": 12, "de": 12, "fr": 3, None: 12}
    assert {row["drop_reason"] for row in found.values()} == {None, "over_quota"}


def test_rows_are_chosen_by_their_ids_alone() -> None:
    rows, config = rows_of({"en": 60, "de": 30}), quota(by=["language"], max_rows=10)
    expected = balanced(rows, config)
    for seed, size in ((1, 1), (2, 13), (3, 1000)):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert balanced(shuffled, config, size) == expected
    more = balanced(rows, quota(by=["language"], max_rows=20))
    assert all(more[name]["drop_reason"] is None for name, row in expected.items() if row["drop_reason"] is None)
    first = [name for name, row in expected.items() if row["drop_reason"] is None and row["language"] == "en"]
    assert sorted(first) != sorted(f"en{i}" for i in range(10)), "not the first rows of the source"


@pytest.mark.parametrize(
    ("counts", "share"),
    [({"a": 900, "b": 100, "c": 50}, 0.5), ({"a": 900, "b": 800, "c": 50, "d": 10}, 0.4), ({"a": 10, "b": 10}, 0.5),
     ({"a": 5, "b": 4, "c": 3}, 0.34), ({"a": 5}, 1.0), ({"a": 1000, "b": 1}, 0.6), ({"a": 7, "b": 7, "c": 900}, 0.8)],
)  # fmt: skip
def test_a_share_is_of_what_is_left_and_no_more_goes_than_must(counts: dict[str | None, int], share: float) -> None:
    found = kept(balanced(rows_of(counts), quota(by=["language"], max_share=share), 100))
    # The plain way: the largest cap at which no group is beyond its share.
    best = max(
        cap
        for cap in range(1, max(counts.values()) + 1)
        if all(min(many, cap) <= share * sum(min(n, cap) for n in counts.values()) + 1e-9 for many in counts.values())
    )
    assert found == {name: min(many, best) for name, many in counts.items()}


def test_a_share_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"quotas\[0\]: 3 groups of language cannot have at most 0\.3"):
        balanced(rows_of({"a": 9, "b": 5, "c": 4}), quota(by=["language"], max_share=0.3))


def test_quotas_apply_one_after_the_other_and_together() -> None:
    rows = [
        {"id": f"{language}{size}{i}", "language": language, "turns": ["x" * size]}
        for language in ("en", "de")
        for size in (10, 100)
        for i in range(20)
    ]
    config = BalanceConfig.model_validate(
        {"quotas": [{"by": ["language", "length"], "max_rows": 8}, {"by": ["language"], "max_rows": 10}]}
    )
    found = balanced(rows, config)
    assert kept(found) == {"en": 10, "de": 10}
    each = Counter((row["language"], len(row["user_turns"][0])) for row in found.values() if row["drop_reason"] is None)
    assert max(each.values()) <= 8
    one = balanced(rows, BalanceConfig.model_validate({"quotas": [{"by": ["language", "length"], "max_rows": 8}]}))
    assert len([row for row in one.values() if row["drop_reason"] is None]) == 32


def test_rows_that_are_gone_take_no_place_of_others() -> None:
    rows = [{"id": f"{size}-{i}", "turns": ["x" * size]} for size, many in ((10, 60), (100, 4)) for i in range(many)]
    quotas = [{"by": ["length"], "max_rows": 4}, {"by": ["language"], "max_rows": 7}]
    found = balanced(rows, BalanceConfig.model_validate({"quotas": quotas}))
    assert sum(row["drop_reason"] is None for row in found.values()) == 7


def test_weights_make_groups_count_as_much_as_rows_would() -> None:
    counts: dict[str | None, int] = {"en": 80, "de": 15, "fr": 5}
    config = BalanceConfig.model_validate({"quotas": [{"by": ["language"], "max_rows": 10}], "over": "weight"})
    found = balanced(rows_of(counts), config)
    assert {row["drop_reason"] for row in found.values()} == {None}
    weights = {name: {row["weight"] for row in found.values() if row["language"] == name} for name in counts}
    assert {name: [round(weight, 6) for weight in of_name] for name, of_name in weights.items()} == {
        "en": [0.125], "de": [0.666667], "fr": [1.0]
    }  # fmt: skip
    shares = BalanceConfig.model_validate({"quotas": [{"by": ["language"], "max_share": 0.5}], "over": "weight"})
    found = balanced(rows_of(counts), shares)
    mass = {name: sum(row["weight"] for row in found.values() if row["language"] == name) for name in counts}
    assert mass["en"] == pytest.approx(0.5 * sum(mass.values()))


def test_the_language_that_screen_found_counts() -> None:
    table = prompts([{"id": "a", "language": "English"}, {"id": "b"}])
    sketch = Sketch(quota(by=["language"], max_rows=1))
    assert sketch(table)["language"].to_pylist() == ["English", "unknown"]
    told = table.append_column("prompt_language", pa.array(["de", None], pa.string()))
    assert sketch(told)["language"].to_pylist() == ["de", "unknown"]


def planted(number: int) -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [
        {"id": f"{name}-{i}", "turns": ["please tell me about " + " ".join(rng.sample(words, 5))], "topic": name}
        for name, words in TOPICS.items()
        for i in range(number if name != "dogs" else 4 * number)
    ]


def test_topics_are_what_rows_are_about() -> None:
    rows = planted(60)
    config = BalanceConfig.model_validate({"quotas": [{"by": ["topic"], "max_rows": 60}], "topics": 4})
    found = balanced(rows, config)
    groups: dict[int, Counter[str]] = {}
    for row in rows:
        groups.setdefault(found[row["id"]]["prompt_topic"], Counter())[row["topic"]] += 1
    right = sum(group.most_common(1)[0][1] for group in groups.values())
    assert right / len(rows) > 0.95, groups
    assert set(groups) == {0, 1, 2, 3}
    assert groups[0].most_common(1)[0][0] == "dogs", "the largest is the first"
    assert max(kept(found, "prompt_topic").values()) == 60
    shuffled = random.Random(2).sample(rows, len(rows))
    assert balanced(shuffled, config, 31) == found


def test_topics_of_few_rows_and_of_rows_without_words() -> None:
    empty = terms(" ?! ")
    assert len(empty) == 0
    assert topics([], 4, 1).tolist() == []
    assert topics([empty, terms("cats"), terms("dogs"), empty], 4, 1).tolist() == [-1, 0, 1, -1]
    same = [terms("what is a cat")] * 30
    assert set(topics(same, 3, 1).tolist()) <= {0, 1, 2}
    config = BalanceConfig.model_validate({"quotas": [{"by": ["topic"], "max_rows": 2}], "topics": 2})
    rows = [{"id": str(i), "turns": ["?!"]} for i in range(5)]
    found = balanced(rows, config)
    assert {row["prompt_topic"] for row in found.values()} == {None}
    assert sum(row["drop_reason"] is None for row in found.values()) == 2


def test_terms_of_scripts_without_spaces_are_pairs() -> None:
    shared = set(terms("我的狗不吃东西").tolist()) & set(terms("我的狗很可爱").tolist())
    assert len(shared) == 2  # 我的, 的狗
    assert set(terms("dog cat").tolist()) == set(terms("CAT, dog!").tolist())


def test_another_shards_assignment_is_refused() -> None:
    config = quota(by=["language"], max_rows=1)
    [one] = assign([Sketch(config)(prompts(rows_of({"a": 2})))], config)
    with pytest.raises(ValueError, match="is not for this shard"):
        mark(prompts(rows_of({"b": 2})), one)


def test_no_rows() -> None:
    config = BalanceConfig.model_validate({"quotas": [{"by": ["topic", "task", "language", "length"], "max_rows": 1}]})
    sketch = Sketch(config)(prompts([]))
    assert sketch.schema == SKETCH
    assert assign([], config) == []
    [only] = assign([sketch], config)
    assert only.schema == assignment_schema(config)
    assert only.column_names == ["prompt_id", "prompt_task", "prompt_topic", "drop_reason"]


@pytest.mark.parametrize(
    "values", [{"by": ["language"]}, {"by": ["language"], "max_rows": 1, "max_share": 0.5}, {"by": [], "max_rows": 1},
               {"by": ["colour"], "max_rows": 1}, {"by": ["topic"], "max_share": 0}]
)  # fmt: skip
def test_quotas_that_say_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="quotas"):
        quota(**values)
