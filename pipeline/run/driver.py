"""Drives a run: from stage to stage, what is missing is made.

Which shards are missing is the whole state of a run: a second run, or a second driver, does what is left.
"""

import contextlib
from collections import Counter
from typing import Any

from stillhouse.pipeline import flow
from stillhouse.pipeline.dataset import manifest
from stillhouse.pipeline.dataset.given import check_given_ids, check_student
from stillhouse.pipeline.dataset.teachers import check_one_tokenizer
from stillhouse.pipeline.errors import RedoError, RunError
from stillhouse.pipeline.flow import Stage
from stillhouse.pipeline.folder import index, keys, partition
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.identity import open_run
from stillhouse.pipeline.folder.index import ShardSummary
from stillhouse.pipeline.folder.quarantine import quarantine
from stillhouse.pipeline.folder.shard import ShardId
from stillhouse.pipeline.folder.store import Folder
from stillhouse.pipeline.run import purge, sharing, teachers
from stillhouse.pipeline.run.assign import assign_task
from stillhouse.pipeline.run.budget import check_budget, require_rows
from stillhouse.pipeline.run.commit import write_ledger
from stillhouse.pipeline.run.partition import ingest_task
from stillhouse.pipeline.run.pool import Job, Pool
from stillhouse.pipeline.run.progress import Report
from stillhouse.pipeline.run.result import ShardResult
from stillhouse.schemas.config import Config

MAX_DAMAGE = 3
"""How often one file may be found damaged or gone in a run, being made again each time."""


def run(
    config: Config, report: Report, pool: Pool, *, retry_set_aside: bool = False, until: str | None = None
) -> dict[str, Any]:
    """Brings a run to its end and returns its manifest (see `pipeline.dataset.manifest`). `pool` is closed.

    With `until` the run stops after that stage: nothing of later ones is asked of the pool, and of the manifest only
    `stages` and `set_aside` are returned, with `until` beside them (unless the run had ended before). Raises `RunError`
    when a stage drops more than its budget, fails as a whole, or nothing is left; `ConfigError` where no stage before
    the last is called `until`.
    """
    if until is not None:
        flow.require_end(config, until)
    check_given_ids(config)
    check_one_tokenizer(config)
    check_student(config)
    folder = open_run(config)
    purge.finish(config, report.trouble)
    if retry_set_aside:
        for stage in flow.of(config):
            for file in folder.list(keys.set_aside_folder(stage.name)):
                folder.delete(f"{keys.set_aside_folder(stage.name)}/{file}")
    driver = _Driver(config, folder, report, pool, until)
    if not retry_set_aside:
        finished = manifest.finished(folder)
        if finished is not None and not driver.report_lost(finished):
            return manifest.with_labels(config, folder, finished)
        if until is None and (summaries := driver.only_manifest_is_missing()) is not None:
            return manifest.write(config, folder, summaries)
    folder.sweep()
    try:
        written = driver.make_all()
    except BaseException as error:
        pool.close(error)
        raise
    pool.close()
    return written


