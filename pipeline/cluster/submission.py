"""What is submitted for a run, and under which id."""

import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from stillhouse.pipeline.cluster.client import STOP_WAIT_S
from stillhouse.pipeline.cluster.package import Package
from stillhouse.schemas.config import Config, ConfigError, config_hash, override

PREFIX = "stillhouse-"
RUN_DIR, CONFIG_HASH = "stillhouse_run_dir", "stillhouse_config"
"""Keys of a job's metadata."""


def run_id(run_dir: str) -> str:
    """The submission id of a run's first job: it follows from the run folder."""
    folder = run_dir.removeprefix("file://").rstrip("/")
    name = re.sub(r"[^a-z0-9]+", "-", folder.rpartition("/")[2].lower()).strip("-")[:30] or "run"
    return f"{PREFIX}{name}-{hashlib.sha256(folder.encode()).hexdigest()[:10]}"


def is_of(submission_id: str, run_dir: str) -> bool:
    """Whether a job is a run's first or a later one."""
    return re.fullmatch(rf"{re.escape(run_id(run_dir))}(-\d+)?", submission_id) is not None


def next_id(run_dir: str, used: list[str]) -> str:
    """The id of a run's next job: Ray takes none twice."""
    first = run_id(run_dir)
    numbers = [int(used_id.removeprefix(first)[1:] or 1) for used_id in used if is_of(used_id, run_dir)]
    return f"{first}-{max(numbers) + 1}" if numbers else first


def require_shared_name(config_file: str, overrides: list[str], key: str = "run_dir") -> None:
    """Raises `ConfigError` where `run_dir` is written as a relative path: it would begin in a copy of the working
    directory, of which each node has its own. The configuration is one that has been loaded."""
    raw = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
    override(raw, overrides)
    written = raw[key]
    if "://" not in written and not os.path.isabs(os.path.expanduser(written)):
        raise ConfigError(
            f"{key}: {written} is relative, and would be in the copy of the working directory that Ray makes on each "
            "node and deletes; write an absolute path that all nodes see, or an object-store URL "
            f"(--set {key}=s3://BUCKET/…)"
        )


@dataclass(frozen=True)
class Submission:
    """A configuration with what travels beside it."""

    config: Config
    config_file: str
    overrides: list[str]
    package: Package
    requirements: list[str] | None = None
    """Lines of a lock, of which the nodes make an environment; None: they have one."""
    env: tuple[str, ...] = ()
    """Names of this process's variables that the job gets."""
    sample: int | None = None
    """The configuration is that of a preview of so many rows, and its file that of the whole run."""

    def entrypoint(self, module: str, *arguments: str) -> str:
        """`python -m MODULE` on the configuration, as a shell command."""
        file = os.path.relpath(self.config_file, self.package.folder)
        sets = [word for override in self.overrides for word in ("--set", override)]
        sample = ["--sample", str(self.sample)] if self.sample is not None else []
        return shlex.join(["python", "-m", *module.split(), file, *sets, *sample, *arguments])

    def runtime_env(self, *, hides_values: bool = False) -> dict[str, Any]:
        """Ray's `runtime_env` of the job. `hides_values`: for people, $NAME instead of the value of a variable."""
        values = {name: f"${name}" if hides_values else os.environ[name] for name in self.env}
        made: dict[str, Any] = {
            "working_dir": str(self.package.folder),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "RAY_USAGE_STATS_ENABLED": "0", **values},
        }
        if self.package.stays:
            made["excludes"] = self.package.stays
        if not (self.package.folder / "stillhouse" / "__init__.py").exists():
            made["py_modules"] = [_code()]
        if self.requirements is not None:
            # As they are locked: nothing is resolved again. Ray's own must not change, and is there.
            made["uv"] = {"packages": self.requirements, "uv_pip_install_options": ["--no-deps", "--no-cache"]}
        return made

    @property
    def metadata(self) -> dict[str, str]:
        return {RUN_DIR: self.config.run_dir, CONFIG_HASH: config_hash(self.config)}

    def line(self, address: str, submission_id: str, entrypoint: str) -> str:
        """The same as a `ray job submit`, for a shell."""
        environment = self.runtime_env(hides_values=True)
        folder = environment.pop("working_dir")
        text = json.dumps(environment)
        quoted = shlex.quote(text)
        if self.env:  # the shell puts the values in
            quoted = '"' + re.sub(r'(["\\`])', r"\\\1", text) + '"'
        words = ["ray", "job", "submit", "--address", address, "--submission-id", submission_id]
        words += ["--working-dir", folder, "--metadata-json", json.dumps(self.metadata)]
        return f"{shlex.join(words)} --runtime-env-json {quoted} -- {entrypoint}"


def _code() -> str:
    """Where the package is that this process runs."""
    spec = find_spec("stillhouse")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return str(Path(next(iter(spec.submodule_search_locations))))


def requirements_of(lock: str, folder: Path) -> list[str] | None:
    """What `--runtime-env LOCK` asks for: None for `image`; the lines of requirements/LOCK.txt in the folder that
    travels, or of a file. Raises `ConfigError` where there is none."""
    if lock == "image":
        return None
    file = folder / "requirements" / f"{lock}.txt" if lock in ("cpu", "gpu") else Path(lock)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"--runtime-env: {file} cannot be read; write image, cpu or gpu (a checkout's locks), or the name of a "
            "requirements file"
        ) from None
    found = [line.strip() for line in lines if line.strip() and not line.strip().startswith(("#", "-"))]
    return [line for line in found if not re.match(r"ray\b(?!-)", line)]
