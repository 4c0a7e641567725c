"""Which files a source has: on a disk, in an object store, on the hub. Not what is in them.

Each place is one function that yields `File`s; `files_of` chooses it. A new place is such a function, and a line there.
"""

import glob
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources.formats import format_of, is_known, known_suffixes, without_tables
from stillhouse.stages.sources.hub import download, hub_names
from stillhouse.stages.sources.object_store import open_store, reason, with_retries
from stillhouse.stages.sources.row import SourceError
from stillhouse.stages.sources.streams import READ_BYTES, open_object

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from stillhouse.stages.sources.streams import Reader

_STORE_TIMEOUT_S = 60.0  # for one read of an object, or one listing
_GLOB = re.compile(r"[*?\[]")
_NOT_DATA = frozenset({"config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"})
_INVALID_PATH = re.compile(r'Path "([^"\n]+)"')


class File(NamedTuple):
    """A file of a source, not yet opened. Can be pickled."""

    name: str
    open: "Callable[[], Reader]"
    num_bytes: int | None = None
    """Its size, where that is known without asking a hub."""


def files_of(config: SourceConfig) -> Iterator[File]:
    """The data files of a source, in the order in which they are read. All of their names have a known suffix."""
    if config.dataset is not None:
        dataset = config.dataset
        commit, names = hub_names(config, _readable)
        where = f"{dataset}@{config.revision}"
        yield from (File(f"{where}/{name}", partial(_open_hub, dataset, commit, name)) for name in names)
        return
    for path in config.paths:
        yield from _store_files(path) if "://" in path else _local_files(path)


def open_file(path: str) -> "Reader":
    """One file, whatever its name ends with: of a disk, `file://…`, or an object store. Raises `SourceError`."""
    from obstore.exceptions import BaseError

    scheme, separator, rest = path.partition("://")
    if not separator or scheme == "file":
        return _open_local(os.path.expanduser(unquote(rest) if separator else path))
    bucket, _, key = rest.partition("/")
    try:
        return open_object(open_store(f"{scheme}://{bucket}", _STORE_TIMEOUT_S), key)
    except (BaseError, FileNotFoundError) as error:
        raise SourceError(f"{path}: cannot be opened ({reason(error)}); check the URL and credentials") from None


def _readable(name: str, root: str = "") -> bool:
    """Whether a file found in a folder is data: it has a known suffix, is none of what `datasets` writes beside it
    (`cache-….arrow` is what a `map` left), and no part of its path below the root is hidden."""
    parts = PurePosixPath(name).relative_to(root).parts if root else PurePosixPath(name).parts
    is_beside = parts[-1] in _NOT_DATA or fnmatchcase(parts[-1], "cache-*.arrow")
    return is_known(name) and not is_beside and not any(part.startswith((".", "_")) for part in parts)


def _is_chosen(name: str, pattern: str) -> bool:
    """Whether a file that a glob matches is data. One that is hidden is where the glob spells that."""
    name, is_spelled = PurePosixPath(name).name, PurePosixPath(pattern).name.startswith((".", "_"))
    return is_known(name) if is_spelled else _readable(name)


def _require(names: Sequence[str], where: str, num_seen: int) -> None:
    if not names:
        raise SourceError(
            f"{where}: matches no data file ({num_seen} hidden or of other kinds); wanted {known_suffixes()}"
        )


def _local_files(path: str) -> Iterator[File]:
    expanded = os.path.expanduser(path)
    if os.path.isfile(expanded):
        format_of(expanded)  # raises where it is unknown
        found = [expanded]
    elif os.path.isdir(expanded):
        found = _walk(expanded, path)
    elif _GLOB.search(expanded):
        matches = sorted(glob.glob(expanded, recursive=True))
        found = [match for match in matches if os.path.isfile(match) and _is_chosen(match, expanded)]
        _require(found, path, len(matches))
    else:
        raise SourceError(f"{path}: does not exist; check source.path")
    yield from (File(name, partial(_open_local, name), _local_size(name)) for name in found)


