"""The replicas of one step as Ray actors: started, given work, replaced, and ended, alone or with their nodes."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from stillhouse.pipeline.errors import RunError, safe_message
from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.run import placement
from stillhouse.pipeline.run.attempts import Attempts
from stillhouse.pipeline.run.pool import ACTIVITY_EVERY_S, CLOSE_TIMEOUT_S, Job, reporting
from stillhouse.pipeline.run.result import Activity, ShardResult
from stillhouse.schemas.arrow import keep_pandas_out

NOTICE_LEFT_S = 5.0
"""So long before its node has to be gone a replica is ended, and what it has not finished is given to others."""
NEWS_S = 5.0
"""How long the cluster may take to say that a node has gone, after its actors have."""
QUIET_S = 5.0
"""After so long without a result the driver makes sure that its own node is still there."""
LEFT = (1, 3, 4)
"""Why a node has gone, of `DeathReason` in `ray.nodes()`: asked to end, drained before it was taken away, drained as
idle (`NodeDeathInfo.Reason` of Ray 2.60). 2 is unexpected."""


@dataclass(eq=False)
class _Replica:
    name: str
    groups: placement.Groups
    actor: Any
    begun: Any
    """Reference to the id of its node, which is there when the replica has started."""
    node: str = ""
    is_ready: bool = False
    is_leaving: bool = False
    units: dict[Any, str] = field(default_factory=dict)
    """Given to it and not yet done, by the references to their results."""


class Replicas:
    """As many as there is work for, `max_workers` at most; an idle one ends when nothing is left to be given out, but
    for `min_workers` of them. Ray starts none of them again: what a dead one held goes to whoever is free, and does not
    wait for a successor.

    A node that drains gets nothing more. Its replicas go on until shortly before its deadline (where there is none,
    until they are done); then what they hold is given to others, as if it had not been begun.
    """

    def __init__(self, job: Job, board: Any, require_node: Callable[[], None]) -> None:
        """`require_node` raises `RunError` where the driver's own node is gone."""
        self._job, self._board, self._require_node = job, board, require_node
        config = job.config
        self._attempts = Attempts(
            open_folder(config.run_dir), job.run_id, job.stage, job.step, config.resources.max_attempts
        )
        self._replicas: list[_Replica] = []
        self._ending: dict[Any, _Replica] = {}  # by the references to their ends
        self._orphans: list[tuple[float, str, list[str]]] = []
        self._num_failed_starts = 0
        self.draining: dict[str, float] = {}
        """Deadlines (Unix time in s, 0: none) of nodes that are to leave, by their ids; the pool's watch sets it."""
        self.nodes: dict[str, str] = {}
        """Nodes of replicas by their names, those that start included; it sets this as well."""
        self.gone: set[str] = set()
        """Names of those that are gone."""

    def results(self, shards: Sequence[str]) -> Iterator[ShardResult]:
        """Of each shard or piece of one, as it is ready."""
        todo, num_left, num_kept = deque(shards), len(shards), min(self._job.resources.min_workers, len(shards))
        heard = time.monotonic()
        while num_left:
            todo.extendleft(reversed([*self._of_dead(), *self._of_leaving()]))
            self._end_idle(todo, num_kept)
            self._start(num_left)
            self._give(todo)
            for result in self._done():
                num_left -= 1
                yield result
                heard = time.monotonic()
            if time.monotonic() > heard + QUIET_S:
                self._require_node()
                heard = time.monotonic()

    def close(self, *, is_done: bool) -> None:
        """Ends all: each by itself where the work is done, else at once."""
        import ray

        for replica in [*self._replicas]:
            if is_done:
                self._end(replica)
            else:
                self._kill(replica)
        if self._ending and is_done:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait([*self._ending], num_returns=len(self._ending), timeout=CLOSE_TIMEOUT_S)
        for replica in self._ending.values():
            self._kill(replica)

    def _start(self, num_left: int) -> None:
        import ray

        resources, in_flight = self._job.resources, self._job.shards_in_flight
        num_staying = sum(not replica.is_leaving for replica in self._replicas)
        for _ in range(min(resources.max_workers, ceil(num_left / in_flight)) - num_staying):
            name, groups = secrets.token_hex(4), placement.Groups(self._job.view, self._job.stage)
            options = {
                "num_cpus": resources.num_cpus,
                "num_gpus": resources.num_gpus or None,
                "resources": resources.resources or None,
                "max_concurrency": in_flight + 2,  # its start and its end beside them
                "max_restarts": 0,
                "max_task_retries": 0,
                **groups.options(),
            }
            actor = ray.remote(StageWorker).options(**options).remote(self._job, name, self._board)
            self._replicas.append(_Replica(name, groups, actor, actor.node.remote()))

    def _give(self, todo: deque[str]) -> None:
        able = [replica for replica in self._replicas if replica.is_ready and not replica.is_leaving]
        while todo and able:
            freest = min(able, key=lambda replica: len(replica.units))
            if len(freest.units) >= self._job.shards_in_flight:
                return
            unit = todo.popleft()
            freest.units[freest.actor.process.remote(unit)] = unit

    def _end_idle(self, todo: deque[str], num_kept: int) -> None:
        """Their nodes can leave, or do something else. Not while something may come back."""
        if todo or self._orphans or any(replica.is_leaving and replica.units for replica in self._replicas):
            return
        idle = [replica for replica in self._replicas if not replica.units]
        for replica in idle[: max(0, len(self._replicas) - num_kept)]:
            self._end(replica)

    def _done(self) -> Iterator[ShardResult]:
        """Results that are there; waits for the first, `ACTIVITY_EVERY_S` at most."""
        import ray

        of_replica = {reference: replica for replica in self._replicas for reference in replica.units}
        of_replica |= {replica.begun: replica for replica in self._replicas if not replica.is_ready}
        references = [*of_replica, *self._ending]
        done, _ = ray.wait(references, timeout=ACTIVITY_EVERY_S, fetch_local=False)
        if done:
            done, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        dead: dict[_Replica, Any] = {}
        for reference in done:
            if reference not in of_replica:
                self._kill(self._ending.pop(reference))
                continue
            replica = of_replica[reference]
            try:
                value = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                dead[replica] = error
                continue
            if reference == replica.begun:
                replica.node, replica.is_ready = value, True
                self._num_failed_starts = 0
            else:
                del replica.units[reference]
                yield value
        for replica, death in dead.items():
            self._bury(replica, death)

    def _bury(self, replica: _Replica, error: Any) -> None:
        """What a dead replica held is done again, when it is known whether it died with its node."""
        self._replicas.remove(replica)
        self._kill(replica)  # where it only cannot be reached
        node = replica.node or self.nodes.get(replica.name, "")
        is_leaving = error.preempted or node in self.draining
        if not replica.is_ready and not is_leaving:
            self._num_failed_starts += 1
            limit = 2 * (self._job.resources.max_workers + self._attempts.limit)  # `Attempts.start` has said why before
            if self._num_failed_starts >= limit:
                raise RunError(
                    f"{self._job.stage}: its workers died {limit} times in a row before they had begun; see Ray's logs "
                    "for why, then run again"
                )
        if is_leaving:
            self._forgive(replica.units.values())
        until = 0.0 if is_leaving else time.monotonic() + NEWS_S
        self._orphans.append((until, node, [*replica.units.values()]))

    def _of_dead(self) -> list[str]:
        """What dead replicas held and others may now have."""
        if not self._orphans:
            return []
        import ray

        gone = {node["NodeID"]: node.get("DeathReason") for node in ray.nodes() if not node["Alive"]}
        given_back, waiting = [], []
        for until, node, units in self._orphans:
            if until and gone.get(node) in LEFT:
                self._forgive(units)
            elif until > time.monotonic() and node not in gone:
                waiting.append((until, node, units))
                continue
            given_back += units
        self._orphans = waiting
        return given_back

    def _of_leaving(self) -> list[str]:
        """What replicas on leaving nodes held and have no time to finish. These and idle ones are ended."""
        given_back: list[str] = []
        for replica in [*self._replicas]:
            node = replica.node or self.nodes.get(replica.name, "")
            if node not in self.draining:
                continue
            replica.is_leaving = True
            deadline = self.draining[node]
            if not replica.units:
                self._end(replica)
            elif deadline and time.time() > deadline - NOTICE_LEFT_S:
                self._replicas.remove(replica)
                self._kill(replica)
                self._forgive(replica.units.values())
                given_back += replica.units.values()
        return given_back

    def _forgive(self, units: Iterable[str]) -> None:
        for unit in units:
            self._attempts.forgive(unit)

    def _end(self, replica: _Replica) -> None:
        """Has it end what it has started (an engine's processes); `_done` sees the end."""
        self._replicas.remove(replica)
        if replica.is_ready:
            self._ending[replica.actor.close.remote()] = replica
        else:
            self._kill(replica)

    def _kill(self, replica: _Replica) -> None:
        import ray

        self.gone.add(replica.name)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(replica.actor)
        replica.groups.close()


