"""Tests that need a GPU: `make test-gpu`. Where torch sees none they are skipped."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "tests/gpu" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))
