"""The report of a run in an object store is that of the run on a disk."""

from pathlib import Path

import obstore
import pytest

from stillhouse.pipeline.look import report
from stillhouse.pipeline.look.report import plots
from stillhouse.stages.sources.object_store import open_store
from tests.support.reports import make_run
from tests.support.s3 import bucket

__all__ = ["bucket"]


@pytest.mark.usefixtures("weights")
def test_an_object_store_gives_the_same_report(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "library", lambda: "window.vegaEmbed = null;")
    run = make_run(tmp_path / "run")
    store = open_store(f"{bucket}/some/run")
    for path in run.rglob("*"):
        if path.is_file():
            obstore.put(store, str(path.relative_to(run)), path.read_bytes())
    report.write(str(run))
    result = report.write(f"{bucket}/some/run")
    assert result["report"] == f"{bucket}/some/run/report.html"
    assert bytes(obstore.get(store, "report.html").bytes()) == (run / "report.html").read_bytes()
