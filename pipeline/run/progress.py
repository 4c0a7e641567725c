"""What a run says while it goes on: bars on a terminal, elsewhere a line per shard and at least one every 10 s."""

import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from stillhouse.pipeline.console import message, rich
from stillhouse.pipeline.folder.keys import TASKS
from stillhouse.pipeline.run.result import Activity, ShardResult

LINE_EVERY_S = 10.0
"""Longest silence, where there are no bars."""
RATE_OVER_S = 30.0
"""Stretch of time of which the speed is told."""


class Report(Protocol):
    """Who is told how a run goes on."""

    def begin(self, step: str, num_shards: int | None, num_answers: int | None = None) -> None:
        """A step begins. `num_shards` to make is None where that is not known; `num_answers` only for a teacher's."""
        ...

    def result(self, step: str, result: ShardResult) -> None:
        """A shard of the step has been made, or not."""
        ...

    def activity(self, activity: Activity) -> None:
        """What a worker is doing; may come from another thread."""
        ...

    def trouble(self, text: str) -> None:
        """Something is damaged or gone, and is made again."""
        ...


class Reports:
    """Several as one."""

    def __init__(self, *reports: Report) -> None:
        self._reports = reports

    def begin(self, step: str, num_shards: int | None, num_answers: int | None = None) -> None:
        for report in self._reports:
            report.begin(step, num_shards, num_answers)

    def result(self, step: str, result: ShardResult) -> None:
        for report in self._reports:
            report.result(step, result)

    def activity(self, activity: Activity) -> None:
        for report in self._reports:
            report.activity(activity)

    def trouble(self, text: str) -> None:
        for report in self._reports:
            report.trouble(text)


@dataclass(frozen=True)
class Snapshot:
    """How far the step under way is, at one moment."""

    step: str
    text: str
    """All of it in one line."""
    shards_done: int
    num_shards: int | None
    answers_done: int
    answers_under_way: int
    num_answers: int | None
    tokens_per_second: float
    seconds_left: float | None
    """None where it is not known."""
    num_workers: int


