"""A real model2vec model, made of the teacher's embeddings by the library."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    raise NotImplementedError
