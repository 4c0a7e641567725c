"""A mixture of teachers: every row has the draws of all of them, and the mean of their probabilities."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.look import check
from stillhouse.pipeline.run import driver
from stillhouse.pipeline.run.pool import LocalPool
from stillhouse.schemas.config import Config, ConfigError, absolute, validated
from tests.support import fake_teacher
from tests.support.command import contents
from tests.support.inline_pool import Kept, run_inline
from tests.support.teaching import TEMPLATE, alone, make_raw_teachers, published_rows
from tests.support.undisturbed import ROWS, killed_again_and_again

Raw = dict[str, Any]


def make_raw_mixture(folder: Path) -> Raw:
    raw = make_raw_teachers(folder)
    del raw["sampling"]
    for teacher in raw["teachers"]:
        for key in ("when", "system_prompts", "chat_template"):
            teacher.pop(key, None)
        teacher["max_model_len"] = 440
    targets = {"method": "sampled", "top_k": 8, "num_draws": 16}
    return raw | {"task": "score", "mixture": "average", "targets": targets, "sampling": {"seed": 5}}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Raw:
    return make_raw_mixture(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def finished(raw: Raw) -> tuple[Config, dict[str, Any]]:
    config = absolute(Config.model_validate(raw))
    return config, run_inline(config)[0]


def draws_of(row: dict[str, Any]) -> list[Counter[int]]:
    """How often each id was drawn, by token."""
    found, start = [], 0
    for length in row["draw_lengths"]:
        end = start + length
        assert row["draw_ids"][start:end] == sorted(set(row["draw_ids"][start:end]))
        found.append(Counter(dict(zip(row["draw_ids"][start:end], row["draw_counts"][start:end], strict=True))))
        start = end
    return found


def test_draws_are_those_of_all_and_probabilities_their_mean(raw: Raw, finished: tuple[Config, dict[str, Any]]) -> None:
    mixed = published_rows(finished[0])
    singles = []
    for number, name in enumerate(finished[0].teacher_names):
        single = alone({key: value for key, value in raw.items() if key != "mixture"}, number, name)
        single |= {"targets": {**raw["targets"], "num_draws": 8}, "sampling": {"seed": 5 + number}}
        config = Config.model_validate(single)
        run_inline(config)
        singles.append(published_rows(config))
    assert len(mixed) == ROWS
    for name, row in mixed.items():
        first, second = (single[name] for single in singles)
        assert draws_of(row) == [a + b for a, b in zip(draws_of(first), draws_of(second), strict=True)]
        assert {sum(counts.values()) for counts in draws_of(row)} == {16}
        mean = (np.exp(first["token_logprobs"]) + np.exp(second["token_logprobs"])) / 2
        np.testing.assert_allclose(np.exp(row["token_logprobs"]), mean, rtol=1e-5)
        changed = {"draw_ids", "draw_counts", "draw_lengths", "num_draws", "token_logprobs", "probe"}
        assert {key for key in row if row[key] != first[key]} <= changed
        assert (row["num_draws"], row["probe"]) == (16, None)
    assert draws_of(singles[0]["row-0/0"]) != draws_of(singles[1]["row-0/0"])


def test_the_dataset_is_what_it_says(finished: tuple[Config, dict[str, Any]]) -> None:
    config, manifest = finished
    found = verify(config.run_dir, num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
    assert [teacher["rows"] for teacher in manifest["teachers"]] == [manifest["rows"]] * 2
    card = (Path(config.run_dir) / "dataset/README.md").read_text()
    assert "the average of their distributions" in card
    assert card.count("| all rows |") == 2


@pytest.mark.slow
def test_killed_at_any_step(finished: tuple[Config, dict[str, Any]], tmp_path: Path) -> None:
    config = finished[0].model_copy(update={"run_dir": str(tmp_path / "run")})
    steps = random.Random(1)
    kills = killed_again_and_again(config, Path(finished[0].run_dir), iter(lambda: steps.randint(60, 200), None))
    assert kills >= 4


@pytest.mark.slow
@pytest.mark.long
def test_number_of_workers_changes_no_byte(finished: tuple[Config, dict[str, Any]], tmp_path: Path) -> None:
    resources = finished[0].resources.model_dump() | {"score": {"max_workers": 2, "num_cpus": 0.1}}
    changes = {"resources": type(finished[0].resources).model_validate(resources), "run_dir": str(tmp_path / "run")}
    driver.run(finished[0].model_copy(update=changes), Kept(), LocalPool())
    assert contents(tmp_path / "run") == contents(Path(finished[0].run_dir))


def test_what_one_refuses_none_has(
    finished: tuple[Config, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second teacher refuses two conversations of a shard; all others are as they were."""
    monkeypatch.setenv("FAKE_TEACHER_REFUSES", "row-2")  # and row-20 to row-29
    score = fake_teacher.FakeTeacher.score

    async def only_first(self: Any, token_ids: Any, supervised: Any, request_id: str, *rest: Any) -> Any:
        name = request_id if type(self).__name__ == "OtherTeacher" else "any"
        return await score(self, token_ids, supervised, name, *rest)

    monkeypatch.setattr(fake_teacher.FakeTeacher, "score", only_first)
    config = finished[0].model_copy(update={"run_dir": str(tmp_path / "run")})
    manifest, _ = run_inline(config)
    assert manifest["stages"]["score"]["dropped"] == {"teacher_failed": 11}
    mine, theirs = published_rows(config), published_rows(finished[0])
    assert mine == {name: row for name, row in theirs.items() if not name.startswith("row-2")}


