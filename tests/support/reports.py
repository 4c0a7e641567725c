"""Reports as programs read them."""

import json
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stillhouse.schemas.config import Config
from tests.support.data import CONVERSATIONS, make_raw_config
from tests.support.inline_pool import run_inline
from tests.support.runs import ProbedTeacher

CANARY = (
    "</script><script>document.title='canary'</script> <img src=x onerror=alert(1)> "
    "\u202egnirts\u202c \u0007 \u05e9\u05dc"
)
"""In every prompt that is a copy, and so in a published one: markup, an override of direction, a control character."""
THRESHOLD = 0.1
COPIES = 4


def make_run(folder: Path) -> Path:
    """A finished run of 60 conversations and copies of one prompt, with every kind of thing that a report shows."""
    raw = make_raw_config(folder)
    rows = pq.read_table(CONVERSATIONS).slice(0, 60).to_pylist()
    asked = next(row for row in rows if row["conversation"][0]["role"] == "user")
    for n in range(COPIES):
        copy = json.loads(json.dumps(asked)) | {"conversation_id": f"copy-{n}"}
        copy["conversation"][0]["content"] = f"Say hello to the people of the town {CANARY}"
        rows.insert(16 * n, copy)
    source = folder.parent / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw |= {
        "run_dir": str(folder),
        "source": {"path": str(source), "name": "sharegpt"},
        "ingest": {**raw["ingest"], "rows_per_shard": 20},
        "screen": {"classifiers": [{"name": "profanity-check", "thresholds": {"profanity": THRESHOLD}}]},
        "teacher": {**raw["teacher"], "backend": f"{ProbedTeacher.__module__}:{ProbedTeacher.__name__}"},
        "sampling": {"max_tokens": 12, "n": 2},
        "targets": {"top_k": 8, "method": "both", "num_draws": 16},
    }
    # In a thread of its own: in this one Playwright may have an event loop under way.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run_inline, Config.model_validate(raw)).result()
    return folder


class Page(HTMLParser):
    """The text that a report shows, and the JSON that it holds: `data`, and a conversation each."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.data: dict[str, Any] = {}
        self.conversations: list[dict[str, Any]] = []
        self.scripts: list[str] = []
        self.policy = ""
        self._inside: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(html)
        self.close()

    @classmethod
    def of(cls, path: Path) -> "Page":
        return cls(path.read_text(encoding="utf-8"))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta" and values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        if tag in ("script", "style"):
            self._inside = (tag, values)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ("", {})

    def handle_data(self, data: str) -> None:
        tag, values = self._inside
        if tag == "style":
            return
        if tag != "script":
            self.texts.append(data)
        elif values.get("type") != "application/json":
            self.scripts.append(data)
        elif values.get("id") == "data":
            self.data = json.loads(data)
        else:
            self.conversations.append(json.loads(data))

    def column(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(column for column in self.data["columns"]["columns"] if column["name"] == name)
        return found
