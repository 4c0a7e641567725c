"""Ray's actors as far as `ray_replicas` uses them, without processes: what happens is scripted."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from stillhouse.pipeline.run.result import ShardResult


class _RayError(Exception):
    pass


class _RayActorError(_RayError):
    def __init__(self, preempted: bool) -> None:
        super().__init__()
        self.preempted = preempted


class Reference:
    """To what an actor returns, once it does."""

    def __init__(self) -> None:
        self.value: Any = None


class FakeActor:
    """Starts when `start` is called, and ends what it was given when `finish` is."""

    def __init__(self, ray: "FakeRay", name: str) -> None:
        self.name = name
        self.is_killed = self.is_closed = False
        self.given: dict[str, Reference] = {}
        self._begun, self._ray = Reference(), ray
        self.node = SimpleNamespace(remote=lambda: self._begun)
        self.process = SimpleNamespace(remote=self._process)
        self.close = SimpleNamespace(remote=self._close)

    def _process(self, unit: str) -> Reference:
        return self.given.setdefault(unit, Reference())

    def _close(self) -> Reference:
        self.is_closed = True
        reference = Reference()
        reference.value = True
        return reference

    def start(self, node: str) -> None:
        self._begun.value = node

    def finish(self, unit: str) -> None:
        self.given.pop(unit).value = ShardResult("generate", unit, 1.0, unit=unit)

    def die(self, *, preempted: bool = False) -> None:
        for reference in [self._begun, *self.given.values()]:
            if reference.value is None or reference is not self._begun:
                reference.value = _RayActorError(preempted)


class FakeRay:
    """In the place of the module. `script` is called whenever the driver waits."""

    exceptions = SimpleNamespace(RayError=_RayError, RayActorError=_RayActorError)

    def __init__(self) -> None:
        self.actors: list[FakeActor] = []
        self.dead_nodes: dict[str, int] = {}
        self.script: Callable[[int], None] = lambda tick: None
        self.num_waits = 0

    def remote(self, kind: type) -> Any:
        def create(job: Any, name: str, board: Any) -> FakeActor:
            self.actors.append(FakeActor(self, name))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=create))

    def wait(self, references: list[Reference], *, timeout: float, num_returns: int = 1, **options: Any) -> Any:
        if timeout:
            self.num_waits += 1
            assert self.num_waits < 200, "the driver waits for ever"
            self.script(self.num_waits)
        return [reference for reference in references if reference.value is not None][:num_returns], []

    def get(self, reference: Reference) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, actor: FakeActor) -> None:
        actor.is_killed = True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "Alive": False, "DeathReason": why} for node, why in self.dead_nodes.items()]
