"""What is told of filters: other values are compared with runs that have these values, costs with what was written
down."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.pipeline import cli
from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.look.filters import Filter, filters
from stillhouse.pipeline.look.filters.again import quotas
from stillhouse.pipeline.look.filters.personal import personal
from stillhouse.pipeline.look.filters.rows import RowsRead
from stillhouse.pipeline.look.filters.scored import language, of_form, of_labels
from stillhouse.pipeline.look.filters.settings import section, thresholds
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.run import driver
from stillhouse.pipeline.run.progress import Progress, Reports
from stillhouse.pipeline.run.timeline import Timeline
from stillhouse.schemas.config import Config, deciding_values
from stillhouse.stages.filters.clock import Clock
from stillhouse.stages.filters.quota import beyond
from tests.support.command import read
from tests.support.filtered import make_filtered_config
from tests.support.inline_pool import InlinePool, Kept


def rows(reasons: list[str | None], **scores: list[float]) -> RowsRead:
    """Rows of which the first ones were kept."""
    ids = pa.chunked_array([[f"p{n}" for n in range(len(reasons))]], pa.string())
    kept = sum(reason is None for reason in reasons)
    found = {name: np.array(values, np.float32) for name, values in scores.items()}
    return RowsRead(found, np.array(reasons, object), ids, kept, {}, [{} for _ in reasons[kept:]])


def drops(one: Filter, key: str) -> dict[Any, int]:
    return dict(next(setting for setting in one.settings if setting.key.startswith(key)).drops)


CONFIG: dict[str, Any] = {
    "screen.classifiers[0].thresholds": {"toxicity": 0.9},
    "screen.jailbreaks.threshold": 0.5,
    "screen.jailbreaks.keep": 0.25,
    "screen.low_information.keep": 0.5,
    "decontamination.threshold": 0.5,
    "personal.prompts": "mask",
    "personal.drop_from": 1,
    "personal.placeholders": "keep",
    "screen.language.keep": ["en"],
    "screen.language.unsure": "keep",
    "screen.language.min_score": 0.5,
}


def test_a_threshold_takes_the_score_that_equals_it() -> None:
    """And of the rows that another filter dropped too, which are not its own."""
    read = rows([None, None, "unsafe_prompt", "moderation_flagged"], toxicity=[0.1, 0.89, 0.9, 0.95], code=[1, 0, 0, 0])
    (one,) = of_labels(read, "screen", CONFIG)
    assert (one.read, one.found, one.dropped, one.reason) == (4, 2, 1, "unsafe_prompt")
    assert drops(one, "screen.classifiers[0].thresholds.toxicity") == {0.1: 4, 0.3: 3, 0.5: 3, 0.7: 3, 0.9: 2, 0.95: 1}
    (scored,) = of_labels(read, "screen", {})
    assert (scored.reason, scored.dropped) == (None, 0)
    assert drops(scored, "thresholds.toxicity")[0.5] == 3


def test_a_share_that_is_kept_is_that_of_the_stage() -> None:
    scores = [1.0] * 400
    read = rows([None] * 400, low_information=scores, jailbreak=[0.6] * 200 + [0.4] * 200)
    low, jailbreak = of_labels(read, "screen", CONFIG)
    every = np.ones(400, bool)
    for share, taken in drops(low, "screen.low_information.keep").items():
        assert taken == beyond(every, read.ids, share, "low_information").sum()
    half = np.arange(400) < 200
    for share, taken in drops(jailbreak, "screen.jailbreaks.keep").items():
        assert taken == beyond(half, read.ids, share, "jailbreak").sum()
    for threshold, number in ((0.25, 400), (0.5, 200), (0.75, 0)):
        found = beyond(np.arange(400) < number, read.ids, 0.25, "jailbreak").sum()
        assert drops(jailbreak, "screen.jailbreaks.threshold")[threshold] == found


def test_finds_are_counted_over_kinds() -> None:
    nan = float("nan")
    read = rows(
        [None, None, None, "personal_information", "too_long"],
        email=[0, 1, 1, 2, nan],
        phone=[0, 0, 2, nan, nan],
        placeholder=[0, 5, 0, nan, nan],
    )
    found, named = personal(read, "ingest", ["email", "phone", "placeholder"], CONFIG)
    assert (found.read, found.found, found.dropped) == (4, 3, 1)
    assert drops(found, "personal.drop_from") == {1: 3, 2: 2, 3: 1, 5: 0, 10: 0}
    assert drops(found, "personal.prompts") == {"mask": 0, "keep": 0, "drop": 3}
    assert drops(named, "personal.placeholders") == {"keep": 0, "drop": 1}


def test_languages_of_rows_that_went_are_known() -> None:
    read = rows([None, None, None, "language", "unsafe_prompt"], language=[0.99, 0.6, 0.0, 0.9, 0.8])
    read.columns["prompt_language"] = pa.chunked_array([["en", "en", None]])
    read.others[0]["fr"] = float(np.float32(0.9))
    (one,) = language(read, CONFIG)
    assert drops(one, "screen.language.keep") == {"all": 0, "en": 1, "fr": 2}
    assert drops(one, "screen.language.min_score") == {0.5: 1, 0.7: 2, 0.9: 3, 0.99: 4}
    (strict,) = language(read, CONFIG | {"screen.language.unsure": "drop"})
    assert drops(strict, "screen.language.keep") == {"all": 0, "en": 2, "fr": 3}


def test_loops_and_answers_cut_off() -> None:
    read = rows([None, None, "degenerate_answer", "truncated_answer"], loop_tokens=[0, 40, 80, float("nan")])
    read.columns["finish_reasons"] = pa.chunked_array([[["stop", "length"], ["stop"]]])
    config = {"review.loop_tokens": 64, "review.drop_truncated": False}
    _, loops, cut = of_form(read, config)
    assert drops(loops, "review.loop_tokens") == {16: 2, 32: 2, 64: 1, 128: 0, 256: 0}
    assert drops(cut, "review.drop_truncated") == {False: 0, True: 2}


def test_settings_are_found_by_their_labels() -> None:
    assert thresholds(CONFIG, "screen")["toxicity"] == ("screen.classifiers[0].thresholds", 0.9)
    assert "jailbreak" not in thresholds(CONFIG, "review")
    own = CONFIG | {"review.thresholds": {"toxicity": 0.5}}
    assert thresholds(own, "review")["toxicity"] == ("review.thresholds", 0.5)
    assert thresholds(own, "screen")["toxicity"] == ("screen.classifiers[0].thresholds", 0.9)
    flat = {"balance.quotas[0].by": ["task"], "balance.quotas[1].max_rows": 3, "balance.over": "drop"}
    assert section(flat, "balance") == {"quotas": [{"by": ["task"]}, {"max_rows": 3}], "over": "drop"}


def test_a_clock_adds_up_and_begins_again() -> None:
    clock = Clock()
    for _ in range(3):
        with clock.of("a"):
            pass
    with pytest.raises(ZeroDivisionError), clock.of("b"):
        _ = 1 / 0
    first = clock.read()
    assert [*first] == ["a", "b"]
    assert min(first.values()) > 0
    assert clock.read() == {}


def test_a_run_tells_what_its_filters_took(looked_at: Path) -> None:
    found = {(one.stage, one.name): one for one in filters(open_place(str(looked_at)))}
    ledger = read(looked_at / "ledger/screen")["reason"].to_pylist()
    profanity = found["screen", "profanity"]
    assert profanity.dropped == profanity.found == ledger.count("unsafe_prompt") == 1
    assert profanity.read == len(ledger) + read(looked_at / "screen").num_rows
    assert found["dedupe", "exact_duplicate"].dropped == 1
    assert [one.seconds for one in found.values() if one.seconds is not None] == [], "a run without a timeline"
    assert filters(open_place(str(looked_at / "dataset"))) == filters(open_place(str(looked_at)))


def test_a_copy_of_a_dataset_tells_nothing(looked_at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(looked_at / "dataset", tmp_path / "copy")
    assert filters(open_place(str(tmp_path / "copy"))) == []
    assert cli.main(["inspect", str(tmp_path / "copy"), "--filters"]) == 2
    assert "is no run; what filters took is in its folder alone" in capsys.readouterr().err


# --- against runs with these values ----------------------------------------------------------------------------------

TRIED = [
    ("ingest", "personal_information", "personal.drop_from", {"personal": {"prompts": "drop"}}, (1, 2, 3)),
    ("dedupe", "near_duplicate", "dedupe.threshold", {}, (0.6, 0.7, 0.9)),
    ("dedupe", "near_duplicate", "dedupe.max_per_cluster", {}, (2, 4)),
    ("screen", "unsafe_prompt", "screen.classifiers[0].thresholds.profanity", {}, (0.5, 0.95)),
    ("screen", "moderation_flagged", "screen.drop_flagged", {}, (False, True)),
    ("screen", "contaminated", "decontamination.threshold", {}, (0.25, 1.0)),
    ("screen", "jailbreak_template", "screen.jailbreaks.keep", {}, (0.0, 0.25, 1.0)),
    ("screen", "low_information", "screen.low_information.keep", {}, (0.0, 0.5, 1.0)),
    ("screen", "language", "screen.language.keep", {}, ("en", "de")),
    ("balance", "over_quota", "balance.quotas[0].max_rows", {}, (20, 40, 80)),
    ("review", "degenerate_answer", "review.loop_tokens", {}, (16, 32)),
    ("review", "refusal", "review.refusals.keep_refusals", {}, (0.0, 1.0)),
    ("review", "hedge", "review.refusals.keep_hedges", {}, (0.0, 0.25)),
    ("review", "duplicate_answer", "review.max_duplicates", {}, (1, 2, 4)),
    ("review", "unsafe_answer", "screen.classifiers[0].thresholds.profanity", {}, (0.1, 0.95)),
]
"""Stage, reason, setting, what else the other run has, and values."""


def run(raw: dict[str, Any], until: str | None) -> Path:
    config = Config.model_validate(raw)
    progress = Progress()
    line = Timeline(config.run_dir, progress)
    try:
        driver.run(config, Reports(Kept(), progress, line), InlinePool(), until=until)
    finally:
        progress.close()
        line.close()
    return Path(config.run_dir)


def changed(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one key changed; `a.b[0].c` and labels of thresholds included."""
    copy = json.loads(json.dumps(raw))
    node, parts = copy, key.replace("[", ".[").split(".")
    for name in parts[:-1]:
        node = node[int(name[1:-1])] if name.startswith("[") else node.setdefault(name, {})
    node[parts[-1]] = value
    return copy


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("filtered")
    raw = make_filtered_config(folder)
    return raw, run(raw, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "reason", "key", "also", "values"), TRIED, ids=[f"{s}-{k}" for s, _, k, _, _ in TRIED]
)
def test_other_values_drop_what_is_told(
    filtered: tuple[dict[str, Any], Path], tmp_path: Path, stage: str, reason: str, key: str, also: dict[str, Any],
    values: tuple[Any, ...],
) -> None:  # fmt: skip
    raw, folder = filtered
    one = next(one for one in filters(open_place(str(folder))) if one.stage == stage and
               any(setting.key.startswith(key) for setting in one.settings))  # fmt: skip
    told = drops(one, key)
    for value in values:
        other = changed(raw, key, [value] if key.endswith("language.keep") else value)
        other["run_dir"] = str(tmp_path / f"{value}")
        for name, more in also.items():
            other[name] = {**other[name], **more}
        made = run(other, None if stage == "review" else stage)
        ledger = read(made / "ledger" / stage)["reason"].to_pylist()
        assert told[value] == ledger.count(reason), value
    assert len(set(told.values())) > 1, "values differ"


