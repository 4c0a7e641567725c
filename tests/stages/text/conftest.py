"""A real model2vec model, made of the teacher's embeddings by the library."""

from pathlib import Path

import pytest

from tests.support.static_model import make_static_model


@pytest.fixture(scope="session")
def model(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_static_model(weights, tmp_path_factory.mktemp("model2vec"))
