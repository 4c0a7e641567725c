"""axolotl 0.19.0's own command, in an environment of its own (tests/trainers/axolotl.txt), with the page's YAML."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MADE, ROOT, TEACHER

BIN = MADE / "axolotl/bin"
PAGE = ROOT / "docs/training/axolotl.md"
HERE: dict[str, Any] = {
    "base_model": str(TEACHER), "max_steps": 2, "micro_batch_size": 2, "logging_steps": 1, "bf16": False,
    "sequence_len": 512, "save_strategy": "no",
}  # fmt: skip
"""What differs here: the student is the teacher itself, on a CPU, for two steps."""


def train(folder: Path, kind: str, **changes: Any) -> list[float]:
    """The losses that `axolotl train` logs."""
    block = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    settings = yaml.safe_load(block[1])
    settings["datasets"][0]["path"] = str(MADE / kind / "axolotl")
    settings |= HERE | {"output_dir": str(folder / "out"), "dataset_prepared_path": str(folder / "prepared")} | changes
    (folder / "page.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "AXOLOTL_DO_NOT_TRACK": "1"}
    for command in ("preprocess", "train"):
        ended = subprocess.run(
            [BIN / "axolotl", command, "page.yaml"], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
    return [float(value) for value in re.findall(r"'loss': '?([-\d.e]+)", ended.stdout + ended.stderr)]


def test_the_pages_settings_train(tmp_path: Path) -> None:
    """The first loss is that of the teacher itself: next to nothing. A step later the student is another."""
    losses = train(tmp_path, "top_k")
    assert len(losses) == 2
    assert losses[0] == pytest.approx(0.0, abs=0.001)


def test_packing_without_an_attention_that_knows_it_leaks(tmp_path: Path) -> None:
    """Why the page says false: identical models differ by nats. Red once axolotl keeps conversations apart."""
    assert train(tmp_path, "top_k", sample_packing=True)[0] > 0.5