class _Driver:
    """One call of `run`."""

    def __init__(self, config: Config, folder: Folder, report: Report, pool: Pool, until: str | None) -> None:
        self._config, self._folder, self._report, self._pool = config, folder, report, pool
        self._stages, self._until = flow.of(config), until
        self._num_damaged = Counter[str]()
        self._is_required = False

    # -----------------------------------------------------------------------------------------------------------------
    # What may be there already

    def report_lost(self, finished: dict[str, Any]) -> bool:
        """Whether published files are gone or have another size than the manifest says; the latter are put away. (Their
        bytes are not read: that is `verify`'s.)"""
        sizes = self._folder.list(keys.stage_folder(keys.PUBLISH))
        messages, lost = [], []
        for file in finished["files"]:
            key = f"dataset/{file['file']}"
            size = sizes.get(keys.name(key))
            if size == file["bytes"]:
                continue
            lost.append(key)
            if size is None:
                messages.append(f"{self._folder.path(key)}: is gone; it is made again")
                continue
            expected = ShardId(keys.PUBLISH, keys.published_shard(key), finished["config_hash"])
            what = quarantine(self._folder, key, expected)
            messages.append(f"{self._folder.path(key)}: has {size} bytes, not {file['bytes']}; {what}")
        if lost:
            self._report.trouble("; ".join(messages))
        return bool(lost)

    def only_manifest_is_missing(self) -> dict[str, dict[str, ShardSummary]] | None:
        """Summaries of every stage, if only the manifest is missing: from one listing, of the published files. None
        otherwise.

        When these are as the index has them, nothing before them is needed but its counts, and those are in the
        indices; which belong together when each shard after generate was made from the one before.
        """
        try:
            names = partition.read(self._folder)
        except FileNotFoundError:
            return None
        summaries = {stage.name: index.load(self._folder, stage.name) for stage in self._stages}
        if any(of_stage.keys() != set(names) for of_stage in summaries.values()):
            return None
        for stage in self._stages:
            before = summaries[self._before(stage)] if stage.follows_answers else {}
            if before and any(s.source_sha256 != before[name].sha256 for name, s in summaries[stage.name].items()):
                return None
        published = self._folder.entries(keys.stage_folder(keys.PUBLISH))
        for name, summary in summaries[keys.PUBLISH].items():
            file = keys.name(keys.stage_shard(keys.PUBLISH, name, len(names)))
            if file not in published or summary.version != published[file].version:
                return None
        for stage in self._stages:
            check_budget(self._config, self._folder, stage.name, summaries[stage.name])
        return summaries

    # -----------------------------------------------------------------------------------------------------------------
    # Making what is missing

    def make_all(self) -> dict[str, Any]:
        """Makes all that is missing, again where something turns out damaged, and writes the manifest where no stage is
        left out."""
        while True:
            try:
                summaries = self._all_stages()
                if self._until is not None:
                    return {
                        "until": self._until,
                        "stages": manifest.stage_rows(self._config, summaries),
                        "set_aside": manifest.set_aside(self._config, self._folder),
                    }
                self._report.begin("manifest", None)
                return manifest.write(self._config, self._folder, summaries)
            except RedoError as error:
                if str(error):
                    self._report.trouble(str(error))
                    self._count_damage(error.keys)

    def _all_stages(self) -> dict[str, dict[str, ShardSummary]]:
        """Makes all that is missing, stage after stage up to `until`, and returns what each stage's shards say of
        themselves.

        Raises `RedoError`, empty when all has been reported, when a stage that is over has to make something again.
        """
        names = self._ingest()
        summaries = {"ingest": self._finish_stage("ingest", names)}
        for stage in self._to_do()[1:]:
            before = summaries[self._before(stage)]
            self._drop_stale(stage, names, before)
            ready = {name: before[name] for name in names if name in before}
            if stage.assign is not None and self._missing(stage.name, "transform", [*ready], len(names)):
                self._view(stage, ready, len(names))
            for teacher in (stage.name == self._config.task and self._config.teacher_names) or (None,):
                self._map(stage, "transform", ready, len(names), teacher)
            self._require_all(stage, ready, len(names))
            summaries[stage.name] = self._finish_stage(stage.name, names)
        return summaries

    def _require(self, first: str) -> None:
        """Has the pool look, once, whether it can do what is left: before anything is paid for, not at its turn."""
        if self._is_required:
            return
        self._is_required = True
        names = [stage.name for stage in self._to_do()]
        needed = names[names.index(first) :]
        sentences = [text for view in self._config.views() for text in self._pool.require(view, needed)]
        for sentence in dict.fromkeys(sentences):
            self._report.trouble(sentence)

    def _to_do(self) -> tuple[Stage, ...]:
        """The stages up to `until`."""
        names = [stage.name for stage in self._stages]
        return self._stages if self._until is None else self._stages[: names.index(self._until) + 1]

    def _before(self, stage: Stage) -> str:
        return flow.previous(self._config, stage.name)

    def _ingest(self) -> list[str]:
        """Reads the source, unless all of its shards are there. Returns their names."""
        with contextlib.suppress(FileNotFoundError):
            names = partition.read(self._folder)
            if self._folder.names("ingest") >= set(names):
                self._report.begin("ingest", 0)
                return names
        self._report.begin("ingest", None)
        self._require("ingest")
        for result in self._pool.run_task(self._config, "ingest", ingest_task, self._pool.in_order):
            self._accept("ingest", result)
        return partition.read(self._folder)

    def _view(self, stage: Stage, ready: dict[str, ShardSummary], num_shards: int) -> None:
        """Makes what a stage needs to see the whole data set: a sketch of each shard, then their assignments."""
        for result in self._map(stage, "sketch", ready, num_shards):
            raise RunError(f"{stage.name}: the view of the whole data set cannot be made; {result.message}")
        assigned = self._folder.names(keys.assignments(stage.name))
        if set(ready) <= assigned:
            return
        self._report.begin(f"{stage.name}: assign", None)
        digests = {name: summary.sha256 for name, summary in ready.items()}
        for result in self._pool.run_task(self._config, stage.name, assign_task, stage.name, [*ready], digests):
            if result.outcome == "fatal":
                raise RunError(result.message)
            raise RedoError(result.message, result.damaged)

    def _map(
        self, stage: Stage, step: str, ready: dict[str, ShardSummary], num_shards: int, teacher: str | None = None
    ) -> list[ShardResult]:
        """Runs one step over the shards that miss its result, or the part in it of one `teacher`. Returns what was set
        aside now.

        Raises `RedoError`, after all others are done, when something that shards are made from has to be made again.
        """
        todo = self._to_make(stage.name, step, [*ready], num_shards)
        rows = {name: (0, ready[name].rows_out) for name in todo}
        label = f"{stage.name}: sketch" if step == "sketch" else stage.name
        if teacher is not None:
            label = f"{stage.name}: {teacher}"
            parts = sharing.by_shard(self._folder.names(keys.parts(stage.name))) if todo else {}
            asked = {name: ready[name] for name in todo}
            rows = teachers.turns(teacher, self._config, asked, parts)
            todo = [*rows]
        samples = self._config.num_samples(stage.name)
        num_answers = sum(high - low for low, high in rows.values()) * samples if stage.is_async else None
        self._report.begin(label, len(todo), num_answers)
        if not todo:
            return []
        self._require(stage.name)
        is_async = stage.is_async and step == "transform"
        job = Job(self._config, stage.name, step, num_shards, is_async=is_async, teacher=teacher)
        aside, has_to_redo, units = list[ShardResult](), False, self._units(job, todo, ready, rows)
        with contextlib.closing(self._pool.map_shards(job, units, self._report.activity)) as made:  # type: ignore[type-var]
            for result in made:
                self._accept(label, result)
                has_to_redo |= result.outcome == "redo"
                aside += [result] if result.outcome == "set_aside" else []
        if has_to_redo:
            raise RedoError
        return aside

    def _require_all(self, stage: Stage, ready: dict[str, ShardSummary], num_shards: int) -> None:
        """Raises `RedoError` where a shard was neither made nor set aside: pieces of several teachers that nobody put
        together, because somebody else took some away meanwhile."""
        if not stage.is_async or self._config.teachers is None:
            return
        if left := self._to_make(stage.name, "transform", [*ready], num_shards):
            paths = [keys.stage_shard(stage.name, name, num_shards) for name in left]
            raise RedoError(f"{stage.name} {', '.join(left)}: parts of it are gone; they are made again", paths)

    def _units(
        self, job: Job, todo: list[str], ready: dict[str, ShardSummary], rows: dict[str, tuple[int, int]]
    ) -> list[str]:
        """What workers are given, in order."""
        if not job.is_async:
            sizes = {name: ready[name].num_bytes for name in todo}
            return sharing.by_cost(todo, sizes, job.resources.max_workers)
        begun = sharing.by_shard(self._folder.names(keys.parts(job.stage)))
        extents = None if job.teacher is None else rows
        return sharing.shared(todo, ready, job.resources.max_workers, job.shards_in_flight, begun, extents)

    def _accept(self, label: str, result: ShardResult) -> None:
        """Reports a result. Raises `RunError` when the run cannot go on after it."""
        if result.outcome == "fatal":
            raise RunError(result.message)
        self._report.result(label, result)
        self._count_damage(result.damaged)

    def _count_damage(self, damaged: tuple[str, ...]) -> None:
        """Raises `RunError` when the same file is found damaged again and again."""
        for key in damaged:
            self._num_damaged[key] += 1
            if self._num_damaged[key] == MAX_DAMAGE:
                raise RunError(
                    f"{self._folder.path(key)}: is damaged or gone {MAX_DAMAGE} times, each time it is made; check the "
                    "disk and who else writes there, then run again"
                )

    def _to_make(self, stage: str, step: str, names: list[str], num_shards: int) -> list[str]:
        """Those that are `_missing` and not set aside."""
        missing = self._missing(stage, step, names, num_shards)
        files = self._folder.names(keys.set_aside_folder(stage)) if missing else ()
        set_aside = {keys.set_aside_shard(file) for file in files}
        return [name for name in missing if name not in set_aside]

    def _missing(self, stage: str, step: str, names: list[str], num_shards: int) -> list[str]:
        """The shards of `names` that miss the result of a step."""
        if step == "sketch":
            present = self._folder.names(keys.sketches(stage))
            return [name for name in names if name not in present]
        present = self._folder.names(keys.stage_folder(stage))
        return [name for name in names if keys.name(keys.stage_shard(stage, name, num_shards)) not in present]

    def _drop_stale(self, stage: Stage, names: list[str], before: dict[str, ShardSummary]) -> None:
        """Deletes shards of a stage that were made from other answers than there are now."""
        if not stage.follows_answers:
            return
        for name, summary in index.read(self._config, self._folder, stage.name, names).items():
            if name in before and summary.source_sha256 != before[name].sha256:
                self._folder.delete(keys.ledger_shard(stage.name, name))
                self._folder.delete(keys.stage_shard(stage.name, name, len(names)))

    def _finish_stage(self, stage: str, names: list[str]) -> dict[str, ShardSummary]:
        """Completes the view of the ledger, where a writer was killed between a shard and it. Returns what the shards
        say.

        Raises `RunError` when `stage` dropped more than its `max_dropped_fraction`, or all; `RedoError` as `index.read`
        does.
        """
        summaries = index.read(self._config, self._folder, stage, names)
        if stage == keys.PUBLISH:  # which drops nothing
            return summaries
        viewed = self._folder.names(keys.ledger(stage))
        for name in summaries:
            if name not in viewed:
                write_ledger(self._folder, shards.read_info(self._folder, keys.stage_shard(stage, name, len(names))))
        check_budget(self._config, self._folder, stage, summaries)
        if summaries.keys() == set(names):
            require_rows(self._folder, stage, summaries)
        return summaries
