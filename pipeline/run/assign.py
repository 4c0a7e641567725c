"""The step between sketch and transform, of a stage that needs a view of the whole data set."""

import tempfile
from collections.abc import Iterator

import pyarrow as pa

from stillhouse.pipeline import flow
from stillhouse.pipeline.errors import DamagedError, RedoError, StorageError
from stillhouse.pipeline.folder import keys, open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.quarantine import forget_view
from stillhouse.pipeline.folder.shard import ShardId, ShardInfo
from stillhouse.pipeline.run.result import ShardResult
from stillhouse.schemas.config import Config, config_hash


def assign(config: Config, name: str, names: list[str], digests: dict[str, str]) -> None:
    """Reads all sketches of `names` and writes an assignment per shard of the stage `name`.

    `digests` are those of the shards that were sketched. A sketch that is damaged, or of other rows, is deleted with
    all assignments; raises `RedoError`, and the caller sketches again. Raises `StorageError` where temporary files or
    the run folder cannot be written.
    """
    stage = flow.stage(config, name)
    assert stage.assign is not None
    folder, digest = open_folder(config.run_dir), config_hash(config)

    def sketches() -> Iterator[pa.Table]:
        for shard in names:
            key = keys.sketch(name, shard)
            try:
                sketch = shards.load(folder, key, expected=ShardId(name, shard, digest))
                if sketch.info is None or sketch.info.source_sha256 != digests.get(shard):
                    raise DamagedError(
                        f"{folder.path(key)}: was made from another {flow.previous(config, name)} {shard}"
                    )
            except FileNotFoundError:
                raise RedoError(f"{folder.path(key)}: is gone; it is made again", [key]) from None
            except DamagedError as error:
                forget_view(folder, name, shard)
                raise RedoError(f"{error}; it is made again", [key]) from None
            yield sketch.table

    try:
        assignments = stage.assign(sketches(), config)
    except OSError as error:  # of a temporary file: those of the run folder are `StorageError`
        raise StorageError(
            f"{name}: what is compared has no room in {tempfile.gettempdir()} ({error.strerror}); make room there, or "
            "set TMPDIR to a larger disk (700 to 1,100 bytes a row)"
        ) from None
    for shard, assignment in zip(names, assignments, strict=True):
        rows = assignment.num_rows
        info = ShardInfo(name, shard, digest, rows, rows, source_sha256=digests[shard])
        folder.put_if_absent(keys.assignment(name, shard), shards.encode(assignment, info))


def assign_task(config: Config, name: str, names: list[str], digests: dict[str, str]) -> Iterator[ShardResult]:
    """`assign` for a pool: what goes wrong for no fault of the stage is a result; nothing is one when all went well."""
    try:
        assign(config, name, names, digests)
    except RedoError as error:
        yield ShardResult(name, "", 0.0, "redo", str(error), damaged=error.keys)
    except StorageError as error:
        yield ShardResult(name, "", 0.0, "fatal", str(error))
