"""A run to look at, made once, and an S3 server."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.pipeline.look import tokens
from stillhouse.stages.teacher.pretrained import load_tokenizer
from tests.support.looked_at import make_looked_at
from tests.support.s3 import bucket  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def looked_at(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """Tests copy what they change."""
    return make_looked_at(tmp_path_factory.mktemp("looked_at"))


@pytest.fixture(scope="session", autouse=True)
def _tokenizer_read_once() -> Iterator[None]:
    """Reading the teacher's tokenizer takes a second of CPU, and each look at tokens asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "load_tokenizer", functools.cache(load_tokenizer))
        yield
