"""A source whose rows say what they are about, and a run in which two teachers share it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.schemas.config import Config
from tests.support.command import read
from tests.support.data import make_raw_config
from tests.support.inline_pool import run_inline
from tests.support.undisturbed import ROWS

TASKS = ("math", "code", "poem")
WORDS = ("river", "lamp", "copper", "winter", "garden", "seven", "bridge", "paper", "signal", "orange", "theory")
OTHER = "tests.support.fake_teacher:OtherTeacher"

TEMPLATE = """{% for message in messages -%}
<|im_start|>{{ message.role }}:
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:
{% endif %}"""


def make_rows() -> list[dict[str, Any]]:
    """Conversations with an answer, all different, each with a task; of the last shard (see below) all are `code`."""
    random = np.random.default_rng(7)
    rows = []
    for number in range(ROWS):
        words = " ".join(random.choice(WORDS, 12))
        messages = [
            {"role": "user", "content": f"Question {number}: {words}?"},
            {"role": "assistant", "content": f"Answer {number}: {' '.join(random.choice(WORDS, 9))}."},
        ]
        task = "code" if number >= ROWS - 10 else TASKS[int(random.choice(3, p=[0.5, 0.3, 0.2]))]
        rows.append({"id": f"row-{number}", "messages": messages, "meta": {"task": task}})
    return rows


def make_raw_teachers(folder: Path, run: str = "run") -> dict[str, Any]:
    """Two teachers of different kinds, prompts and contexts, shards of ten rows of both and of neither's."""
    raw = make_raw_config(folder)
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
    teacher = raw.pop("teacher")
    raw |= {
        "run_dir": str(folder / run),
        "source": {"path": str(source), "name": "tasks"},
        "teachers": [
            {**teacher, "name": "counts", "when": {"meta.task": ["math"]}, "license": "apache-2.0"},
            {
                **teacher,
                "name": "codes",
                "when": {"meta.task": ["code"]},
                "backend": OTHER,
                "max_model_len": 440,
                "system_prompts": ["Write code."],
                "chat_template": TEMPLATE,
                "dtype": "float32",
            },
        ],
        "sampling": {"max_tokens": 24},
        "targets": {"method": "both", "top_k": 8, "num_draws": 8},
    }
    # Kills are no fault of any shard: none is to be given up for them.
    raw["resources"] = {"max_attempts": 1000}
    return raw


def make_raw_rolled_out_teachers(folder: Path) -> dict[str, Any]:
    """The same two, which read alike, on what a student writes: two answers to each of 30 prompts."""
    raw = make_raw_teachers(folder)
    raw["source"]["limit"] = 30
    del raw["sampling"]
    for teacher in raw["teachers"]:
        teacher.pop("chat_template", None)
        teacher |= {"max_model_len": 440, "system_prompts": ["Be brief.", "Be kind."]}
    first = raw["teachers"][0]
    sampling = {"n": 2, "max_tokens": 24, "seed": 7}
    rollout = {"model": first["model"], "backend": first["backend"], "sampling": sampling, "asked_top_k": 3}
    return raw | {"task": "score", "rollout": rollout}


def alone(raw: dict[str, Any], number: int, run: str) -> dict[str, Any]:
    """The same run with one teacher for all rows."""
    teacher = dict(raw["teachers"][number])
    for key in ("name", "when", "license"):
        teacher.pop(key, None)
    generate = {key: teacher.pop(key) for key in ("system_prompts", "thinking") if key in teacher}
    rest = {key: value for key, value in raw.items() if key != "teachers"}
    run_dir = str(Path(raw["run_dir"]).with_name(run))
    return rest | {"run_dir": run_dir, "teacher": teacher, "generate": generate}


def published_rows(config: Config) -> dict[str, dict[str, Any]]:
    """By their sample's id."""
    return {row["sample_id"]: row for row in read(Path(config.run_dir) / "dataset/data").to_pylist()}


def rows_alone(raw: dict[str, Any], names: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """By the name of each teacher what a run with it alone publishes."""
    singles = {}
    for number, name in enumerate(names):
        single = Config.model_validate(alone(raw, number, name))
        run_inline(single)
        singles[name] = published_rows(single)
    return singles