def _walk(folder: str, where: str) -> list[str]:
    """The data files of a folder and of those that are linked in it, each folder once: links may lead in a circle."""
    found, seen, waiting = list[str](), set[str](), [folder]
    for place in waiting:
        for parent, folders, names in os.walk(place):
            folders[:] = [name for name in folders if not name.startswith((".", "_"))]  # what is hidden may be linked
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            found += [Path(parent, name).as_posix() for name in names]
            links = [Path(parent, name) for name in folders]
            waiting += [str(link) for link in links if link.is_symlink()]
    root = Path(folder).as_posix()
    readable = sorted(name for name in found if _readable(name, root))
    _require(readable, where, len(found))
    return without_tables(readable)


def _open_hub(dataset: str, commit: str | None, name: str) -> "Reader":
    return _open_local(download(dataset, commit, name))


def _local_size(name: str) -> int | None:
    try:
        return os.path.getsize(name)
    except OSError:  # opening says why
        return None


def _open_local(name: str) -> "Reader":
    try:
        return io.BufferedReader(io.FileIO(name), READ_BYTES)
    except OSError as error:
        raise SourceError(f"{name}: cannot be opened ({error.strerror}); check its permissions") from None


def _store_files(url: str) -> Iterator[File]:
    """Files of `scheme://bucket/key`. The key is a file, a prefix, or a glob, whose * matches within one segment."""
    from obstore.exceptions import BaseError, InvalidPathError
    from obstore.store import LocalStore

    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    store: ObjectStore
    if scheme == "file":
        root, key, store = "file://", os.path.normpath(unquote(rest)), LocalStore("/")
    else:
        root = f"{scheme}://{bucket}"
        store = open_store(root, _STORE_TIMEOUT_S)
    key = key.strip("/")
    try:
        parts = key.split("/")
        if _GLOB.search(key):
            fixed = next(i for i, part in enumerate(parts) if _GLOB.search(part))
            listed = _list(store, "/".join(parts[:fixed]))
            found = [name for name in listed if _is_chosen(name, key) and _matches(name, parts)]
            _require(found, url, len(listed))
        elif is_known(key) and (size := _size(store, key)) is not None:
            listed = {key: size}
            found = [key]
        else:
            listed = _list(store, key)
            found = without_tables([name for name in listed if _readable(name, key)])
            if not listed and _size(store, key) is not None:
                format_of(url)
            _require(found, url, len(listed))
    except InvalidPathError as error:
        # The client gives nothing of a listing that has such a key.
        key = found_key[1] if (found_key := _INVALID_PATH.search(str(error))) else "one"
        raise SourceError(
            f"{url}: holds the key {key}, which cannot be read (//, . or .. in it); rename or delete that object, "
            "or name the other files in source.path one by one"
        ) from None
    except BaseError as error:
        raise SourceError(
            f"{url}: cannot be listed ({reason(error)}); check bucket, endpoint, region and credentials"
        ) from None
    yield from (File(f"{root}/{name}", partial(open_object, store, name), listed[name]) for name in found)


def _list(store: "ObjectStore", prefix: str) -> dict[str, int]:
    """The sizes of objects by their names, in order."""
    import obstore

    def listed() -> dict[str, int]:
        found = [meta for chunk in obstore.list(store, prefix=prefix or None) for meta in chunk]
        return {meta["path"]: meta["size"] for meta in sorted(found, key=lambda meta: meta["path"])}

    return with_retries(listed)


def _size(store: "ObjectStore", key: str) -> int | None:
    """The size of an object; None where there is none of this name."""
    import obstore

    try:
        return with_retries(lambda: obstore.head(store, key))["size"]
    except FileNotFoundError:
        return None


def _matches(name: str, pattern: Sequence[str]) -> bool:
    parts = name.split("/")
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))
