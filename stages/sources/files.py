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
from stillhouse.stages.sources.formats import FORMATS, Format, format_of, is_known, known_suffixes
from stillhouse.stages.sources.object_store import open_store, reason, with_retries
from stillhouse.stages.sources.row import SourceError
from stillhouse.stages.sources.streams import READ_BYTES, open_object

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from stillhouse.stages.sources.streams import Reader

_STORE_TIMEOUT_S = 60.0  # for one read of an object, or one listing
_GLOB = re.compile(r"[*?\[]")


class File(NamedTuple):
    """A file of a source, not yet opened."""

    name: str
    open: "Callable[[], Reader]"


def paths_of(config: SourceConfig) -> list[str]:
    paths = [config.path] if isinstance(config.path, str) else config.path or []
    if not paths or not all(paths):
        raise SourceError("source.path: is empty; name a file, folder, glob or URL")
    return paths


def files_of(config: SourceConfig) -> Iterator[File]:
    """The data files of a source, in the order in which they are read. All of their names have a known suffix."""
    if config.dataset is not None:
        yield from _hub_files(config.dataset, config.revision)
        return
    for path in paths_of(config):
        yield from _store_files(path) if "://" in path else _local_files(path)


def _readable(name: str, root: str = "") -> bool:
    """Whether a file found in a folder is data: it has a known suffix, and no part of its path below the root is
    hidden."""
    parts = PurePosixPath(name).relative_to(root).parts if root else PurePosixPath(name).parts
    return is_known(name) and not any(part.startswith((".", "_")) for part in parts)


def _require(names: Sequence[str], where: str, num_seen: int) -> None:
    if not names:
        raise SourceError(f"{where}: matches no data file ({num_seen} of other kinds); wanted {known_suffixes()}")


def _local_files(path: str) -> Iterator[File]:
    expanded = os.path.expanduser(path)
    if os.path.isfile(expanded):
        format_of(expanded)  # raises where it is unknown
        found = [expanded]
    elif os.path.isdir(expanded):
        found = _walk(expanded, path)
    elif _GLOB.search(expanded):
        matches = sorted(glob.glob(expanded, recursive=True))
        found = [match for match in matches if os.path.isfile(match) and _readable(os.path.basename(match))]
        _require(found, path, len(matches))
    else:
        raise SourceError(f"{path}: does not exist; check source.path")
    yield from (File(name, partial(_open_local, name)) for name in found)


def _walk(folder: str, where: str) -> list[str]:
    found = [Path(parent, name).as_posix() for parent, _, names in os.walk(folder) for name in names]
    root = Path(folder).as_posix()
    readable = sorted(name for name in found if _readable(name, root))
    _require(readable, where, len(found))
    return readable


def _open_local(name: str) -> "Reader":
    try:
        return io.BufferedReader(io.FileIO(name), READ_BYTES)
    except OSError as error:
        raise SourceError(f"{name}: cannot be opened ({error.strerror}); check its permissions") from None


def _store_files(url: str) -> Iterator[File]:
    """Files of `scheme://bucket/key`. The key is a file, a prefix, or a glob, whose * matches within one segment."""
    from obstore.exceptions import BaseError
    from obstore.store import LocalStore

    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    store: ObjectStore
    if scheme == "file":
        root, key, store = "file://", unquote(rest), LocalStore("/")
    else:
        root = f"{scheme}://{bucket}"
        store = open_store(root, _STORE_TIMEOUT_S)
    key = key.strip("/")
    try:
        parts = key.split("/")
        if _GLOB.search(key):
            fixed = next(i for i, part in enumerate(parts) if _GLOB.search(part))
            listed = _list(store, "/".join(parts[:fixed]))
            found = [name for name in listed if _readable(PurePosixPath(name).name) and _matches(name, parts)]
            _require(found, url, len(listed))
        elif is_known(key) and _is_object(store, key):
            found = [key]
        else:
            listed = _list(store, key)
            found = [name for name in listed if _readable(name, key)]
            if not listed and _is_object(store, key):
                format_of(url)
            _require(found, url, len(listed))
    except BaseError as error:
        raise SourceError(
            f"{url}: cannot be listed ({reason(error)}); check bucket, endpoint, region and credentials"
        ) from None
    yield from (File(f"{root}/{name}", partial(open_object, store, name)) for name in found)


def _list(store: "ObjectStore", prefix: str) -> list[str]:
    import obstore

    def listed() -> list[str]:
        return sorted(meta["path"] for chunk in obstore.list(store, prefix=prefix or None) for meta in chunk)

    return with_retries(listed)


def _is_object(store: "ObjectStore", key: str) -> bool:
    import obstore

    try:
        with_retries(lambda: obstore.head(store, key))
    except FileNotFoundError:
        return False
    return True


def _matches(name: str, pattern: Sequence[str]) -> bool:
    parts = name.split("/")
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))


def _hub_files(dataset: str, revision: str | None) -> Iterator[File]:
    """A data set's files at one commit: its Parquet files; if it has none, its JSONL files; if none either, its JSON.

    Only one format is read, because data sets often hold the same rows in two.
    """
    from huggingface_hub import HfApi

    where = f"{dataset}@{revision}"
    api = HfApi()
    try:
        # A branch may move between the listing and a download; a commit does not.
        commit = api.repo_info(dataset, repo_type="dataset", revision=revision).sha
        listed = sorted(api.list_repo_files(dataset, repo_type="dataset", revision=commit))
    except _hub_failures() as error:
        raise SourceError(
            f"{where}: cannot be listed ({type(error).__name__}); check the id, the revision, HF_TOKEN and the network"
        ) from None
    by_format: dict[Format, list[str]] = {}
    for name in listed:
        if _readable(name):
            by_format.setdefault(format_of(name)[0], []).append(name)
    names = next((by_format[best] for best in FORMATS.values() if best in by_format), [])
    _require(names, where, len(listed))
    yield from (File(f"{where}/{name}", partial(_open_hub, dataset, commit, name)) for name in names)


def _open_hub(dataset: str, commit: str | None, name: str) -> "Reader":
    from huggingface_hub import hf_hub_download

    try:
        return _open_local(hf_hub_download(dataset, name, repo_type="dataset", revision=commit))
    except _hub_failures() as error:
        raise SourceError(
            f"{dataset}@{commit}/{name}: cannot be downloaded ({type(error).__name__}); "
            "check HF_TOKEN, the disk and the network"
        ) from None


def _hub_failures() -> tuple[type[Exception], ...]:
    # Its own HTTPError, because the HTTP library below it differs between versions of the hub's client.
    from huggingface_hub.errors import HFValidationError, HTTPError

    return HFValidationError, HTTPError, OSError
