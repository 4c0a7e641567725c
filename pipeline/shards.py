"""Until the modules of pipeline/dataset have moved: the old names of pipeline.folder."""

from stillhouse.pipeline.errors import *  # noqa: F403
from stillhouse.pipeline.errors import DamagedError, ShardError, StorageError  # noqa: F401
from stillhouse.pipeline.folder import Entry, open_folder as Store  # noqa: F401, N812
from stillhouse.pipeline.folder.certified import *  # noqa: F403
from stillhouse.pipeline.folder.certified import certified, encode_certified, parse_certified, parse_object  # noqa: F401
from stillhouse.pipeline.folder.keys import STAGED, shard_name  # noqa: F401
from stillhouse.pipeline.folder.shard import *  # noqa: F403
