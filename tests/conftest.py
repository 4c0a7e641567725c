"""Fixtures shared by the tests: the quick start's real data and teacher, a small configuration, a Ray cluster."""

import os
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)  # a cluster of the shell's must not become the tests'
os.environ["HF_HUB_OFFLINE"] = "1"

collect_ignore = ["trainers"]  # run in an environment of their own, by `make test-trainers`

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data/quickstart"
TEACHER = DATA / "SmolLM2-135M-Instruct"
CONVERSATIONS = DATA / "conversations.parquet"


@pytest.fixture(scope="session", autouse=True)
def _prepared() -> None:
    for path in (CONVERSATIONS, TEACHER):
        assert path.exists(), "run `make data` first: tests use the quick start's data"


def make_raw_config(folder: Path) -> dict[str, Any]:
    """A configuration as YAML would give it: real prompts, real tokenizer, the tests' own teacher."""
    return {
        "run_dir": str(folder / "run"),
        "source": {"path": str(CONVERSATIONS), "name": "sharegpt", "limit": 60},
        "ingest": {"rows_per_shard": 10, "max_prompt_tokens": 400, "max_dropped_fraction": 1.0},
        "screen": {"classifiers": [{"name": "profanity-check", "thresholds": {"profanity": 0.9}}]},
        "teacher": {"model": str(TEACHER), "max_model_len": 512, "backend": "tests.fake_teacher:FakeTeacher"},
        "sampling": {"max_tokens": 24},
        "targets": {"top_k": 8},
        "review": {"max_dropped_fraction": 1.0},
    }


@pytest.fixture
def raw_config(tmp_path: Path) -> dict[str, Any]:
    return make_raw_config(tmp_path)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TEACHER)
