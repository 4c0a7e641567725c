"""Drives a run on Ray. The only `import ray`.

Ray Data moves shard *names* through a pool of actors per stage (autoscaling, retries, dashboard); the actors read and
write Parquet themselves, so neither the object store nor the driver holds rows. Which shards are missing is the whole
state of a run: a second run, or a second driver, does what is left.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from stillhouse.pipeline.shards import StorageError, Store

from stillhouse.pipeline import flow, index, manifest, shards, worker
from stillhouse.pipeline.worker import Done, RedoError, Worker
from stillhouse.schemas.config import Config, ConfigError, WorkersConfig, config_hash, deciding_values, differing_keys

RUN_KEY = "run.json"
MAX_DAMAGE = 3
"""How often one file may be found damaged or gone in a run, being made again each time."""
Report = Callable[[str, int, Done | None], None]
"""Called with (step, number of shards to do, None) when a step begins and (step, number, done) after each shard."""


class RunError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


def open_run(config: Config) -> Store:
    """The run folder of `config`, made if need be. Raises as `compare_with_folder` does."""
    store = Store(config.run_dir)
    resolved = config.model_dump(mode="json")
    resolved["teacher"]["env"] = sorted(config.teacher.env)  # names only: the values may be secrets
    facts = {"config_hash": config_hash(config), "deciding": deciding_values(config), "config": resolved}
    if not store.exists(RUN_KEY):
        store.put_if_absent(RUN_KEY, json.dumps(facts, indent=1, sort_keys=True).encode())
    compare_with_folder(config)
    store.require_conditional_puts(RUN_KEY)
    return store


def compare_with_folder(config: Config) -> None:
    """Raises `ConfigError` when `run_dir` holds a run whose data another configuration decides, with the keys."""
    data = Store(config.run_dir).get_or_none(RUN_KEY)
    if data is None:
        return
    try:
        theirs = shards.parse_object(data)
        digest, deciding = theirs["config_hash"], dict(theirs["deciding"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"run_dir {config.run_dir}: its {RUN_KEY} is damaged, so it cannot be told whose run it is; "
            "restore that file, or choose another run_dir"
        ) from None
    if digest != config_hash(config):
        keys = differing_keys(deciding, json.loads(json.dumps(deciding_values(config)))) or ["config_hash"]
        raise ConfigError(
            f"run_dir {config.run_dir}: holds a run with other values of {', '.join(keys)}; "
            "restore them, or choose another run_dir"
        )


def run(config: Config, report: Report, *, retry_set_aside: bool = False) -> dict[str, Any]:
    """Brings a run to its end and returns its manifest (see `pipeline.manifest`).

    Raises `RunError` when a stage drops more than its budget, fails as a whole, or nothing is left.
    """
    store = open_run(config)
    if retry_set_aside:
        for name in flow.NAMES:
            for file in store.list(f"state/set_aside/{name}"):
                store.delete(f"state/set_aside/{name}/{file}")
    finished = finished_manifest(store)
    if finished is not None and not retry_set_aside:
        lost = _lost(config, store, finished)
        if not lost:
            return finished
        report("damaged", len(lost), Done("publish", "", 0.0, redo="; ".join(lost)))
    if not retry_set_aside and (facts := _complete(config, store)) is not None:
        return manifest.write(config, store, facts)
    store.sweep()
    with contextlib.ExitStack() as stack:
        # Only when there is something to do: a cluster takes longer to start than a finished run to be looked over.
        start_ray = functools.cache(lambda: stack.enter_context(_ray()))
        report = _bounded(report)
        while True:
            try:
                return manifest.write(config, store, _all_stages(config, store, report, start_ray))
            except RedoError as error:
                if str(error):
                    report("damaged", 1, Done("", "", 0.0, redo=str(error)))


def _complete(config: Config, store: Store) -> dict[str, dict[str, index.Facts]] | None:
    """What the shards of a run say that lacks nothing but its manifest: from one listing, of the published files. None
    when there may be more to do.

    When these are as the index has them, nothing before them is needed but its counts, and those are in the indices;
    which belong together when each shard after generate was made from the one before.
    """
    try:
        names = partition(store)
    except FileNotFoundError:
        return None
    facts = {stage: index.parse(store.get_or_none(index.key(stage))) for stage in flow.NAMES}
    if any(found.keys() != set(names) for found in facts.values()):
        return None
    for stage in flow.NAMES[flow.NAMES.index("generate") + 1 :]:
        before = facts[flow.previous(stage)]
        if any(shard.source_sha256 != before[name].sha256 for name, shard in facts[stage].items()):
            return None
    published = store.entries("dataset/data")
    files = {name: worker.published_key(name, len(names)).rpartition("/")[2] for name in names}
    if any(
        file not in published or facts["publish"][n].version != published[file].version for n, file in files.items()
    ):
        return None
    for stage in flow.NAMES[:-1]:
        _check_budget(config, store, stage, facts[stage])
    return facts


def _bounded(report: Report) -> Report:
    """`report`, and `RunError` when damage to the same file is reported again and again."""
    counts = Counter[str]()

    def count_and_report(step: str, total: int, done: Done | None) -> None:
        report(step, total, done)
        if done is not None and done.redo is not None:
            file = done.redo.partition(": ")[0]
            counts[file] += 1
            if counts[file] == MAX_DAMAGE:
                raise RunError(
                    f"{file}: is damaged or gone {MAX_DAMAGE} times, each time it is made; check the disk and who else "
                    "writes there, then run again"
                )

    return count_and_report


def _all_stages(
    config: Config, store: Store, report: Report, start_ray: Callable[[], None]
) -> dict[str, dict[str, index.Facts]]:
    """Makes all that is missing, stage after stage, and returns what each stage's shards say of themselves.

    Raises `RedoError`, empty when all has been reported, when something has to be made again in a stage that is over.
    """
    names = _ingest(config, store, report, start_ray)
    facts = {"ingest": _finish_stage(config, store, "ingest", names)}
    for stage in flow.STAGES:
        before = facts[flow.previous(stage.name)]
        _drop_stale(config, store, stage.name, names, before)
        ready = [name for name in names if name in before]
        if stage.assign is not None and _missing(store, stage.name, ready):
            sketched = _pool(config, store, stage, "sketch", ready, len(names), report, start_ray)
            if failures := [done.error for done in sketched if done.error]:
                raise RunError(f"{stage.name}: the view of the whole data set cannot be made; {failures[0]}")
            _assign(config, store, stage, {name: before[name].sha256 for name in ready}, start_ray)
        _pool(config, store, stage, "transform", ready, len(names), report, start_ray)
        facts[stage.name] = _finish_stage(config, store, stage.name, names)
    before = facts[flow.previous("publish")]
    _drop_stale(config, store, "publish", names, before)
    ready = [name for name in names if name in before]
    _pool(config, store, None, "publish", ready, len(names), report, start_ray)
    facts["publish"] = index.read(config, store, "publish", names)
    return facts


def finished_manifest(store: Store) -> dict[str, Any] | None:
    """The manifest; None when there is none that can be read, and it has to be written again."""
    try:
        return manifest.read(store)
    except ValueError:
        return None


def _lost(config: Config, store: Store, finished: dict[str, Any]) -> list[str]:
    """What to tell of published files that are gone or have another size than the manifest says; the latter are put
    away. (Their bytes are not read: that is `verify`'s.)"""
    sizes = store.list("dataset/data")
    lost = []
    for file in finished["files"]:
        key = f"dataset/{file['file']}"
        size = sizes.get(key.rpartition("/")[2])
        if size is None:
            lost.append(f"{store.path(key)}: is gone; it is made again")
        elif size != file["bytes"]:
            shard = f"{key.rpartition('train-')[2].partition('-')[0]}.parquet"
            told = worker.put_away(store, key, ("publish", shard, finished["config_hash"]))
            lost.append(f"{store.path(key)}: has {size} bytes, not {file['bytes']}; {told}")
    return lost


def partition(store: Store) -> list[str]:
    """The names of all shards of a run, as ingest fixed them. Raises FileNotFoundError before that."""
    try:
        num_shards = int(shards.parse_certified(store.get(worker.PARTITION_KEY))["num_shards"])
    except (ValueError, KeyError, TypeError):
        raise FileNotFoundError(f"{store.path(worker.PARTITION_KEY)}: is damaged; run again") from None
    return [shards.shard_name(n) for n in range(num_shards)]


def _missing(store: Store, folder: str, names: list[str]) -> list[str]:
    found = store.names(folder)
    return [name for name in names if name not in found]


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """A Ray cluster: the one we are in (a Ray job, RAY_ADDRESS), else one on this machine until the end."""
    # Ray would otherwise send usage statistics, and ask for a newer version of itself.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.data import DataContext

    mine = not ray.is_initialized()
    if mine:
        address = os.environ.get("RAY_ADDRESS", "local")
        extra = {"include_dashboard": False} if address == "local" else {}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **extra)
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init puts an exit with code 15 there
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    except (RuntimeError, ValueError, OSError):
        # Ray ends this process at once, and our last words with it, when one of its threads still calls it after a
        # shutdown. So a run that failed says why first; Ray shuts down by itself at exit.
        raise
    except BaseException:
        if mine:
            ray.shutdown()
        raise
    if mine:
        ray.shutdown()


