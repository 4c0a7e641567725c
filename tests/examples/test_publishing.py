"""The commands of docs/publishing.md, in their order, where a run like the quick start's has finished."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.pipeline import cli
from tests.support.command import read
from tests.support.data import ROOT
from tests.support.runs import make_run


def commands() -> list[list[str]]:
    text = (ROOT / "docs/publishing.md").read_text()
    return [shlex.split(line) for line in text.splitlines() if line.startswith(("    stillhouse ", "    hf "))]


@pytest.mark.long
def test_the_commands_of_the_page(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs/quickstart", {"method": "top_k", "top_k": 8})
    monkeypatch.chdir(tmp_path)
    published = read(Path("runs/quickstart/dataset/data"))
    Path("ids.txt").write_text(published["sample_id"][0].as_py() + "\n")
    shutil.copy("runs/quickstart/source.jsonl", "source.jsonl")
    done = []
    for program, command, *arguments in commands():
        if program == "hf":
            options = subprocess.run(
                [Path(sys.executable).parent / "hf", command, "--help"], capture_output=True, text=True
            )
            assert all(word in options.stdout for word in arguments if word.startswith("--"))
            continue
        if command == "join":
            shutil.copytree("runs/quickstart/exports/no-prompts", "answers", dirs_exist_ok=True)  # as a download does
            shutil.rmtree("joined", ignore_errors=True)
        assert cli.main([command, *arguments]) == 0, command
        done.append(command)
        if command == "join":
            assert read(Path("joined/data")).equals(published)
    assert done == ["export", "verify", "join", "join", "purge"]
    assert read(Path("runs/quickstart/dataset/data")).num_rows == published.num_rows - 1
    assert not [path for path in Path("runs/quickstart/exports").rglob("*") if path.is_file()]


@pytest.mark.long
def test_what_is_published_makes_a_page(tmp_path: Path, weights: Path) -> None:
    """`datasets`, which the hub's viewer uses, finds the split and the rows."""
    import datasets

    run = make_run(tmp_path / "run", {"method": "top_k", "top_k": 8})
    assert cli.main(["export", str(run), "--no-prompts", "--workers", "1"]) == 0
    folder = run / "exports/no-prompts"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "data", "manifest.json"]
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == {"train": read(run / "dataset/data").num_rows}
    assert {message["role"]: message["content"] for message in loaded["train"][0]["messages"]}["user"] is None
    card = (folder / "README.md").read_text()
    assert "**The prompts are withheld.**" in card
    assert "`prompt_scores` are null, and rows are named" not in card  # the source has ids of its own
