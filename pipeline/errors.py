"""What can go wrong in a run, and an error of any kind in words that are safe to show."""

import traceback
from collections.abc import Sequence

from stillhouse.schemas.config import ConfigError


class RunError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


class StageError(RuntimeError):
    """A stage broke its contract (lost, added or reordered rows, or changed a column), or cannot start."""


class ShardError(RuntimeError):
    """A shard or run folder that cannot be used; the message names it and says what to do."""


class DamagedError(ShardError):
    """A file that is not, byte for byte, what a run wrote under its name."""


class StorageError(RuntimeError):
    """A disk or an object store that does not do its part; no shard is to blame."""


class RedoError(RuntimeError):
    """Files that have to be made again before the work can go on: `keys` are damaged or gone. No shard has failed."""

    def __init__(self, message: str = "", keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


def safe_message(error: BaseException) -> str:
    """An error in words that hold no prompt text: the message of our own errors; of others the type and the place."""
    if type(error).__module__.partition(".")[0] == "stillhouse":
        return str(error)
    place = ""
    if error.__traceback__ is not None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f" at {frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return f"{type(error).__name__}{place}"


def safe_error(error: BaseException) -> RunError | ConfigError:
    """An error of any kind as one that another process can raise again and that is safe to show. What is wrong with a
    configuration stays that: a command ends by another exit code for it."""
    return (ConfigError if isinstance(error, ConfigError) else RunError)(safe_message(error))
