"""What travels to a cluster with a job: a folder of this machine, without what must stay here."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stillhouse.pipeline.folder import keys
from stillhouse.schemas.config import ConfigError

MAX_BYTES = 64 * 2**20
"""What may travel: a checkout has 3 MiB. Ray 2.60 itself refuses from 512 MiB on, after it has packed them."""
MAX_FILES = 20_000

RAY_LEAVES_OUT = frozenset({".git", ".venv", "__pycache__", "venv"})
"""Names of folders that Ray 2.60 itself leaves out (RAY_RUNTIME_ENV_DEFAULT_EXCLUDES)."""
NAMES_THAT_STAY = frozenset(
    {".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".tox", "node_modules"}
)
TOP_NAMES_THAT_STAY = frozenset({"data", "runs"})
"""Directly in the folder that travels."""


class Package(NamedTuple):
    """A folder that travels."""

    folder: Path
    stays: list[str]
    """Patterns, as of .gitignore, of what does not travel and neither Ray nor an ignore file leaves out."""
    num_files: int
    num_bytes: int


def package(folder: Path, config_file: Path) -> Package:
    """Looks through `folder`; nothing is copied. Files that .gitignore or .rayignore name do not count: Ray leaves them
    out itself.

    Raises `ConfigError` where the configuration would not travel, or too much would, or what cannot be read.
    """
    root = Path(os.path.abspath(folder))
    wanted = Path(os.path.relpath(config_file, root))
    if ".." in wanted.parts:
        raise ConfigError(
            f"{config_file}: is not in {root}, the folder that travels with the job; submit from its folder, or name "
            "another with --working-dir"
        )
    looked = _Look(root)
    looked.visit(root, [])
    if looked.num_bytes > MAX_BYTES or looked.num_files > MAX_FILES:
        raise ConfigError(
            f"{root}: at least {looked.num_bytes / 2**20:,.0f} MiB in {looked.num_files:,} files would travel with the "
            f"job, more than {MAX_BYTES / 2**20:.0f} MiB or {MAX_FILES:,}; {looked.largest()}; move it out, name it in "
            ".rayignore, or name another folder with --working-dir"
        )
    if wanted not in looked.files:
        raise ConfigError(
            f"{config_file}: does not travel with the job (an ignore file names it, or it is in a folder that stays "
            "here: environments, runs, data, .git); move it"
        )
    return Package(folder, sorted(set(looked.stays)), looked.num_files, looked.num_bytes)


class _Look:
    """What is found below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.files: set[Path] = set()
        self.stays: list[str] = []
        self.num_files = self.num_bytes = 0
        self._below: Counter[Path] = Counter()
        """Bytes of a folder with all that is in it, and of a file."""
        self._num_below: Counter[Path] = Counter()

    def visit(self, folder: Path, ignored: list[Callable[[Path], bool]]) -> None:
        try:
            ignored = ignored + _ignore_files(folder)
            inside = sorted(folder.iterdir())
        except OSError as error:
            raise _unreadable(error.filename or folder) from None
        for path in inside:
            is_folder = path.is_dir()
            if is_folder and not os.access(path, os.X_OK):
                raise ConfigError(
                    f"{path}: cannot be entered, and Ray looks into it even where .rayignore names it; move it out, "
                    "change its permissions, or name another folder with --working-dir"
                )
            # A pattern that ends in a slash matches what is in a folder, not its name.
            if any(matches(path) or (is_folder and matches(path / "_")) for matches in ignored):
                continue
            relative = path.relative_to(self._root)
            if not is_folder:
                self._add(path, relative)
            elif path.name in RAY_LEAVES_OUT:
                continue
            elif path.name in NAMES_THAT_STAY:
                self.stays.append(path.name)
            elif _must_stay(path, relative):
                self.stays.append(f"/{relative.as_posix()}")
            elif self.num_files <= MAX_FILES:  # a home folder would take minutes
                self.visit(path, ignored)

    def largest(self) -> str:
        """Names the deepest folder or file that holds most of what is too much."""
        counts = self._below if self.num_bytes > MAX_BYTES else self._num_below
        place = Path()
        while True:
            inside = {path: count for path, count in counts.items() if path.parent == place and path != place}
            best = max(inside, key=lambda path: inside[path], default=None)
            if best is None or (place != Path() and inside[best] < counts[place] / 2):
                break
            place = best
        files = self._num_below[place]
        return f"{place} has {self._below[place] / 2**20:,.0f} MiB in {files:,} files"

    def _add(self, path: Path, relative: Path) -> None:
        try:
            size = path.stat().st_size
        except OSError:  # a link to nowhere, which Ray leaves out
            return
        if not os.access(path, os.R_OK):
            raise _unreadable(path)
        self.files.add(relative)
        self.num_files += 1
        self.num_bytes += size
        for above in (relative, *relative.parents):
            self._below[above] += size
            self._num_below[above] += 1


def _unreadable(path: Path | str) -> ConfigError:
    return ConfigError(
        f"{path}: cannot be read, and would travel with the job; name it in .rayignore, change its permissions, or "
        "move it out"
    )


def _must_stay(path: Path, relative: Path) -> bool:
    is_environment = (path / "pyvenv.cfg").exists() or (path / "conda-meta").is_dir()
    is_run = (path / keys.RUN).exists() and (path / "state").is_dir()
    is_loop = path.is_symlink() and path.resolve() in (path.absolute(), *path.absolute().parents)
    is_named = len(relative.parts) == 1 and path.name in TOP_NAMES_THAT_STAY
    return is_named or is_environment or is_run or is_loop


def _ignore_files(folder: Path) -> list[Callable[[Path], bool]]:
    """What .gitignore and .rayignore in a folder leave out, as Ray reads them."""
    try:
        import logging

        from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
    except ImportError:  # private, so another release may have moved it: then these files count
        return []
    found: list[Callable[[Path], bool]] = get_excludes_from_ignore_files(
        folder, include_gitignore=True, logger=logging.getLogger("stillhouse.quiet")
    )
    return found
