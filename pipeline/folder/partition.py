"""How many shards a run has: ingest fixes that once, and no other file names them."""

from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder.certified import encode_certified, parse_certified
from stillhouse.pipeline.folder.store import Folder


def write(folder: Folder, num_shards: int, num_rows: int) -> None:
    folder.put(keys.PARTITION, encode_certified({"num_shards": num_shards, "num_rows": num_rows}))


def read(folder: Folder) -> list[str]:
    """The names of all shards of a run. Raises FileNotFoundError before ingest has ended."""
    try:
        num_shards = int(parse_certified(folder.get(keys.PARTITION))["num_shards"])
    except (ValueError, KeyError, TypeError):
        raise FileNotFoundError(f"{folder.path(keys.PARTITION)}: is damaged; run again") from None
    return [keys.shard_name(n) for n in range(num_shards)]


def num_ingested(folder: Folder) -> int:
    """How many shards ingest has written, up to the last, whatever the partition says."""
    numbers = [keys.shard_number(name) for name in folder.names("ingest")]
    return max((n + 1 for n in numbers if n is not None), default=0)
