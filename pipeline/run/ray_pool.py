"""Workers as actors of a Ray cluster.

The driver gives them *names* of shards (`ray_replicas`); the actors read and write Parquet themselves, so neither the
object store nor the driver holds rows.
"""

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from stillhouse.pipeline.errors import RunError, safe_error
from stillhouse.pipeline.in_order import InOrder, Result, called, died
from stillhouse.pipeline.run import placement
from stillhouse.pipeline.run.placement import has_room, needed_by, spelled
from stillhouse.pipeline.run.pool import ACTIVITY_EVERY_S, Job, Task
from stillhouse.pipeline.run.ray_address import check_address
from stillhouse.pipeline.run.ray_replicas import QUIET_S, Board, Replicas
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.config import Config, ConfigError, WorkersConfig

NODE_GROUP_LABEL = "ray.io/node-group"
"""On the nodes of clusters that an autoscaler made (`ray up`, KubeRay; ray/_private/resource_and_label_spec.py 2.60):
these may get nodes that they have not yet."""
MAX_NODES_NAMED = 4

RAYS_LINES = (
    "^[ \t]*(\x1b\\[[0-9;]*m)*(\\[[0-9-]+ [0-9:,]+ [A-Z] [0-9]+ [0-9]+\\] |\\((raylet|pid=|autoscaler|gcs_server))"
    "|^[ \t]+(\\[state-dump\\]|\\([0-9]\\) raylet )"
)
"""How lines begin that Ray's C++ code and its daemons write to the driver's standard error, for `console.drop_lines`:
in colour in a job, and some go on in a second line, or in the log of a raylet that was killed.
They are in Ray's own logs as well."""


class RayPool:
    """The cluster that this process is in (a Ray job, RAY_ADDRESS), else one on this machine until the end."""

    @property
    def in_order(self) -> InOrder:
        return in_tasks

    def __init__(self) -> None:
        self._is_started = self._is_ours = False
        self._board: Any = None
        self._node = ""

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
        replicas, is_done = Replicas(job, self._board, self._require_node), False
        try:
            with _explained(job.stage), self._watched(job, replicas, on_activity):
                yield from replicas.results(shards)
                is_done = True
        finally:
            replicas.close(is_done=is_done)

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
            results = remote.remote(config, *arguments)
            while True:
                ready, _ = ray.wait([results], timeout=QUIET_S, fetch_local=False)
                if not ready:
                    self._require_node()
                    continue
                reference = next(results, None)
                if reference is None:
                    return
                yield ray.get(reference)

    def _require_node(self) -> None:
        """Raises `RunError` where the driver's own node has ended under it. Ray then starts nothing for this driver any
        more, where there is no other node, and says so nowhere."""
        import ray

        if any(node["NodeID"] == self._node and not node["Alive"] for node in ray.nodes()):
            raise RunError(
                "Ray's processes on the driver's machine are gone (its raylet has ended); run again to go on with what "
                "is missing"
            )

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
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
        # Here, because a node may leave with all that is on it.
        self._node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(self._node, soft=False)
        self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
        self._is_started = True

    @contextlib.contextmanager
    def _watched(self, job: Job, replicas: Replicas, on_activity: Callable[[Activity], None]) -> Iterator[None]:
        """Has a thread ask the board what the workers are doing, and while there are none what they wait for; and the
        cluster which nodes are to leave."""
        import ray

        ended, needed = threading.Event(), needed_by(job.resources)

        def watch() -> None:
            is_begun, told = False, set[str]()
            while not ended.wait(ACTIVITY_EVERY_S):
                with contextlib.suppress(ray.exceptions.RayError):  # it tells what goes on, and nothing depends on it
                    replicas.draining, gone = _draining(), {*replicas.gone}
                    for activity, node in ray.get(self._board.read.remote(), timeout=5):
                        is_begun = True
                        if activity.worker not in gone:
                            replicas.nodes[activity.worker] = node
                            on_activity(activity)
                    for name in gone - told:
                        on_activity(Activity(name, job.stage, job.step, is_starting=False, has_ended=True))
                    told |= gone
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


def in_tasks(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], workers: WorkersConfig, attempts: int
) -> Generator[Result]:
    """`InOrder` of a Ray task: each call is a task too. While this one waits for them, they may have its place."""
    import ray

    remote = ray.remote(called).options(num_cpus=workers.num_cpus, max_retries=attempts - 1)
    to_do, waiting = iter(arguments), deque[Any]()
    while True:
        made, _ = ray.wait([*waiting], num_returns=len(waiting), timeout=0) if waiting else ([], [])
        most = min(workers.max_workers - (len(waiting) - len(made)), 2 * workers.max_workers - len(waiting))
        waiting.extend(remote.remote(function, *given) for given in islice(to_do, most))
        if not waiting:
            return
        try:
            result = ray.get(waiting.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
            raise died(attempts) from None
        except ray.exceptions.RayError as error:
            raise RunError(_gave_up("a task", error)) from None
        yield result


def _draining() -> dict[str, float]:
    """Nodes that are to leave, by their ids: until when, in Unix time (s), 0 where no time is named."""
    import ray._private.state

    ask = getattr(ray._private.state.state, "get_draining_nodes", dict)  # private, so another release may not have it
    return {node: deadline_ms / 1000 for node, deadline_ms in ask().items()}


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Ray's errors as `RunError`, in words that hold no prompt text."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise safe_error(error.cause) from None
    except ray.exceptions.RayError as error:
        raise RunError(_gave_up(what, error)) from None


def _gave_up(what: str, error: Exception) -> str:
    return f"{what}: Ray gave up ({type(error).__name__}); run again to go on with what is missing"
