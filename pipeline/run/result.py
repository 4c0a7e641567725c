"""What a worker reports: how a shard went, and meanwhile what it is doing."""

import socket
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from stillhouse.pipeline.folder.shard import ShardInfo

Outcome = Literal["written", "part", "others", "set_aside", "redo", "fatal"]
"""`written`: the shard exists now. `part`: some rows of a shard that workers share are done, and others are not yet
(rows and tokens are of these alone). `others`: another run wrote it while this one was about to. `set_aside`: it failed
too often. `redo`: something that it is made from has to be made again first. `fatal`: no shard can be made, because the
storage fails or the worker cannot start. Nothing was written for the last three."""


@dataclass(frozen=True)
class ShardResult:
    """How one shard went: a row for the progress report, not for the data."""

    stage: str
    shard: str
    seconds: float
    outcome: Outcome = "written"
    message: str = ""
    """Why, unless it was written."""
    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    num_target_tokens: int = 0
    attempts: int = 1
    """How many it took in this run; `resources.max_attempts` + 1 where it was made in parts after that."""
    worker: str = ""
    node: str = ""
    """Name of the worker's machine. Both are empty for what no worker makes."""
    damaged: tuple[str, ...] = ()
    """Keys of the files that have to be made again."""
    filter_seconds: dict[str, float] = field(default_factory=dict)
    """What each filter took (`stages.filters.clock`), where the stage has some."""
    unit: str = ""
    """What the worker was given: the shard or, where workers share it, a piece of it (`run.sharing`)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShardResult":
        return cls(**{**values, "damaged": tuple(values["damaged"])})

    def by(self, worker: str) -> "ShardResult":
        """The same, as what `worker` made on this machine."""
        return replace(self, worker=worker, node=socket.gethostname())


def of_info(info: ShardInfo, seconds: float, outcome: Outcome = "written") -> ShardResult:
    """The result of a shard that exists, from what it says of itself."""
    return ShardResult(
        info.stage,
        info.shard,
        seconds,
        outcome,
        rows_in=info.rows_in,
        rows_out=info.rows_out,
        dropped=info.dropped,
        num_target_tokens=info.num_target_tokens,
    )


@dataclass(frozen=True)
class Activity:
    """What a worker is doing at this moment."""

    worker: str
    stage: str
    step: str
    is_starting: bool
    """It loads its model."""
    num_shards: int = 0
    """Shards under way."""
    num_done: int = 0
    """Answers that are finished, of the shards under way."""
    num_under_way: int = 0
    """Answers being written."""
    num_tokens: int = 0
    """Tokens written since the worker started."""
    num_waiting: int = 0
    """Requests that the engine has accepted and not begun."""
    kv_cache_use: float = 0.0
    """Share of the engine's key-value cache that is taken, 0 to 1; 0 as well where that is not known."""
    waits_for: str = ""
    """Resources that a worker needs and that are not free. `worker` is then empty: there is none yet."""
    has_ended: bool = False
    """It is gone; the rest says nothing."""
