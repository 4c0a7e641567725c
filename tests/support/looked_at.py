"""A finished run to look at: words that a terminal would obey, prompts that are dropped at several stages, two answers
to each."""

import json
from pathlib import Path
from typing import Any

from stillhouse.schemas.config import Config
from tests.support.data import make_raw_config
from tests.support.inline_pool import run_inline

OBEYED = (
    "canary \x1b[31mRED\x1b]0;title\x07 \x9b32m \u202eevil\u2066 [red]bold[/red] :smile: \u200bzero 写诗 \U0001f33e"
)
"""Terminal escapes, a bell, a right-to-left override, rich's markup and emoji codes."""
SHOWN = r"canary \x1b[31mRED\x1b]0;title\x07 \x9b32m \u202eevil\u2066 [red]bold[/red] :smile: \u200bzero 写诗 🌾"
"""The same as it is shown."""
UNSAFE = "you stupid fucking bitch, fuck you"


def rows() -> list[dict[str, Any]]:
    texts = [f"What is the {n}th prime number, and why?" for n in range(17)]
    texts[1] = OBEYED
    texts[3] = f"{UNSAFE} canary \x1b[31munsafe"
    texts[5] = texts[4]  # a duplicate
    found: list[dict[str, Any]] = [
        {
            "conversation_id": f"id-{n}",
            "conversation": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}],
            "language": "Eng\x1b[5mlish" if n % 2 else "German",
        }
        for n, text in enumerate(texts)
    ]
    found[2]["conversation"].reverse()  # begins with an answer
    return found


def make_looked_at(folder: Path, **sections: dict[str, Any]) -> Path:
    """4 shards: 17 rows, of which ingest, dedupe and screen drop one each; the rest is answered twice."""
    raw = make_raw_config(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    raw |= {
        "run_dir": str(folder / "run"),
        "source": {"path": str(source), "name": "sou\x1brce"},
        "ingest": {"rows_per_shard": 5, "max_dropped_fraction": 1.0},
        "targets": {"method": "both", "top_k": 8, "num_draws": 16},
    }
    raw["sampling"] |= {"n": 2, "max_tokens": 10}
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    run_inline(Config.model_validate(raw))
    return folder / "run"
