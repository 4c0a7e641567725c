"""What Prometheus is told of a run, and that the dashboard asks for that and nothing else."""

import json
import re
from typing import Any

import pytest

from stillhouse.pipeline.run import driver, metrics
from stillhouse.pipeline.run.metrics import Metrics
from stillhouse.pipeline.run.progress import Progress, Reports
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.config import Config
from tests.support.data import ROOT
from tests.support.inline_pool import InlinePool


class Prometheus:
    """What was told: values by name and labels. Refuses labels that were not announced, as Ray does."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def metric(self, name: str, description: str, labels: tuple[str, ...]) -> Any:
        assert re.fullmatch("[a-z_]+", name), name
        assert description
        values = self.values

        class Metric:
            def set(self, value: float, tags: dict[str, str]) -> None:
                assert tags.keys() == set(labels), name
                values[name, tuple(sorted(tags.items()))] = value

            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert value > 0
                key = (name, tuple(sorted(tags.items())))
                self.set(values.get(key, 0.0) + value, tags)

        return Metric()

    def of(self, name: str, **labels: str) -> float:
        """The sum over what has these labels."""
        return sum(
            value
            for (told, tags), value in self.values.items()
            if told == name and labels.items() <= dict(tags).items()
        )

    def labels(self) -> dict[str, set[str]]:
        return {name: {label for label, _ in tags} for name, tags in self.values}


@pytest.fixture
def prometheus() -> Prometheus:
    return Prometheus()


@pytest.fixture
def progress() -> Any:
    progress = Progress()
    yield progress
    progress.close()


def told(prometheus: Prometheus, progress: Progress) -> Reports:
    return Reports(progress, Metrics("runs/a", progress, prometheus.metric, prometheus.metric))


def busy(worker: str, tokens: int, waiting: int = 0) -> Activity:
    return Activity(worker, "generate", "transform", False, 2, 3, 7, tokens, waiting, 0.25)


def test_counts_of_a_run_are_those_of_its_manifest(
    raw_config: dict[str, Any], prometheus: Prometheus, progress: Progress
) -> None:
    raw_config["source"]["limit"] = 30
    manifest = driver.run(Config.model_validate(raw_config), told(prometheus, progress), InlinePool())
    for stage, counts in manifest["stages"].items():
        sketched = 2 if stage in ("dedupe", "review") else 1  # rows go through its sketch as well
        assert prometheus.of("stillhouse_rows_total", stage=stage) == sketched * counts["rows_in"], stage
        for reason, rows in counts["dropped"].items():
            assert prometheus.of("stillhouse_rows_dropped_total", stage=stage, reason=reason) == rows
        assert prometheus.of("stillhouse_shards_total", stage=stage, outcome="written") == 3 * sketched
        assert prometheus.of("stillhouse_attempts_total", stage=stage) == 3 * sketched
    assert sum(len(counts["dropped"]) for counts in manifest["stages"].values()) > 0
    assert prometheus.of("stillhouse_step_shards_done") == 0  # over


def test_workers_and_step(prometheus: Prometheus, progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "STEP_EVERY_S", 0.0)
    report = told(prometheus, progress)
    report.begin("generate", 4, 100)
    for written in (100, 250):
        report.activity(busy("a", written))
        report.activity(busy("b", 2 * written, waiting=5))
    report.activity(busy("b", 40))  # it was started again
    assert prometheus.of("stillhouse_tokens_total", worker="a") == 250
    assert prometheus.of("stillhouse_tokens_total", worker="b") == 540
    assert prometheus.of("stillhouse_worker_answers_under_way", stage="generate", run="runs/a") == 14
    assert prometheus.of("stillhouse_worker_kv_cache_use", worker="b") == 0.25
    report.activity(Activity("", "generate", "transform", True, waits_for="1 GPU"))  # of no worker
    assert {dict(labels).get("worker") for _, labels in prometheus.values} == {None, "a", "b"}
    assert prometheus.of("stillhouse_step_answers") == 100
    assert prometheus.of("stillhouse_step_answers_done") == 6
    assert prometheus.of("stillhouse_step_answers_under_way") == 14
    monkeypatch.setattr(metrics, "SILENT_AFTER_S", -1.0)  # all of them are gone
    report.activity(busy("a", 260))
    assert prometheus.of("stillhouse_worker_answers_under_way") == 0
    monkeypatch.setattr(metrics, "SILENT_AFTER_S", 30.0)
    report.activity(busy("a", 270))
    assert prometheus.of("stillhouse_worker_answers_under_way") == 7
    tokens = prometheus.of("stillhouse_tokens_total", worker="a")
    report.activity(Activity("a", "generate", "transform", False, has_ended=True))
    assert prometheus.of("stillhouse_worker_answers_under_way") == 0
    assert prometheus.of("stillhouse_tokens_total", worker="a") == tokens
    report.activity(busy("b", 10))
    report.begin("review: sketch", 4)
    assert prometheus.of("stillhouse_worker_answers_under_way") == 0
    assert prometheus.of("stillhouse_step_answers") == 0


def test_shards_that_another_run_wrote_are_its_own(prometheus: Prometheus, progress: Progress) -> None:
    report = told(prometheus, progress)
    report.begin("review", 2)
    report.result("review", ShardResult("review", "00000.parquet", 1.0, rows_in=5, dropped={"empty_answer": 2}))
    report.result("review", ShardResult("review", "00001.parquet", 1.0, "others", rows_in=5, dropped={"x": 1}))
    assert prometheus.of("stillhouse_rows_total") == 5
    assert prometheus.of("stillhouse_rows_dropped_total") == 2
    assert prometheus.of("stillhouse_shards_total", outcome="others") == 1


def test_rays_own_classes_take_these_names_and_labels(progress: Progress) -> None:
    """Outside of a cluster they keep nothing, but refuse a label that is missing and a name that is invalid."""
    report = Reports(progress, Metrics("runs/a", progress))
    report.begin("generate", 1, 10)
    report.activity(busy("a", 10))
    report.result("generate", ShardResult("generate", "00000.parquet", 1.0, rows_in=5, dropped={"no_answer": 2}))
    report.begin("review", 1)


def test_dashboard_asks_for_what_is_told(
    raw_config: dict[str, Any], prometheus: Prometheus, progress: Progress
) -> None:
    """Names and labels as a run told them, not as they are declared."""
    raw_config["source"]["limit"] = 10
    report = told(prometheus, progress)
    report.begin("generate", 1, 10)
    report.activity(busy("a", 10))
    driver.run(Config.model_validate(raw_config), report, InlinePool())
    labels = prometheus.labels()
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [variable["definition"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    names = {name for expr in asked for name in re.findall(r"\bray_(\w+)", expr)}
    assert names == labels.keys()
    for expr in asked:
        for name, selectors in re.findall(r"\bray_(\w+)\{([^}]*)\}", expr):
            assert set(re.findall(r"(\w+)\s*=", selectors)) <= labels[name], expr
        for grouped in re.findall(r"by \(([^)]*)\)", expr):
            for name in re.findall(r"\bray_(\w+)", expr):
                assert set(grouped.split(", ")) <= labels[name], expr
    for panel in panels:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = set(", ".join(re.findall(r"by \(([^)]*)\)", target["expr"])).split(", "))
            assert shown <= grouped, panel["title"]