class _SyncWorker:
    """`Worker` as Ray Data calls it: one shard name per batch."""

    def __init__(self, config: Config, stage: str, *arguments: Any) -> None:
        self._failure: Done | None = None
        try:
            self._worker = Worker(config, stage, *arguments)
        except Exception as error:
            # Told as a result: of an error Ray makes tracebacks, after it has tried again.
            self._failure = Done(stage, "", 0.0, fatal=worker.describe(error))
            logging.getLogger("stillhouse").exception("%s: a worker cannot start", stage)

    async def _process(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = self._failure or await self._worker.process(str(batch["shard"][0]))
        return {"done": [json.dumps(done.__dict__)]}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return asyncio.run(self._process(batch))

    def __del__(self) -> None:
        # Ray Data deletes the instance before it ends the actor; engines need that to end their processes.
        if hasattr(self, "_worker"):
            self._worker.close()


class _AsyncWorker(_SyncWorker):
    """The same for a stage whose transform is a coroutine: several shards at once."""

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:  # type: ignore[override]
        yield await self._process(batch)


def _pool(
    config: Config,
    store: Store,
    stage: flow.Stage | None,
    step: str,
    ready: list[str],
    num_shards: int,
    report: Report,
    start_ray: Callable[[], None],
) -> list[Done]:
    """Runs one step over the shards that miss its result. Returns what was done now.

    Raises `RedoError`, after all others are done, when something that shards are made from has to be made again.
    """
    name = stage.name if stage is not None else "publish"
    if step == "publish":
        published = store.names("dataset/data")
        todo = [n for n in ready if worker.published_key(n, num_shards).rpartition("/")[2] not in published]
    else:
        todo = _missing(store, name if step == "transform" else f"state/{name}/sketches", ready)
    if todo:
        set_aside = {file.replace(".json", ".parquet") for file in store.names(f"state/set_aside/{name}")}
        todo = [shard for shard in todo if shard not in set_aside]
    label = name if step != "sketch" else f"{name}: sketch"
    report(label, len(todo), None)
    if not todo:
        return []
    start_ray()
    done = []
    with contextlib.closing(_map_shards(config, stage, step, todo, num_shards)) as results:
        for result in results:
            if result.fatal:
                raise RunError(result.fatal)
            report(label, len(todo), result)
            done.append(result)
    if any(result.redo for result in done):
        raise RedoError
    return done


def _map_shards(
    config: Config, stage: flow.Stage | None, step: str, todo: list[str], num_shards: int
) -> Generator[Done, None, None]:
    """Sends shard names through a pool of actors; results come as they are ready."""
    import ray

    name = stage.name if stage is not None else "publish"
    resources: WorkersConfig = getattr(config.resources, name)
    is_async = stage is not None and stage.is_async and step == "transform"
    in_flight = resources.shards_in_flight if is_async else 1
    dataset = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo)).map_batches(
        _AsyncWorker if is_async else _SyncWorker,
        fn_constructor_args=(config, name, step, secrets.token_hex(6), num_shards),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=min(resources.min_workers, len(todo)),
            max_size=min(resources.max_workers, len(todo)),
            max_concurrent_calls_per_actor=in_flight,
            # Ray Data adds actors when the queued work exceeds 1.75 times what runs, so as much again must queue.
            max_tasks_in_flight_per_actor=2 * in_flight,
        ),
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus or None,
        resources=resources.resources or None,
    )
    with _explained(name):
        for row in dataset.iter_rows():
            yield Done(**json.loads(row["done"]))


