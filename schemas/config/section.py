"""What the sections of a configuration are made of.

Keys marked `free` never change what is written; every other key is part of the configuration hash (`identity`), those
marked `added` where they are set.
"""

from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo


class Free:
    """Marks a field that never changes what is written."""


free = Free()


class Added:
    """Marks a field that is younger than run folders that must stay valid: it decides nothing where it is None, and is
    then no part of the configuration hash."""


added = Added()


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


Count = Annotated[int, Field(ge=1)]


OBJECT_STORES = ("s3", "gs", "az")


def checked_location(path: str) -> str:
    """`path` as it is: one of a file system, `file://…`, or an object store's. Raises ValueError for any other URL, and
    for an empty one, which would mean the folder that a command was started in."""
    if not path.removeprefix("file://").strip():
        raise ValueError("is empty; name a path or a URL")
    scheme, separator, rest = path.partition("://")
    if separator and scheme == "file" and not rest.startswith("/"):
        raise ValueError(f"{path}: names no absolute path; write file:///… with three slashes, or a path without file:")
    if separator and scheme != "file":
        if scheme not in OBJECT_STORES:
            known = ", ".join(f"{name}://" for name in OBJECT_STORES)
            raise ValueError(f"{path}: {scheme}:// is no known object store; use {known}, file:// or a path")
        if not rest.partition("/")[0]:
            raise ValueError(f"{path}: names no bucket; write {scheme}://BUCKET/…")
        key = rest.partition("/")[2].strip("/")
        if key and not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise ValueError(f"{path}: has an empty segment (//), . or .. in its key, which cannot be read; rename it")
    return path


def as_path(location: str) -> str:
    """The path that a `file://` URL means; any other location as it is."""
    return unquote(location.removeprefix("file://")) if location.startswith("file://") else location


STORED = {"is_stored": True}
"""Pydantic's context for the configuration of a run that exists: limits that are younger than it do not hold."""


def is_stored(info: ValidationInfo) -> bool:
    return bool(info.context and info.context.get("is_stored"))


def is_local_path(name: str) -> bool:
    """Whether a model or data set name means a folder: it exists, or is written as a path."""
    return name.startswith(("/", "./", "../", "~")) or Path(name).exists()


class Section(BaseModel):
    """A group of keys: unknown keys are refused, values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names each key and what is wrong with it."""
