"""The report of a run in an object store is that of the run on a disk."""

from pathlib import Path

import pytest

from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.look import report
from stillhouse.pipeline.look.report import plots
from tests.support.reports import make_run
from tests.support.s3 import bucket

__all__ = ["bucket"]


@pytest.mark.usefixtures("weights")
def test_an_object_store_gives_the_same_report(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "library", lambda: "window.vegaEmbed = null;")
    run = make_run(tmp_path / "run")
    store = open_folder(f"{bucket}/some/run")
    for path in run.rglob("*"):
        if path.is_file():
            store.put(str(path.relative_to(run)), path.read_bytes())
    report.write(str(run))
    result = report.write(f"{bucket}/some/run")
    assert result["report"] == f"{bucket}/some/run/report.html"
    assert store.get("report.html") == (run / "report.html").read_bytes()
