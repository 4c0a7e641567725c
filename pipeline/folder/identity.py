"""Whose run a folder holds: the configuration that decides its data, and the day it began, in `run.json`."""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.folder.certified import parse_object
from stillhouse.pipeline.folder.store import Folder, open_folder
from stillhouse.schemas.config import STORED, Config, ConfigError, config_hash, deciding_values, differing_keys


def open_run(config: Config) -> Folder:
    """The run folder of `config`, made if need be. Raises as `compare_with_folder` does."""
    folder = open_folder(config.run_dir)
    data = folder.get_or_none(keys.RUN)
    if data is None:
        folder.put_if_absent(keys.RUN, _facts(config))
        data = folder.get(keys.RUN)  # another driver may have been first
    _compare(config, data)
    folder.require_conditional_puts(keys.RUN)
    return folder


def _facts(config: Config) -> bytes:
    """What `run.json` holds of a run that begins now."""
    resolved = config.model_dump(mode="json")
    for model in _with_env(resolved):
        model["env"] = sorted(model["env"])  # names only: the values may be secrets
    facts = {
        "config_hash": config_hash(config),
        "date": config.teacher.date or _today().isoformat(),
        "deciding": deciding_values(config),
        "config": resolved,
    }
    return json.dumps(facts, indent=1, sort_keys=True).encode()


def _with_env(value: Any) -> Iterator[dict[str, Any]]:
    """All sections of a model that have an `env`: teachers, a roll-out's student, guards."""
    if isinstance(value, dict) and isinstance(value.get("env"), dict | list) and "model" in value:
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _with_env(part)


def config_of(url: str) -> Config:
    """The configuration of the run in a folder, with the folder as it is named now and without the values of
    any `env`. Raises `ConfigError` where no run is there."""
    folder = open_folder(url)
    data = folder.get_or_none(keys.RUN)
    if data is None:
        raise ConfigError(f"{url}: holds no run (no {keys.RUN})")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        facts = parse_object(data)
        raw = facts["config"] | {"run_dir": url}
        for model in _with_env(raw):
            model["env"] = {}
        config = Config.model_validate(raw, context=STORED)
        if config_hash(config) == facts["config_hash"]:
            return config
    raise ConfigError(f"{folder.path(keys.RUN)}: is damaged, or of another version of Stillhouse; restore that file")


def run_date(config: Config) -> date:
    """The day that the teacher's template writes: that of the configuration, else the one on which the run began, else
    (there is no run yet) today, UTC. It is the same for all workers and after a resume.

    Raises `ConfigError` when `run_dir` holds a run that does not say its day.
    """
    if config.teacher.date is not None:
        return date.fromisoformat(config.teacher.date)
    data = open_folder(config.run_dir).get_or_none(keys.RUN)
    if data is None:
        return _today()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return date.fromisoformat(parse_object(data)["date"])
    raise ConfigError(
        f"run_dir {config.run_dir}: its {keys.RUN} does not say the day on which the run began (damaged, or made by an "
        "earlier version of Stillhouse); set teacher.date to it, or choose another run_dir"
    )


def day_begun(folder: Folder) -> str | None:
    """The day on which the run in a folder began, such as 2026-11-25 (UTC); None where nothing tells."""
    with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError):
        facts = parse_object(folder.get(keys.RUN))
        if facts["config"]["teacher"]["date"] is None:
            return date.fromisoformat(facts["date"]).isoformat()
    return None


def compare_with_folder(config: Config) -> None:
    """Raises `ConfigError` when `run_dir` holds a run whose data another configuration decides, with the keys."""
    data = open_folder(config.run_dir).get_or_none(keys.RUN)
    if data is not None:
        _compare(config, data)


def _today() -> date:
    return datetime.now(UTC).date()


def _compare(config: Config, data: bytes) -> None:
    try:
        theirs = parse_object(data)
        digest, deciding = theirs["config_hash"], dict(theirs["deciding"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"run_dir {config.run_dir}: its {keys.RUN} is damaged, so it cannot be told whose run it is; "
            "restore that file, or choose another run_dir"
        ) from None
    if digest == config_hash(config):
        return
    if deciding.keys() & {"export.license", "publish.license"}:
        raise ConfigError(
            f"run_dir {config.run_dir}: was made by an earlier version of Stillhouse; finish it with that version, or "
            "choose another run_dir"
        )
    differing = differing_keys(deciding, json.loads(json.dumps(deciding_values(config)))) or ["config_hash"]
    raise ConfigError(
        f"run_dir {config.run_dir}: holds a run with other values of {', '.join(differing)}; "
        "restore them, or choose another run_dir"
    )
