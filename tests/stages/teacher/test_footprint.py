"""What a teacher takes, against its files and what its authors say of it."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher.footprint import footprint
from tests.support.data import TEACHER

SMOLLM2_PARAMETERS = 134_515_008
"""As the hub counts them: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct."""


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_smollm2(raw_config: dict[str, Any], dtype: str, width: int) -> None:
    raw_config["teacher"]["dtype"] = dtype
    found = footprint(Config.model_validate(raw_config))
    assert found.weight_bytes == SMOLLM2_PARAMETERS * width
    on_disk = (TEACHER / "model.safetensors").stat().st_size
    assert found.file_bytes is not None
    assert 0 < on_disk - found.file_bytes < 100_000, "the file has a header beside its numbers"
    assert found.cache_bytes_per_token == 2 * 30 * 3 * 64 * width, "keys and values, 30 layers, 3 heads of 64"


def test_a_folder_without_weights_says_nothing(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["teacher"]["model"] = str(tmp_path)
    assert footprint(Config.model_validate(raw_config)) == (None, None, None)
