"""A tiny Detoxify checkpoint, and Detoxify itself to compare with."""

from collections.abc import Iterator
from typing import Any

import pytest

from stillhouse.stages.filters.detoxify import DetoxifyClassifier
from tests.support.conversations import conversations
from tests.support.tiny_bert import Tiny, make_tiny, save


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine cost a model this small ten times its arithmetic."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return [turns[0]["content"] for turns in conversations(1500) if turns]


@pytest.fixture(scope="session")
def tiny(prompts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny-bert"), prompts)


@pytest.fixture(scope="session")
def detoxify(tiny: Tiny) -> Any:
    """Detoxify itself, with a checkpoint whose model_type is a folder: the only one it takes without the hub."""
    from detoxify import Detoxify

    checkpoint = save(tiny.folder / "local.ckpt", tiny.model, str(tiny.folder))
    return Detoxify(checkpoint=str(checkpoint), huggingface_config_path=str(tiny.folder))


@pytest.fixture(scope="session")
def classifier(tiny: Tiny) -> DetoxifyClassifier:
    return DetoxifyClassifier(tiny.config(batch_size=7))
