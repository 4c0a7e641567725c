"""Until the modules of pipeline/dataset have moved: the old names of pipeline.folder."""

# ruff: noqa
from stillhouse.pipeline.errors import DamagedError as DamagedError, ShardError as ShardError, StorageError as StorageError
from stillhouse.pipeline.folder import open_folder as Store
from stillhouse.pipeline.folder.certified import certified as certified, encode_certified as encode_certified, parse_certified as parse_certified, parse_object as parse_object
from stillhouse.pipeline.folder.keys import STAGED as STAGED, shard_name as shard_name
from stillhouse.pipeline.folder.shard import *
