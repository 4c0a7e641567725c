"""Until pipeline/dataset has moved."""

from stillhouse.pipeline.folder.index import *  # noqa: F403
from stillhouse.pipeline.folder.index import ShardSummary as Facts  # noqa: F401