@dataclass
class Step:
    """The step under way, in numbers."""

    name: str
    num_shards: int | None
    num_answers: int | None
    began: float
    shards_done: int = 0
    rows_done: int = 0
    tokens_done: int = 0
    """Supervised tokens of the shards done."""
    workers: dict[str, Activity] = field(default_factory=dict)
    deltas: deque[tuple[float, int]] = field(default_factory=deque)
    """When tokens came, and how many."""
    tokens_written: int = 0
    in_pieces: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Rows and tokens that are done of shards which workers share and which are not done."""

    def add_result(self, result: ShardResult) -> None:
        rows, tokens = self.in_pieces.pop(result.shard, (0, 0))
        if result.outcome == "part":
            self.in_pieces[result.shard] = (rows + result.rows_in, tokens + result.num_target_tokens)
            rows = tokens = 0
        self.shards_done += result.outcome in ("written", "others")
        self.rows_done += result.rows_in - rows
        self.tokens_done += result.num_target_tokens - tokens

    def add_activity(self, activity: Activity, now: float) -> None:
        if activity.has_ended:
            self.workers.pop(activity.worker, None)
            return
        delta = new_tokens(self.workers.get(activity.worker), activity)
        self.workers[activity.worker] = activity
        if activity.worker:
            self.workers.pop("", None)  # the wait is over
        if delta:
            self.deltas.append((now, delta))
            self.tokens_written += delta

    def tokens_per_second(self, now: float) -> float:
        while self.deltas and self.deltas[0][0] < now - RATE_OVER_S:
            self.deltas.popleft()
        if not self.deltas:
            return 0.0
        since = self.deltas[0][0]  # what came then was written before
        return sum(delta for at, delta in self.deltas if at > since) / max(now - since, 1.0)

    def text(self, now: float) -> str:
        """What is going on, in one line."""
        seconds = f"{now - self.began:.0f} s"
        if "" in self.workers:
            return f"waits for {self.workers[''].waits_for}, {seconds}"
        is_starting = bool(self.workers) and all(activity.is_starting for activity in self.workers.values())
        if self.num_answers is None:
            starting = ", its workers are starting" if is_starting else ""
            if self.num_shards is None:
                rows = f"{self.rows_done:,} rows, " if self.rows_done else ""
                return f"{rows}{seconds}{starting}"
            return f"{self.shards_done:,} of {self.num_shards:,} shards, {seconds}{starting}"
        if is_starting or not self.workers:
            return f"the teacher's engine is starting, {seconds}"
        done, under_way = self.answers(now)
        to_come = self.num_answers - done - under_way
        rate, left = self.tokens_per_second(now), self.seconds_left(now)
        return (
            f"{done:,} answers done, {under_way:,} under way, {to_come:,} to come, {rate:,.0f} tokens/s, "
            f"{'time left not known yet' if left is None else f'about {duration(left)} left'}"
        )

    def answers(self, now: float) -> tuple[int, int]:
        """Answers done and under way."""
        assert self.num_answers is not None
        done = min(self.num_answers, self.rows_done + sum(activity.num_done for activity in self.workers.values()))
        under_way = sum(activity.num_under_way for activity in self.workers.values())
        return done, min(under_way, self.num_answers - done)

    def seconds_left(self, now: float) -> float | None:
        """Of answers from the tokens of one so far and the speed of now, else from the shards so far; None where it is
        not known yet."""
        if self.num_answers is None:
            if not self.num_shards or not self.shards_done:
                return None
            return (self.num_shards - self.shards_done) * (now - self.began) / self.shards_done
        done, under_way = self.answers(now)
        if self.rows_done and self.tokens_done:
            tokens_per_answer = self.tokens_done / self.rows_done
        elif done:
            tokens_per_answer = self.tokens_written / (done + under_way / 2)
        else:
            return None
        rate = self.tokens_per_second(now)
        return max(0.0, self.num_answers * tokens_per_answer - self.tokens_written) / rate if rate > 0 else None

    def snapshot(self, now: float) -> Snapshot:
        done, under_way = (0, 0) if self.num_answers is None else self.answers(now)
        return Snapshot(
            self.name,
            self.text(now),
            self.shards_done,
            self.num_shards,
            done,
            under_way,
            self.num_answers,
            self.tokens_per_second(now),
            self.seconds_left(now),
            sum(bool(worker) for worker in self.workers),
        )


def new_tokens(before: Activity | None, now: Activity) -> int:
    """Tokens that a worker has written between two reports; one that was started again begins at 0."""
    return now.num_tokens - (before.num_tokens if before is not None and before.num_tokens <= now.num_tokens else 0)


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


class Progress:
    """`Report` for people, on standard error; and the sums that the summary tells at the end."""

    def __init__(self) -> None:
        self.generate_seconds, self.generate_tokens = 0.0, 0
        self._earlier_seconds = 0.0  # of other teachers
        self.num_made = 0
        self.num_others = 0  # shards that another run wrote while this one was about to
        self._begun = time.monotonic()
        self._step: Step | None = None
        self._lock = threading.Lock()
        self._last_line = time.monotonic()
        self._bars = _Bars() if _can_draw() else None
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return time.monotonic() - self._begun

    def snapshot(self) -> Snapshot | None:
        """None between steps. May be called from any thread."""
        with self._lock:
            return None if self._step is None else self._step.snapshot(time.monotonic())

    def begin(self, step: str, num_shards: int | None, num_answers: int | None = None) -> None:
        with self._lock:
            self._step = Step(step, num_shards, num_answers, time.monotonic()) if num_shards != 0 else None
            self._earlier_seconds = self.generate_seconds
            if self._bars is not None:
                self._bars.begin(self._step)

    def result(self, step: str, result: ShardResult) -> None:
        is_made = result.outcome in ("written", "others")
        with self._lock:
            self.num_made += is_made
            self.num_others += result.outcome == "others"
            if self._step is not None:
                self._step.add_result(result)
                if step.partition(":")[0] in TASKS and result.outcome != "others":
                    self.generate_seconds = self._earlier_seconds + time.monotonic() - self._step.began
                    self.generate_tokens += 0 if result.outcome == "part" else result.num_target_tokens
        if result.outcome == "part":
            return
        if not is_made:
            self._line(result.message)
        elif self._bars is None:
            tokens = f", {result.num_target_tokens:,} tokens" if result.num_target_tokens else ""
            end = "written by another run" if result.outcome == "others" else f"{result.seconds:.1f} s"
            self._line(f"{step} {result.shard}: {result.rows_in:,} rows in, {result.rows_out:,} out{tokens}, {end}")

    def activity(self, activity: Activity) -> None:
        with self._lock:
            if self._step is not None and self._step.name.partition(":")[0] == activity.stage:
                self._step.add_activity(activity, time.monotonic())

    def trouble(self, text: str) -> None:
        self._line(text)

    def close(self) -> None:
        self._ended.set()
        self._ticker.join()
        if self._bars is not None:
            self._bars.close()

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        if self._bars is not None:
            self._bars.line(text)
        else:
            message(text)

    def _tick(self) -> None:
        while not self._ended.wait(0.5):
            now = time.monotonic()
            with self._lock:
                step = self._step
                text = step.text(now) if step is not None else "looking at what is there"
                if self._bars is not None:
                    self._bars.update(step, text, now)
                    continue
            if now - self._last_line >= LINE_EVERY_S:
                self._line(f"{step.name}: {text}" if step is not None else text)


def _can_draw() -> bool:
    """Whether rich draws on standard error: not on every terminal (TERM=dumb)."""
    if not sys.stderr.isatty():
        return False
    console = rich()
    return console.is_terminal and not console.is_dumb_terminal


class _Bars:
    """A bar per step, by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bars = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True, highlight=False),
        )
        self._task: Any = None
        self._bars.start()

    def begin(self, step: Step | None) -> None:
        if self._task is not None:
            task = next(task for task in self._bars.tasks if task.id == self._task)
            self._bars.update(self._task, total=task.total or 1, completed=task.total or 1)
            self._task = None
        if step is not None:
            total = step.num_answers if step.num_answers is not None else step.num_shards
            self._task = self._bars.add_task(step.name, total=total, text="")

    def update(self, step: Step | None, text: str, now: float) -> None:
        if step is None or self._task is None:
            return
        completed = step.answers(now)[0] if step.num_answers is not None else step.shards_done
        self._bars.update(self._task, completed=completed, text=text)

    def line(self, text: str) -> None:
        self._bars.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bars.stop()
