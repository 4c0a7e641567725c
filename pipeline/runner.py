"""Drives a run on Ray. The only `import ray`.

Ray Data moves shard *names* through a pool of actors per stage (autoscaling, retries, dashboard); the actors read and
write Parquet themselves, so neither the object store nor the driver holds rows. Which shards are missing is the whole
state of a run: a second run, or a second driver, does what is left.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from pipeline import flow, manifest, shards, worker
from pipeline.shards import Store
from pipeline.worker import Done, Worker
from schemas.config import Config, ConfigError, WorkersConfig, config_hash, deciding_values, differing_keys

RUN_KEY = "run.json"
Report = Callable[[str, int, Done | None], None]
"""Called with (step, number of shards to do, None) when a step begins and (step, number, done) after each shard."""


class RunError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


def open_run(config: Config) -> Store:
    """The run folder of `config`, made if need be. Raises as `compare_with_folder` does."""
    store = Store(config.run_dir)
    facts = {
        "config_hash": config_hash(config),
        "deciding": deciding_values(config),
        "config": config.model_dump(mode="json"),
    }
    if not store.put_if_absent(RUN_KEY, json.dumps(facts, indent=1, sort_keys=True).encode()):
        compare_with_folder(config)
    return store


def compare_with_folder(config: Config) -> None:
    """Raises `ConfigError` when `run_dir` holds a run whose data another configuration decides, with the keys."""
    data = Store(config.run_dir).get_or_none(RUN_KEY)
    if data is None:
        return
    theirs = json.loads(data)
    if theirs["config_hash"] != config_hash(config):
        keys = differing_keys(theirs["deciding"], json.loads(json.dumps(deciding_values(config))))
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
    finished = manifest.read(store)
    if finished is not None and not retry_set_aside:
        return finished
    with _ray():
        _ingest(config, store, report)
        names = partition(store)
        _check_budget(config, store, "ingest", names)
        for stage in flow.STAGES:
            ready = _existing(store, flow.previous(stage.name), names)
            if stage.assign is not None:
                sketched = _pool(config, store, stage, "sketch", ready, len(names), report)
                if failures := [done.error for done in sketched if done.error]:
                    raise RunError(f"{stage.name}: the view of the whole data set cannot be made; {failures[0]}")
                _assign(config, store, stage, ready)
            _pool(config, store, stage, "transform", ready, len(names), report)
            _check_budget(config, store, stage.name, names)
        done = _pool(
            config, store, None, "export", _existing(store, flow.previous("export"), names), len(names), report
        )
    return manifest.write(config, store, names, done)


def partition(store: Store) -> list[str]:
    """The names of all shards of a run, as ingest fixed them. Raises FileNotFoundError before that."""
    return [shards.shard_name(n) for n in range(json.loads(store.get(worker.PARTITION_KEY))["num_shards"])]


def _existing(store: Store, folder: str, names: list[str]) -> list[str]:
    found = store.list(folder)
    return [name for name in names if name in found]


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
    finally:
        if mine:
            ray.shutdown()


class _SyncWorker:
    """`Worker` as Ray Data calls it: one shard name per batch."""

    def __init__(self, *arguments: Any) -> None:
        self._worker = Worker(*arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _packed(asyncio.run(self._worker.process(str(batch["shard"][0]))))

    def __del__(self) -> None:
        # Ray Data deletes the instance before it ends the actor; engines need that to end their processes.
        if hasattr(self, "_worker"):
            self._worker.close()


class _AsyncWorker(_SyncWorker):
    """The same for a stage whose transform is a coroutine: several shards at once."""

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:  # type: ignore[override]
        yield _packed(await self._worker.process(str(batch["shard"][0])))


def _packed(done: Done) -> dict[str, Any]:
    return {"done": [json.dumps(done.__dict__)]}


def _pool(
    config: Config, store: Store, stage: flow.Stage | None, step: str, ready: list[str], num_shards: int, report: Report
) -> list[Done]:
    """Runs one step over the shards that miss its result. Returns what was done now."""
    import ray

    name = stage.name if stage is not None else "export"
    if step == "export":
        published = store.list("dataset/data")
        existing = {n for n in ready if worker.published_key(n, num_shards).rpartition("/")[2] in published}
    else:
        existing = set(_existing(store, name if step == "transform" else f"state/{name}/sketches", ready))
    set_aside = {file.replace(".json", ".parquet") for file in store.list(f"state/set_aside/{name}")}
    todo = [shard for shard in ready if shard not in existing and shard not in set_aside]
    label = name if step != "sketch" else f"{name}: sketch"
    report(label, len(todo), None)
    if not todo:
        return []
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
    done = []
    for row in dataset.iter_rows():
        result = Done(**json.loads(row["done"]))
        report(label, len(todo), result)
        done.append(result)
    return done


def _ingest(config: Config, store: Store, report: Report) -> None:
    """Reads the source in one Ray task that streams what it has done, unless the partition is fixed already."""
    import ray

    if store.get_or_none(worker.PARTITION_KEY) is not None:
        report("ingest", 0, None)
        return
    report("ingest", -1, None)
    task = ray.remote(_ingest_task).options(
        num_returns="streaming", num_cpus=config.resources.ingest.num_cpus, max_retries=1
    )
    for reference in task.remote(config):
        try:
            report("ingest", -1, ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            raise RunError(worker.describe(error.cause)) from None


def _ingest_task(config: Config) -> Iterator[Done]:
    yield from worker.ingest(config)


def _assign(config: Config, store: Store, stage: flow.Stage, ready: list[str]) -> None:
    import ray

    if _existing(store, f"state/{stage.name}/assignments", ready) == ready:
        return
    task = ray.remote(worker.assign).options(num_cpus=getattr(config.resources, stage.name).num_cpus)
    ray.get(task.remote(config, stage, ready))


def _check_budget(config: Config, store: Store, stage: str, names: list[str]) -> None:
    """Raises `RunError` when `stage` dropped more than its `max_dropped_fraction`."""
    rows_in, dropped = manifest.stage_counts(store, stage, names)
    total = sum(dropped.values())
    budget = getattr(config, stage).max_dropped_fraction
    if rows_in and total > budget * rows_in:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1]))
        raise RunError(
            f"{stage}: dropped {total} of {rows_in} rows ({reasons}), more than {stage}.max_dropped_fraction {budget}; "
            f"look into {store.path('ledger/' + stage)}, then raise the budget or change the stage"
        )