class Board:
    """An actor to which workers say what they are doing."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[Activity, str]] = {}

    def write(self, activity: Activity, node: str) -> None:
        self._latest[activity.worker] = activity, node

    def read(self) -> list[tuple[Activity, str]]:
        """What they have said since, and on which nodes."""
        latest, self._latest = self._latest, {}
        return [*latest.values()]


class StageWorker:
    """`Worker` as an actor. Its methods are coroutines, so that it holds several shards at once."""

    def __init__(self, job: Job, name: str, board: Any) -> None:
        import ray

        keep_pandas_out()
        self._name, self._node = name, ray.get_runtime_context().get_node_id()
        self._failure: ShardResult | None = None
        self._ending = contextlib.ExitStack()
        reporter = self._ending.enter_context(
            reporting(job, name, lambda activity: board.write.remote(activity, self._node))
        )
        if placement.is_spread(job.view, job.stage):
            placement.enter()
        try:
            self._worker = reporter.worker = job.build()
        except Exception as error:
            # A result, because of an error Ray makes tracebacks.
            self._failure = ShardResult(job.stage, "", 0.0, "fatal", safe_message(error))
            logging.getLogger("stillhouse").error("%s: a worker cannot start: %s", job.stage, self._failure.message)

    async def node(self) -> str:
        """The id of its node, when it has started."""
        return str(self._node)

    async def process(self, unit: str) -> ShardResult:
        return (self._failure or await self._worker.process(unit)).by(self._name)

    async def close(self) -> None:
        """Engines need that to end their processes."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._ending.close()
        if self._failure is None:
            self._worker.close()
