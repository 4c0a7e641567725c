"""Fixtures that many tests share. The folder of a test says what it needs:

schemas, stages, pipeline, deploy, examples   neither an engine nor Ray: `make test-fast`
ray, engine                           a real Ray cluster, a real vLLM engine: `make test` runs these too
gpu                                   a GPU: `make test-gpu`
slow                                  minutes to hours each: `make test-slow`, `make test-faults`
readers                               others' Parquet readers: `make test-readers`
browser                               Chromium: `make test-browser`
trainers                              an environment of their own: `make test-trainers`
"""

import os
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from stillhouse.schemas.config import Config
from tests.support.command import Command
from tests.support.data import CONVERSATIONS, TEACHER, make_raw_config

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)  # a cluster of the shell's must not become the tests'
os.environ["HF_HUB_OFFLINE"] = "1"

collect_ignore = ["trainers"]  # run in an environment of their own, by `make test-trainers`


@pytest.fixture(scope="session")
def weights() -> Path:
    """The quick start's teacher and conversations, which `make data` fetches."""
    for path in (CONVERSATIONS, TEACHER):
        assert path.exists(), "run `make data` first: tests use the quick start's data"
    return TEACHER


@pytest.fixture(scope="session", autouse=True)
def _chat_read_once() -> Iterator[None]:
    """The teacher's tokenizer and its guarded copy take 1.3 s of CPU, and tests that run in this process or in forks of
    it ask for them some hundred times."""
    from stillhouse.stages.teacher import chat

    load, kept = chat.load_chat, dict[str, chat.Chat]()

    def load_once(config: Config, today: date | None = None) -> chat.Chat:
        teacher = config.teacher
        if teacher.model != str(TEACHER):
            return load(config, today)
        today = today or datetime.now(UTC).date()
        key = repr((teacher.chat_template, teacher.chat_template_kwargs, config.generate.thinking, today))
        if key not in kept:
            kept[key] = load(config, today)
        return kept[key]

    chat.load_chat = load_once
    yield
    chat.load_chat = load


@pytest.fixture
def raw_config(tmp_path: Path, weights: Path) -> dict[str, Any]:
    return make_raw_config(tmp_path)


@pytest.fixture(scope="session")
def tokenizer(weights: Path) -> Any:
    from stillhouse.stages.teacher.pretrained import load_tokenizer

    return load_tokenizer(str(weights), None, False)


@pytest.fixture
def command(tmp_path: Path, raw_config: dict[str, Any]) -> Command:
    """A run that has not begun, on this machine."""
    return Command(tmp_path, raw_config, local=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Command:
    """One undisturbed run on this machine, shared by all processes of the tests: tests copy what they change."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= "finished"
    folder.mkdir(exist_ok=True)
    raw = make_raw_config(folder)
    raw["sampling"]["n"] = 2
    raw["ingest"]["turns"] = "all"
    finished = Command(folder, raw, local=True)
    with FileLock(f"{folder}.lock"):
        if not (finished.run_dir / "dataset/manifest.json").exists():
            finished("run")
    return finished
