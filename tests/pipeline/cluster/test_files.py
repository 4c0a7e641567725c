"""Files that a configuration names: all of them are looked for on every node, and none that is no file of a disk."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.cluster import node
from stillhouse.pipeline.cluster.files import inputs
from stillhouse.schemas.config import Config, absolute
from tests.support.cluster_facts import CONFIG

NAMES = ("rows", "sets/gsm8k.jsonl", "sets/dan.jsonl", "detoxify.ckpt", "roberta", "potion")
OF_DETOXIFY = ("detoxify.ckpt", "roberta")
"""As the configuration has them: their paths decide its hash."""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Every kind of file, by paths from here."""
    monkeypatch.chdir(tmp_path)
    detoxify = {"name": "detoxify", "checkpoint": "detoxify.ckpt", "trust_checkpoint": True}
    raw: dict[str, Any] = {
        **CONFIG,
        "run_dir": "run",
        "source": {"path": ["rows/*.parquet", "s3://bucket/rows"]},
        "decontamination": {"evaluations": [
            {"name": "gsm8k", "path": "sets/gsm8k.jsonl", "columns": ["question"]},
            {"name": "ours", "path": "gs://bucket/ours.jsonl", "sha256": "0" * 64, "columns": ["question"]},
            {"name": "mmlu", "dataset": "cais/mmlu", "revision": "main", "columns": ["question"]},
        ]},
        "screen": {
            "classifiers": [detoxify | {"huggingface_config_path": "roberta"}, {"name": "profanity-check"}],
            "jailbreaks": {"templates": [{"name": "dan", "path": "sets/dan.jsonl", "columns": ["prompt"]}]},
        },
        "dedupe": {"semantic": {"model": "./potion"}},
    }  # fmt: skip
    return absolute(Config.model_validate(raw))


def test_each_is_found_or_missed(config: Config, tmp_path: Path) -> None:
    named = {str(tmp_path / name) for name in NAMES} - {str(tmp_path / name) for name in ("rows", *OF_DETOXIFY)}
    expected = named | {str(tmp_path / "rows/*.parquet"), *OF_DETOXIFY}
    assert {one.path for one in inputs(config)} == expected
    assert {path for _, path in node.look(config, [], "mark")["missing_inputs"]} == expected
    for name in NAMES:
        (tmp_path / name).mkdir(parents=True)
    assert node.look(config, [], "mark")["missing_inputs"] == [("source.path", str(tmp_path / "rows/*.parquet"))]
    (tmp_path / "rows/a.parquet").touch()
    assert node.look(config, [], "mark")["missing_inputs"] == []


def test_a_url_of_a_file_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "my chats").mkdir()
    config = Config.model_validate({**CONFIG, "source": {"path": f"file://{tmp_path}/my%20chats"}})
    assert [one.path for one in inputs(config)] == [str(tmp_path / "my chats")]
    assert node.look(config, [], "mark")["missing_inputs"] == []
