"""One Ray head on loopback for all tests that do not kill it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import Head, started_head


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Head]:
    with started_head(tmp_path_factory.mktemp("head") / "head.log", "--num-cpus=2") as started:
        yield started
