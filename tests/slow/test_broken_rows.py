"""Malformed rows through a whole run."""

import json
from pathlib import Path

from tests.support.command import Command, read


def test_broken_rows_reach_the_ledger_of_a_run(command: Command, tmp_path: Path) -> None:
    """The same 200 and more malformed rows that tests/stages/test_refused_rows.py judges, through a whole run."""
    from tests.support.source_rows import mixed

    data, expected = mixed(seed=0)
    source = tmp_path / "source.jsonl"
    source.write_bytes(data)
    settings = {"source.path": source, "source.limit": "null", "ingest.rows_per_shard": 100}
    settings |= {"ingest.languages": "[English, French]", "ingest.max_prompt_tokens": 110}
    command("run", *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")))
    ledger = read(command.run_dir / "ledger/ingest")
    reasons = dict(zip(ledger.column("source_row").to_pylist(), ledger.column("reason").to_pylist(), strict=True))
    assert reasons == {row: reason for row, reason in enumerate(expected) if reason is not None}
    assert len(reasons) >= 200
    assert len(set(reasons.values())) >= 13
    arrived = set(read(command.run_dir / "ingest").column("source_row").to_pylist())
    assert arrived == {row for row, reason in enumerate(expected) if reason is None}
    manifest = json.loads((command.run_dir / "dataset/manifest.json").read_text())
    assert manifest["rows"] > 50