def test_templates_must_be_one(raw: Raw, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = Path(raw["teachers"][0]["model"])
    other.mkdir()
    for file in model.iterdir():
        if not file.name.startswith("chat_template"):
            (other / file.name).symlink_to(file)
    (other / "chat_template.jinja").write_text(TEMPLATE)
    teachers = [raw["teachers"][0], {**raw["teachers"][1], "model": str(other)}]
    config = Config.model_validate(raw | {"teachers": teachers, "run_dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match="counts and codes have different chat templates"):
        check.check(config, rows=5, tokens_per_second=1000)


def test_check_counts_the_engines_of_all(raw: Raw, tmp_path: Path) -> None:
    raw = raw | {"run_dir": str(tmp_path / "run"), "source": {**raw["source"], "limit": ROWS}}
    raw["teachers"] = [teacher | {"engine": {"tensor_parallel_size": 4}} for teacher in raw["teachers"]]
    one = alone({key: value for key, value in raw.items() if key != "mixture"}, 0, "one")
    hours = [
        check.check(Config.model_validate(each), rows=ROWS, tokens_per_second=0.01)["estimate"]["max_gpu_hours"]
        for each in (raw, one)
    ]
    assert hours[0] == pytest.approx(2 * hours[1], rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(targets={"method": "both", "num_draws": 16}), "nothing else that is stored adds up"),
        (lambda raw: raw.update(task="generate", sampling={"max_tokens": 9}), "set task to score"),
        (lambda raw: raw["targets"].update(entropy=True), "nobody knows the entropy of an average"),
        (lambda raw: raw["targets"].update(keep={"fraction": 0.5}), "nobody knows the entropy of an average"),
        (lambda raw: raw["targets"].update(num_draws=15), "a multiple of their number"),
        (lambda raw: raw.update(teachers=raw["teachers"][:1]), "name two or more"),
        (lambda raw: raw["teachers"][1].update(when={"x": ["y"]}), "remove `when` of codes"),
        (lambda raw: raw["teachers"][1].update(max_model_len=500), "max_model_len of codes is another one"),
        (lambda raw: raw["teachers"][1].update(system_prompts="source"), "system_prompts of codes"),
        (lambda raw: raw.update(generate={"system_prompts": ["a", "b"]}), "set generate.system_prompts to source"),
        (lambda raw: raw.update(teacher=raw.pop("teachers")[0]), "mixture: is of several teachers"),
    ],
)
def test_what_is_refused(tmp_path: Path, weights: Path, change: Any, message: str) -> None:
    raw = make_raw_mixture(tmp_path)
    change(raw)
    if "teacher" in raw:
        raw["teacher"] = {key: value for key, value in raw["teacher"].items() if key not in ("name", "license")}
    with pytest.raises(ConfigError) as refused:
        validated(raw, "x.yaml")
    assert message in str(refused.value)