@pytest.mark.slow
def test_every_filter_is_there_and_its_time(filtered: tuple[dict[str, Any], Path]) -> None:
    raw, folder = filtered
    found = filters(open_place(str(folder)))
    names = [(one.stage, one.name) for one in found]
    assert len(set(names)) == len(names)
    assert {name for _, name in names} == {
        "personal_information", "placeholder_names", "exact_duplicate", "near_duplicate", "moderation_flagged",
        "profanity", "contamination", "jailbreak", "low_information", "language", "over_quota", "empty_answer",
        "loop_tokens", "truncated_answer", "mistaken_identity", "refusal", "hedge", "duplicate_answer",
    }  # fmt: skip
    ledger = {stage: read(folder / "ledger" / stage)["reason"].to_pylist() for stage in ("ingest", "screen", "review")}
    for one in found:
        if one.stage in ledger and one.reason is not None:
            assert one.dropped == ledger[one.stage].count(one.reason), one.name
            assert one.dropped or one.name in {"placeholder_names", "empty_answer", "truncated_answer"} or (
                one.stage, one.name) == ("ingest", "personal_information"), one.name  # fmt: skip
    untimed = {
        "placeholder_names",
        "exact_duplicate",
        "moderation_flagged",
        "empty_answer",
        "truncated_answer",
        "hedge",
    }
    assert {one.name for one in found if one.seconds is None} == untimed
    total: dict[str, float] = {}
    for name in open_folder(str(folder)).list(keys.TIMELINE):
        for row in shards.read(open_folder(str(folder)), f"{keys.TIMELINE}/{name}").to_pylist():
            spent = sum(item["seconds"] for item in row["filters"])
            assert spent <= (row["ended"] - row["started"]).total_seconds() + 0.01
            total[row["stage"]] = total.get(row["stage"], 0.0) + spent
    of_screen = sum(one.seconds for one in found if one.stage == "screen" and one.seconds is not None)
    assert of_screen == pytest.approx(total["screen"], abs=0.01)
    assert {**deciding_values(Config.model_validate(raw))}, "and time decides nothing"


def test_quotas_of_another_version_are_left_out(looked_at: Path) -> None:
    assert quotas(open_place(str(looked_at)), {"balance.quotas[0].by": ["weather"]}) == []
