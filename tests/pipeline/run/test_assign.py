"""The step that sees the whole data set, where the disk that it needs is full."""

import tempfile
from typing import Any

import pytest

from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.run import driver
from stillhouse.schemas.config import Config
from tests.support.inline_pool import InlinePool, Kept


@pytest.mark.parametrize("room_for", [0, 1])
def test_a_full_disk_is_one_sentence(
    raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, room_for: int
) -> None:
    """For the signatures, or for what is written after them; with room there, the run goes on."""
    config, make, made = Config.model_validate(raw_config), tempfile.TemporaryFile, []

    def full() -> Any:
        made.append("a file")
        return make() if len(made) <= room_for else open("/dev/full", "w+b")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", full)
        with pytest.raises(RunError, match=r"dedupe: what is compared has no room in .* \(No space left on device\); "):
            driver.run(config, Kept(), InlinePool(), until="dedupe")
    assert len(made) == room_for + 1
    assert driver.run(config, Kept(), InlinePool(), until="dedupe")["until"] == "dedupe"
