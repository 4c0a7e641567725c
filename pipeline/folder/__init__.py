"""A run on disk: where its files are, how they are read and written, and what they say of themselves.

Neither Ray nor a stage is needed here. `keys` has every path, `store` what a folder can do, `local` and `remote` how a
disk and an object store do it. `shard` is a file of a stage, `certified` the JSON beside it, `index` the summaries of
finished shards, `quarantine` where damaged files go, `partition` how many shards there are, `identity` whose run it is.
"""

from stillhouse.pipeline.folder.store import Entry, Folder, open_folder

__all__ = ["Entry", "Folder", "open_folder"]
