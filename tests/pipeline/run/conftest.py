"""A finished run of two teachers, for the tests that look at it and those that spoil a copy."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.config import Config, absolute
from tests.support.inline_pool import run_inline
from tests.support.teaching import make_raw_teachers


@pytest.fixture(scope="session")
def raw_teachers(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> dict[str, Any]:
    return make_raw_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="session")
def taught(raw_teachers: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Its configuration and its manifest."""
    config = absolute(Config.model_validate(raw_teachers))
    return config, run_inline(config)[0]


@pytest.fixture
def copied(taught: tuple[Config, dict[str, Any]], tmp_path: Path) -> Config:
    """A copy, to be spoilt."""
    shutil.copytree(taught[0].run_dir, tmp_path / "run")
    return taught[0].model_copy(update={"run_dir": str(tmp_path / "run")})
