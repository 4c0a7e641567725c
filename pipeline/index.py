"""Until pipeline/dataset has moved."""
# ruff: noqa
from stillhouse.pipeline.folder.index import *
from stillhouse.pipeline.folder.index import ShardSummary as Facts
