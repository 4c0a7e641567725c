"""One run with an export to every layout, shared: tests copy what they change."""

from pathlib import Path

import pytest

from stillhouse.schemas.config import Config
from stillhouse.stages.layouts import LAYOUTS
from tests.support.data import make_raw_config
from tests.support.datasets import make_export
from tests.support.inline_pool import run_inline


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A run folder of 8 shards, two samples per prompt, several turns, both kinds of targets; exported from its
    dataset's top K."""
    raw = make_raw_config(tmp_path_factory.mktemp("exported"))
    raw["sampling"] |= {"n": 2, "max_tokens": 48}
    raw["source"]["limit"] = 40
    raw["ingest"] |= {"turns": "all", "rows_per_shard": 5}
    raw["targets"] = {"top_k": 8, "method": "both", "num_draws": 16}
    config = Config.model_validate(raw)
    run_inline(config)
    for layout in LAYOUTS:
        make_export(Path(config.run_dir), layout, kind="target")
    return Path(config.run_dir)
