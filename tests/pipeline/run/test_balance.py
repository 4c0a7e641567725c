"""A whole run with languages and quotas: what it drops, what it publishes, and that nothing depends on shards."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.pipeline import cli
from stillhouse.pipeline.dataset.join import join
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.dataset.withhold import withhold
from stillhouse.pipeline.folder import open_folder, shard
from stillhouse.pipeline.look import report
from stillhouse.pipeline.look.place import open_place
from stillhouse.pipeline.look.reasons import decided_by
from stillhouse.pipeline.look.trail import trail
from stillhouse.pipeline.run.purge import purge
from stillhouse.schemas.config import BalanceConfig, Config, config_hash, deciding_values, load
from tests.support.command import Command, contents, read
from tests.support.data import make_raw_config
from tests.support.inline_pool import run_inline
from tests.support.s3 import bucket  # noqa: F401 (a fixture)

ASKED = {
    "en": "How do I bake bread with {} at home, and what do I need for it?",
    "de": "Wie backe ich zu Hause ein Brot mit {}, und was brauche ich dafür?",
    "fr": "Comment faire du pain à la maison avec {}, et de quoi ai-je besoin ?",
}
THINGS = "rye spelt corn oats barley seeds nuts olives".split()  # noqa: SIM905
QUOTAS: dict[str, Any] = {
    "quotas": [{"by": ["language"], "max_rows": 5}, {"by": ["topic", "task"], "max_share": 1.0}],
    "topics": 2,
}


def raw_of(folder: Path, **sections: Any) -> dict[str, Any]:
    source = folder / "source/rows.jsonl"
    source.parent.mkdir(parents=True, exist_ok=True)
    rows = [(f"{name}-{thing}", asked.format(thing)) for name, asked in ASKED.items() for thing in THINGS]
    rows.append(("none", "NAME_1, 2 + 2 = 5?"))
    source.write_text("".join(json.dumps({"id": name, "prompt": text}) + "\n" for name, text in rows))
    raw = make_raw_config(folder)
    raw["source"] = {"path": str(source)}
    raw["ingest"]["rows_per_shard"] = 6
    raw["screen"] = {"language": {"keep": ["en", "de"]}, "max_dropped_fraction": 1.0}
    raw["balance"] = QUOTAS
    return raw | sections


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balance")
    raw = raw_of(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(raw))
    run_inline(load(folder / "config.yaml"))
    return Path(raw["run_dir"])


def test_languages_and_quotas_drop_what_they_should(run: Path) -> None:
    manifest = json.loads((run / "dataset/manifest.json").read_text())
    stages = manifest["stages"]
    assert {"py3langid", "scikit-learn"} <= set(manifest["software"])
    assert list(stages) == ["ingest", "dedupe", "screen", "balance", "generate", "review"]
    assert stages["screen"]["dropped"] == {"language": 8}
    assert stages["balance"]["dropped"] == {"over_quota": 6}
    ledger = read(run / "ledger/screen").to_pylist()
    assert {row["prompt_id"][:2] for row in ledger} == {"fr"}
    assert all(score["score"] > 0.5 for row in ledger for score in row["scores"] if score["label"] == "language")
    published = read(run / "dataset/data")
    balanced = read(run / "balance")
    assert Counter(balanced["prompt_language"].to_pylist()) == {"en": 5, "de": 5, None: 1}
    assert set(published["prompt_id"].to_pylist()) <= set(balanced["prompt_id"].to_pylist())
    assert [field.name for field in published.schema.field("prompt_scores").type] == ["language", "code"]
    assert set(balanced["prompt_task"].to_pylist()) == {"question", "math"}
    assert set(balanced["prompt_topic"].to_pylist()) <= {0, 1, None}
    assert {"prompt_language", "prompt_task", "prompt_topic"} <= set(published.column_names)
    assert "weight" not in published.column_names
    assert verify(str(run), 1)["problems"] == []


def test_they_are_shown_as_other_filters_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write(str(run))
    page = (run / "report.html").read_text()
    for shown in ("prompt_language", "prompt_task", "prompt_topic", "over_quota", "prompt_scores.code",
                  "balance.quotas[0].max_rows 5", "screen.language.keep"):  # fmt: skip
        assert shown in page, shown
    assert cli.main(["inspect", str(run), "--dropped", "over_quota", "--samples", "9", "--json"]) == 0
    dropped = json.loads(capsys.readouterr().out)["dropped"]
    assert len(dropped) == 6
    assert all(row["conversation"] is not None for row in dropped), "their texts are in screen"
    config = Config.model_validate(raw_of(run.parent))
    assert "max_rows 5" in (decided_by("balance", "over_quota", deciding_values(config)) or "")


def test_a_prompts_way_leads_through_balance_where_there_is_one(run: Path, tmp_path: Path) -> None:
    gone = read(run / "ledger/balance")["prompt_id"][0].as_py()
    last = trail(open_place(str(run)), gone)[-1]
    assert (last["stage"], last["status"], last["reason"]) == ("balance", "dropped", "over_quota")
    raw = raw_of(tmp_path, balance=None, screen={"classifiers": []})
    run_inline(Config.model_validate(raw))
    steps = trail(open_place(raw["run_dir"]), "en-rye")
    assert [step["stage"] for step in steps] == ["ingest", "dedupe", "screen", "generate", "review", "publish"]
    plain = read(Path(raw["run_dir"]) / "dataset/data")
    assert not {"prompt_language", "prompt_task", "prompt_topic", "weight"} & set(plain.column_names)


def test_configurations_without_them_are_what_they_were(tmp_path: Path) -> None:
    config = Config.model_validate(raw_of(tmp_path, balance=None, screen={"classifiers": []}))
    assert not [key for key in deciding_values(config) if key.startswith(("screen.language", "balance"))]
    assert config_hash(config) == config_hash(config.model_copy(update={"balance": None}))
    balanced = config.model_copy(update={"balance": BalanceConfig.model_validate(QUOTAS)})
    assert config_hash(config) != config_hash(balanced)


@pytest.mark.slow
@pytest.mark.long
def test_any_number_of_workers_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    raw = raw_of(run.parent, resources={stage: {"max_workers": 3} for stage in ("screen", "balance", "generate")})
    raw["run_dir"] = str(tmp_path / "run")
    Command(tmp_path, raw, local=True)("run")
    theirs, ours = contents(Path(raw["run_dir"])), contents(run)
    names = [name for name in ours if name.endswith(".parquet")]
    assert len(names) > 20
    assert {name: theirs[name] for name in names} == {name: ours[name] for name in names}


@pytest.mark.slow
@pytest.mark.long
def test_purged_rows_leave_what_balance_keeps_too(bucket: str, tmp_path: Path) -> None:  # noqa: F811
    raw = raw_of(tmp_path, run_dir=f"{bucket}/balanced")
    config = Config.model_validate(raw)
    run_inline(config)
    folder, key = open_folder(config.run_dir), "balance/00000.parquet"
    name = shard.read(folder, key, ["prompt_id"])["prompt_id"][0].as_py()
    purge(config.run_dir, [name])
    for kept in (key, "state/balance/sketches/00000.parquet", "state/balance/assignments/00000.parquet"):
        assert name not in shard.read(folder, kept, ["prompt_id"])["prompt_id"].to_pylist()
    assert verify(config.run_dir, 1)["problems"] == []
    left = folder.get(key)
    for gone in (key, "dataset/manifest.json", min(folder.walk("dataset/data"))):
        folder.delete(gone)
    run_inline(config)
    assert folder.get(key) == left, "made again from its sketch and assignment"


@pytest.mark.long
def test_weights_are_published_withheld_and_joined(tmp_path: Path) -> None:
    raw = raw_of(tmp_path, balance=QUOTAS | {"over": "weight"})
    run_inline(Config.model_validate(raw))
    published = read(Path(raw["run_dir"]) / "dataset/data")
    weights = {row["weight"] for row in published.to_pylist() if row["prompt_language"] == "en"}
    assert weights == {0.625}
    withhold(raw["run_dir"], str(tmp_path / "masked"), 1)
    join(str(tmp_path / "masked"), str(tmp_path / "joined"))
    assert verify(str(tmp_path / "joined"), 1)["problems"] == []
    assert read(tmp_path / "joined/data").equals(published)