def _run_task(config: Config, stage: str, function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """One Ray task that streams what `function` yields."""
    import ray

    task = ray.remote(function).options(
        num_returns="streaming",
        num_cpus=getattr(config.resources, stage).num_cpus,
        max_retries=config.resources.max_attempts,
    )
    with _explained(stage):
        for reference in task.remote(*arguments):
            yield ray.get(reference)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Ray's errors as `RunError`, in words that hold no prompt text."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise RunError(worker.describe(error.cause)) from None
    except ray.exceptions.RayError as error:
        raise RunError(
            f"{what}: Ray gave up ({type(error).__name__}); run again to go on with what is missing"
        ) from None


def _ingest(config: Config, store: Store, report: Report, start_ray: Callable[[], None]) -> list[str]:
    """Reads the source in one Ray task that streams what it has done, unless all of its shards are there. Returns their
    names."""
    try:
        names = partition(store)
        if store.names("ingest") == set(names):
            report("ingest", 0, None)
            return names
    except FileNotFoundError:
        pass
    report("ingest", -1, None)
    start_ray()
    for done in _run_task(config, "ingest", _ingest_task, config):
        if done.fatal:
            raise RunError(done.fatal)
        report("ingest", -1, done)
    return partition(store)


def _ingest_task(config: Config) -> Iterator[Done]:
    try:
        yield from worker.ingest(config)
    except StorageError as error:
        yield Done("ingest", "", 0.0, fatal=str(error))


def _assign_task(config: Config, stage: flow.Stage, names: list[str], digests: dict[str, str]) -> Iterator[Done]:
    try:
        worker.assign(config, stage, names, digests)
    except RedoError as error:
        yield Done(stage.name, "", 0.0, redo=str(error))
    except StorageError as error:
        yield Done(stage.name, "", 0.0, fatal=str(error))


def _assign(
    config: Config, store: Store, stage: flow.Stage, digests: dict[str, str], start_ray: Callable[[], None]
) -> None:
    """Makes the assignments of all shards, if one is missing; `digests` of what they were sketched from."""
    if not _missing(store, f"state/{stage.name}/assignments", [*digests]):
        return
    start_ray()
    for done in _run_task(config, stage.name, _assign_task, config, stage, [*digests], digests):
        if done.fatal:
            raise RunError(done.fatal)
        raise RedoError(done.redo)


def _drop_stale(config: Config, store: Store, stage: str, names: list[str], before: dict[str, index.Facts]) -> None:
    """Deletes shards of `stage` that were made from other bytes than the stage before has now.

    That is so where a generate shard was lost and generated again: the teacher's answers are others. Before generate it
    is not asked: what is made again there holds the same rows, and answers are too dear to be lost to a difference in
    how they are written.
    """
    if flow.NAMES.index(stage) <= flow.NAMES.index("generate"):
        return
    for name, facts in index.read(config, store, stage, names).items():
        if name in before and facts.source_sha256 != before[name].sha256:
            store.delete(f"ledger/{stage}/{name}")
            store.delete(
                worker.published_key(name, len(names)) if stage == "publish" else worker.stage_key(stage, name)
            )


def _finish_stage(config: Config, store: Store, stage: str, names: list[str]) -> dict[str, index.Facts]:
    """Completes the view of the ledger, where a writer was killed between a shard and it. Returns what the shards say.

    Raises `RunError` when `stage` dropped more than its `max_dropped_fraction`, and `RedoError` as `index.read` does.
    """
    facts = index.read(config, store, stage, names)
    for name in _missing(store, f"ledger/{stage}", [*facts]):
        worker.write_ledger(store, shards.read_info(store, worker.stage_key(stage, name)))
    _check_budget(config, store, stage, facts)
    return facts


def _check_budget(config: Config, store: Store, stage: str, facts: dict[str, index.Facts]) -> None:
    """Raises `RunError` when `stage` dropped more than its `max_dropped_fraction`."""
    rows_in, dropped = manifest.stage_counts(facts)
    total = sum(dropped.values())
    budget = getattr(config, stage).max_dropped_fraction
    if rows_in and total > budget * rows_in:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1]))
        raise RunError(
            f"{stage}: dropped {total} of {rows_in} rows ({reasons}), more than {stage}.max_dropped_fraction {budget}; "
            f"look into {store.path('ledger/' + stage)}, then raise the budget or change the stage"
        )
