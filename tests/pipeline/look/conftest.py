"""A run to look at, made once, and an S3 server."""

from pathlib import Path

import pytest

from tests.support.looked_at import make_looked_at
from tests.support.s3 import bucket  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def looked_at(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """Tests copy what they change."""
    return make_looked_at(tmp_path_factory.mktemp("looked_at"))
