"""What the package of this process needs, in all tests of judgements."""

import pytest

from stillhouse.pipeline.cluster import preflight


@pytest.fixture(autouse=True)
def _requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "requirements", lambda: ["ray>=2.60", "vllm>=0.32.0,<0.33; extra == 'gpu'"])
