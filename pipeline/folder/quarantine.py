"""Where files go that are not what a run wrote under their name: out of the way, and kept."""

import contextlib
import hashlib
from collections.abc import Sequence

from stillhouse.pipeline.errors import DamagedError, RedoError
from stillhouse.pipeline.folder import keys, shard
from stillhouse.pipeline.folder.shard import Shard, ShardId
from stillhouse.pipeline.folder.store import Folder


def quarantine(folder: Folder, key: str, expected: ShardId) -> str:
    """Moves a file that is not the shard `expected` out of the way, and with it the view of its ledger. Returns what to
    report. A file that turns out to be right, because another run was faster, stays."""
    try:
        data = folder.get(key)
    except FileNotFoundError:
        return "it is made again"
    with contextlib.suppress(DamagedError):
        shard.decode(data, key, [], expected)
        return "another run has made it again"
    kept = f"{keys.DAMAGED}/{key}.{hashlib.sha256(data).hexdigest()[:8]}"
    folder.put_if_absent(kept, data)
    folder.delete(keys.ledger_shard(expected.stage, expected.shard))
    if folder.get_or_none(key) == data:
        folder.delete(key)
    return f"kept as {kept}, it is made again"


def load_or_redo(folder: Folder, key: str, expected: ShardId, columns: Sequence[str] | None = None) -> Shard:
    """`shard.load`. Raises `RedoError` when the shard is gone or, having put it into quarantine, damaged."""
    try:
        return shard.load(folder, key, columns, expected)
    except FileNotFoundError:
        raise RedoError(f"{folder.path(key)}: is gone; it is made again", [key]) from None
    except DamagedError as error:
        raise RedoError(f"{error}; {quarantine(folder, key, expected)}", [key]) from None


def forget_view(folder: Folder, stage: str, name: str) -> None:
    """Deletes a stage's sketch of the shard `name`, and all assignments, since each depends on every sketch."""
    folder.delete(keys.sketch(stage, name))
    for assignment in folder.list(keys.assignments(stage)):
        folder.delete(keys.assignment(stage, assignment))
