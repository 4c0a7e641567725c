"""The command as a user runs it, in a process of its own, and what it leaves in a run folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.support.data import ROOT


class Command:
    """`python -m stillhouse COMMAND config.yaml` as a user runs it; runs write a report, which takes a second or two,
    only where it `reports`."""

    def __init__(self, folder: Path, raw: dict[str, Any], *, local: bool = False, reports: bool = False) -> None:
        self.file = folder / "config.yaml"
        self.file.write_text(yaml.safe_dump(raw))
        self.run_dir = Path(raw["run_dir"])
        self.local, self.reports = local, reports

    def start(self, command: str, *arguments: str, **environment: Any) -> subprocess.Popen[str]:
        if command == "run":
            arguments = (*arguments, *(["--local"] if self.local else []), *([] if self.reports else ["--no-report"]))
        return subprocess.Popen(
            [sys.executable, "-m", "stillhouse", command, str(self.file), "--json", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, command: str, *arguments: str, expect: int = 0, **environment: Any
    ) -> tuple[dict[str, Any], str]:
        process = self.start(command, *arguments, **environment)
        out, err = process.communicate(timeout=300)
        assert process.returncode == expect, err
        return (json.loads(out) if out.strip() else {}), err


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that is data, by its path in the run folder. The report is none: it knows how long a run took."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] != "state"
        and path.name not in ("run.json", "report.html")
    }


def read(folder: Path) -> pa.Table:
    files = sorted(folder.glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file).replace_schema_metadata(None) for file in files])


def copy_of(finished: Command, folder: Path, *, local: bool = True, **changes: Any) -> Command:
    """A command on a copy of a finished run, with other values in sections of its configuration."""
    raw = yaml.safe_load(finished.file.read_text())
    raw["run_dir"] = str(folder / "run")
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value}
    shutil.copytree(finished.run_dir, raw["run_dir"])
    return Command(folder, raw, local=local)


def without_answers(command: Command) -> None:
    """Takes back what a finished run did from generate on."""
    for folder in ("dataset", "review", "generate", "state/review", "ledger/review", "ledger/generate"):
        shutil.rmtree(command.run_dir / folder)
