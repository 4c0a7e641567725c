"""Workers as actors of a Ray cluster.

Ray Data moves shard *names* through a pool of actors per stage (autoscaling, retries, dashboard); the actors read and
write Parquet themselves, so neither the object store nor the driver holds rows.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from stillhouse.pipeline.errors import RunError, safe_message
from stillhouse.pipeline.run import placement
from stillhouse.pipeline.run.placement import has_room, needed_by, spelled
from stillhouse.pipeline.run.pool import ACTIVITY_EVERY_S, Job, Task, reporting
from stillhouse.pipeline.run.ray_address import check_address
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.config import Config, ConfigError

NODE_GROUP_LABEL = "ray.io/node-group"
"""On the nodes of clusters that an autoscaler made (`ray up`, KubeRay; ray/_private/resource_and_label_spec.py 2.60):
these may get nodes that they have not yet."""
MAX_NODES_NAMED = 4

RAYS_LINES = r"^\[[0-9-]+ [0-9:,]+ [A-Z] [0-9]+ [0-9]+\] |^\((raylet|pid=|autoscaler|gcs_server)"
"""How lines begin that Ray's C++ code and its daemons write to the driver's standard error, for `console.drop_lines`.
They are in Ray's own logs as well."""


class RayPool:
    """The cluster that this process is in (a Ray job, RAY_ADDRESS), else one on this machine until the end."""

    def __init__(self) -> None:
        self._is_started = self._is_ours = False
        self._board: Any = None

    def require(self, config: Config, stages: Sequence[str]) -> list[str]:
        self._start()
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        resources = [node["Resources"] for node in nodes]
        found = "; ".join(spelled(node["Resources"]) for node in nodes[:MAX_NODES_NAMED])
        found += f"; {len(nodes) - MAX_NODES_NAMED} more" if len(nodes) > MAX_NODES_NAMED else ""
        may_grow = any(NODE_GROUP_LABEL in node.get("Labels", {}) for node in nodes)
        waits = []
        for stage in stages:
            parts = placement.pieces(config, stage)
            if placement.can_hold(resources, parts):
                continue
            sentence = placement.lacking(stage, parts, found)
            if not may_grow:
                raise RunError(f"{sentence}; lower it, or add such a node{placement.hint(config, stage)}")
            waits.append(f"{sentence}; the run waits for the autoscaler to add one")
        return waits

    def map_shards(
        self, job: Job, shards: Sequence[str], on_activity: Callable[[Activity], None]
    ) -> Iterator[ShardResult]:
        self._start()
        import ray

        resources, in_flight = job.resources, job.shards_in_flight
        groups = placement.Groups(job.config, job.stage)
        dataset = ray.data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
        ).map_batches(
            _AsyncActor if job.is_async else _Actor,
            fn_constructor_args=(job, self._board),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(resources.min_workers, len(shards)),
                max_size=min(resources.max_workers, len(shards)),
                max_concurrent_calls_per_actor=in_flight,
                # Ray Data adds actors when the queued work exceeds 1.75 times what runs, so as much again must queue.
                max_tasks_in_flight_per_actor=2 * in_flight,
            ),
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus or None,
            resources=resources.resources or None,
            ray_remote_args_fn=groups.options,
        )
        try:
            with _explained(job.stage), self._watched(job, on_activity):
                for row in dataset.iter_rows():
                    yield ShardResult.from_json(json.loads(row["result"]))
        finally:
            groups.close()

    def run_task(self, config: Config, stage: str, task: Task, *arguments: Any) -> Iterator[ShardResult]:
        """As one Ray task, which streams what it yields."""
        self._start()
        import ray

        remote = ray.remote(task).options(
            num_returns="streaming",
            num_cpus=getattr(config.resources, stage).num_cpus,
            max_retries=config.resources.max_attempts,
        )
        with _explained(stage):
            for reference in remote.remote(config, *arguments):
                yield ray.get(reference)

    def close(self, error: BaseException | None = None) -> None:
        """After a failure Ray shuts down by itself at exit: it ends this process at once, and our last words with it,
        when one of its threads still calls it after a shutdown."""
        if self._is_ours and not isinstance(error, Exception):
            import ray

            ray.shutdown()
        self._is_started = self._is_ours = False

    def _start(self) -> None:
        if self._is_started:
            return
        # Ray would otherwise send usage statistics, and ask for a newer version of itself.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.data import DataContext
        from ray.util.annotations import RayDeprecationWarning

        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS", "local")
            extra = {"include_dashboard": False} if address == "local" else {}
            check_address(address)
            on_sigterm = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **extra)
            except ConnectionError:
                raise ConfigError(
                    f"RAY_ADDRESS: no cluster takes this process in at {address!r}; check that it runs"
                ) from None
            signal.signal(signal.SIGTERM, on_sigterm)  # ray.init puts an exit with code 15 there
            self._is_ours = True
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # They only write to the log, and one asks `placement.Groups` for a group that nobody then uses or removes.
        context.issue_detectors_config.detectors = []
        # By that argument only does Ray Data 2.60 place its actors as `placement.Groups` asks.
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn", category=RayDeprecationWarning)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self._board = ray.remote(_Board).options(num_cpus=0).remote()
        self._is_started = True

    @contextlib.contextmanager
    def _watched(self, job: Job, on_activity: Callable[[Activity], None]) -> Iterator[None]:
        """Has a thread ask the board what the workers are doing, and while there are none what they wait for."""
        import ray

        ended, needed = threading.Event(), needed_by(job.resources)

        def watch() -> None:
            is_begun = False
            while not ended.wait(ACTIVITY_EVERY_S):
                with contextlib.suppress(ray.exceptions.RayError):  # it tells what goes on, and nothing depends on it
                    for activity in ray.get(self._board.read.remote(), timeout=5):
                        is_begun = True
                        on_activity(activity)
                    free = {} if is_begun else ray.available_resources()
                    if not is_begun and not has_room(free, needed):
                        of_them = spelled({name: free.get(name, 0) for name in needed})
                        waits_for = f"{spelled(needed)} for a worker ({of_them} free in the whole cluster)"
                        on_activity(Activity("", job.stage, job.step, is_starting=True, waits_for=waits_for))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _Board:
    """An actor to which workers say what they are doing."""

    def __init__(self) -> None:
        self._latest: dict[str, Activity] = {}

    def write(self, activity: Activity) -> None:
        self._latest[activity.worker] = activity

    def read(self) -> list[Activity]:
        latest, self._latest = self._latest, {}
        return list(latest.values())


