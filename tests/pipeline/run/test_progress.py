"""What a run says while it goes on, in numbers that are known."""

import io
import sys
import time

import pytest

from stillhouse.pipeline.run import progress
from stillhouse.pipeline.run.progress import Progress, Step, duration
from stillhouse.pipeline.run.result import Activity, ShardResult


def activity(worker: str, *, done: int, under_way: int, tokens: int) -> Activity:
    return Activity(worker, "generate", "transform", False, 1, done, under_way, tokens)


def test_answers_tokens_and_time_left() -> None:
    """Two workers at 50 tokens/s each, 10 tokens an answer, of 100 answers."""
    step = Step("generate", 4, 100, began=0.0)
    assert step.text(7.0) == "the teacher's engine is starting, 7 s"
    step.add_activity(Activity("a", "generate", "transform", True), 8.0)
    assert step.text(9.0) == "the teacher's engine is starting, 9 s"
    for second in range(10, 21):
        for worker in ("a", "b"):
            tokens = 50 * (second - 10)
            step.add_activity(activity(worker, done=tokens // 10, under_way=5, tokens=tokens), float(second))
    assert step.answers(20.0) == (100, 0)  # never more than there are
    step.rows_done, step.tokens_done = 40, 400
    for worker in ("a", "b"):  # 60 of their 100 answers are in shards that are done
        step.add_activity(activity(worker, done=5, under_way=10, tokens=500), 20.0)
    assert step.answers(20.0) == (50, 20)
    text = step.text(20.0)
    assert text.startswith("50 answers done, 20 under way, 30 to come, 100 tokens/s, ")
    assert text.endswith("about 0 s left")
    step.num_answers = 200
    assert step.text(20.0).endswith("130 to come, 100 tokens/s, about 10 s left")


def test_worker_that_starts_again_does_not_take_tokens_back() -> None:
    step = Step("generate", 1, 10, began=0.0)
    for second, tokens in ((1, 0), (2, 100), (3, 30), (4, 60)):
        step.add_activity(activity("a", done=0, under_way=1, tokens=tokens), float(second))
    assert step.tokens_written == 160


def test_worker_that_is_gone_holds_nothing() -> None:
    """Its node was taken away: what it had under way is to come again."""
    step = Step("generate", 4, 100, began=0.0)
    for worker in ("a", "b"):
        step.add_activity(activity(worker, done=5, under_way=10, tokens=50), 1.0)
    assert (step.answers(1.0), step.snapshot(1.0).num_workers) == ((10, 20), 2)
    step.add_activity(Activity("a", "generate", "transform", False, has_ended=True), 2.0)
    assert (step.answers(2.0), step.snapshot(2.0).num_workers) == ((5, 10), 1)
    assert step.tokens_written == 100


def test_other_steps() -> None:
    assert Step("screen", 7, None, began=0.0, shards_done=3).text(12.0) == "3 of 7 shards, 12 s"
    assert Step("ingest", None, None, began=0.0, rows_done=1200).text(3.4) == "1,200 rows, 3 s"
    assert [duration(s) for s in (45, 600, 9000, 200_000)] == ["45 s", "10 min", "2.5 h", "2.3 days"]


@pytest.mark.long
def test_no_silence_longer_than_it_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 1.0)
    report = Progress()
    report.begin("screen", 2)
    time.sleep(2.6)
    report.result("screen", ShardResult("screen", "00000.parquet", 2.0, rows_in=3, rows_out=2))
    report.result("screen", ShardResult("screen", "00001.parquet", 2.0, "set_aside", "screen 00001.parquet: set aside"))
    report.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(",")[0] for line in lines[:-2]] in (["screen: 0 of 2 shards"] * n for n in (1, 2))
    assert lines[-2:] == ["screen 00000.parquet: 3 rows in, 2 out, 2.0 s", "screen 00001.parquet: set aside"]
    assert (report.num_made, report.num_others) == (1, 0)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("term", "has_lines"), [("dumb", True), ("xterm", False)])
def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch: pytest.MonkeyPatch, term: str, has_lines: bool) -> None:
    monkeypatch.setenv("TERM", term)
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    report = Progress()
    report.begin("screen", 1)
    report.result("screen", ShardResult("screen", "00000.parquet", 2.0, rows_in=3, rows_out=2))
    report.close()
    said = terminal.getvalue()
    assert (said == "screen 00000.parquet: 3 rows in, 2 out, 2.0 s\n") == has_lines
    assert ("\x1b[" in said) != has_lines
