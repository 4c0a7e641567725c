"""The example with two teachers, on real engines one after the other."""

from pathlib import Path

import pyarrow.parquet as pq
import yaml

from stillhouse.pipeline.dataset.verify import verify
from tests.support.command import Command, read
from tests.support.data import CONVERSATIONS, ROOT, TEACHER


def test_the_example_is_what_it_says(tmp_path: Path, weights: Path) -> None:
    raw = yaml.safe_load((ROOT / "configs/teachers.yaml").read_text())
    raw |= {"run_dir": str(tmp_path / "run")}
    raw["source"] |= {"path": str(CONVERSATIONS), "limit": 30}
    raw["sampling"]["max_tokens"] = 24
    raw["review"]["drop_truncated"] = False
    for teacher in raw["teachers"]:
        teacher["model"] = str(TEACHER)
    manifest, _ = Command(tmp_path, raw, local=True)("run")
    assert [teacher["rows"] > 3 for teacher in manifest["teachers"]] == [True, True]
    found = verify(raw["run_dir"], num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
    turns = pq.read_table(CONVERSATIONS, columns=["turn"]).column(0)[:30].to_pylist()
    for row in read(tmp_path / "run/dataset/data").to_pylist():
        is_brief = turns[row["source_row"]] == 1
        assert row["teacher"] == ("brief" if is_brief else "general")
        assert [message["role"] for message in row["messages"]] == ["system"] * is_brief + ["user", "assistant"]