class _Actor:
    """`Worker` as Ray Data calls it: one shard name per batch."""

    def __init__(self, job: Job, board: Any) -> None:
        self._failure: ShardResult | None = None
        self._ending = contextlib.ExitStack()
        self._name = secrets.token_hex(4)
        self._is_spread = placement.is_spread(job.config, job.stage)
        if self._is_spread:
            placement.enter()
        reporter = self._ending.enter_context(reporting(job, self._name, board.write.remote))
        try:
            self._worker = reporter.worker = job.build()
        except Exception as error:
            # A result, because of an error Ray makes tracebacks, after it has tried again.
            self._failure = ShardResult(job.stage, "", 0.0, "fatal", safe_message(error))
            logging.getLogger("stillhouse").error("%s: a worker cannot start: %s", job.stage, self._failure.message)

    async def _process(self, batch: dict[str, Any]) -> dict[str, Any]:
        result = self._failure or await self._worker.process(str(batch["shard"][0]))
        return {"result": [json.dumps(result.by(self._name).to_json())]}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return asyncio.run(self._process(batch))

    def __del__(self) -> None:
        # Ray Data deletes the instance before it ends the actor; engines need that to end their processes.
        self._ending.close()
        if hasattr(self, "_worker"):
            self._worker.close()
        if self._is_spread:
            placement.leave()


class _AsyncActor(_Actor):
    """The same for a stage whose transform is a coroutine: several shards at once."""

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:  # type: ignore[override]
        yield await self._process(batch)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Ray's errors as `RunError`, in words that hold no prompt text."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise RunError(safe_message(error.cause)) from None
    except ray.exceptions.RayError as error:
        raise RunError(
            f"{what}: Ray gave up ({type(error).__name__}); run again to go on with what is missing"
        ) from None
