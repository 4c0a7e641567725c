"""Where the real data of the tests is: the quick start's conversations and teacher."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data/quickstart"
TEACHER = DATA / "SmolLM2-135M-Instruct"
CONVERSATIONS = DATA / "conversations.parquet"

STAGES = ("ingest", "dedupe", "screen", "generate", "review", "publish")


def make_raw_config(folder: Path) -> dict[str, Any]:
    """A configuration as YAML would give it: real prompts, real tokenizer, the tests' own teacher."""
    return {
        "run_dir": str(folder / "run"),
        "source": {"path": str(CONVERSATIONS), "name": "sharegpt", "limit": 60},
        "ingest": {"rows_per_shard": 10, "max_prompt_tokens": 400, "max_dropped_fraction": 1.0},
        "screen": {"classifiers": [{"name": "profanity-check", "thresholds": {"profanity": 0.9}}]},
        "teacher": {"model": str(TEACHER), "max_model_len": 512, "backend": "tests.support.fake_teacher:FakeTeacher"},
        "sampling": {"max_tokens": 24},
        "targets": {"top_k": 8},
        "review": {"max_dropped_fraction": 1.0},
    }
