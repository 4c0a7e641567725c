"""A configuration from a YAML file and `--set`: defaults < YAML < `--set`, validated once."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from stillhouse.schemas.config.curation import EvaluationConfig, SemanticConfig
from stillhouse.schemas.config.guards import GuardConfig
from stillhouse.schemas.config.run import Config
from stillhouse.schemas.config.section import ConfigError, is_local_path
from stillhouse.schemas.config.teacher import RolloutConfig, TeacherConfig
from stillhouse.schemas.config.teachers import NamedTeacher

Model = TypeVar("Model", TeacherConfig, NamedTeacher, RolloutConfig, GuardConfig, SemanticConfig)


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), validate, make paths absolute.

    Raises `ConfigError` with one line per wrong key.
    """
    import yaml  # here, so that `--help` does not pay for it

    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: is not YAML; check indentation, colons and quotes") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: holds {type(raw).__name__}, not a mapping of keys; start from configs/quickstart.yaml"
        )
    override(raw, overrides or [])
    _inline(raw.get("generate"), "generate", "system_prompts", yaml.safe_load)
    _inline(raw.get("teacher"), "teacher", "chat_template", str)
    teachers = raw.get("teachers")
    for number, teacher in enumerate(teachers if isinstance(teachers, list) else []):
        _inline(teacher, f"teachers.{number}", "chat_template", str)
        _inline(teacher, f"teachers.{number}", "system_prompts", yaml.safe_load)
    _inline_guards(raw)
    for where in ("decontamination.evaluations", "screen.jailbreaks.templates"):
        _digest_sets(raw, where)
    return validated(raw, str(path))


def override(raw: dict[str, Any], overrides: list[str]) -> None:
    """Puts `key.path=value` overrides into `raw`. Raises `ConfigError` for what is none."""
    import yaml

    for override in overrides:
        key, sep, text = override.partition("=")
        if not sep or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", key):
            raise ConfigError(
                f"--set {override!r}: is not key.path=value; write for example --set sampling.max_tokens=256"
            )
        node = raw
        *parents, last = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {key}: {parent!r} is not a section; check the key")
            node = child
        try:
            node[last] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that is none
            quoted = shlex.quote(f"{key}={json.dumps(text, ensure_ascii=False)}")
            raise ConfigError(f"--set {override!r}: its value is not YAML; quote it: --set {quoted}") from None


def validated(raw: dict[str, Any], where: str, context: dict[str, Any] | None = None) -> Config:
    """The configuration that `raw` is, with absolute paths; `context` is `STORED` for that of a run that exists. Raises
    `ConfigError`, which begins with `where`."""
    try:
        return absolute(Config.model_validate(raw, context=context))
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            if problem["loc"][:1] == ("teacher",) and "teacher" not in raw and "teachers" in raw:
                continue  # the first of teachers, of which the same is said
            key = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                message = "is not a known key; check its spelling"
            lines.append(f"{key}: {message}" if key else message)
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def sampled(config: Config, num_rows: int) -> Config:
    """The preview of a run: `num_rows` rows drawn from all of its source, in a folder beside the run's.

    Raises `ConfigError` where `run_dir` is a whole bucket, beside which there is no place.
    """
    folder = config.run_dir.rstrip("/")
    if "://" in folder and "/" not in folder.partition("://")[2]:
        raise ConfigError(
            f"--sample: run_dir {folder} is a whole bucket, and the sample needs a folder beside it; set run_dir to a "
            "folder in the bucket"
        )
    source = config.source.model_copy(update={"sample": num_rows})
    return config.model_copy(update={"run_dir": f"{folder}-sample-{num_rows}", "source": source})


def _inline(values: Any, section: str, key: str, parse: Callable[[str], Any]) -> None:
    """Puts a file's content where `section` names the file, so that the hash covers it and no worker needs the file."""
    import yaml

    if not isinstance(values, dict) or not isinstance(values.get(key), str):
        return
    if (key, values[key]) == ("system_prompts", "source"):
        return
    try:
        values[key] = parse(Path(values[key]).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{section}.{key}: {values[key]} cannot be read ({reason}); check the path") from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{section}.{key}: {values[key]} is not YAML; write a list of strings") from None


def _inline_guards(raw: dict[str, Any]) -> None:
    screen = raw.get("screen")
    classifiers = screen.get("classifiers") if isinstance(screen, dict) else None
    for classifier in classifiers if isinstance(classifiers, list) else []:
        _inline(classifier, "screen.classifiers", "chat_template", str)


def _digest_sets(raw: dict[str, Any], where: str) -> None:
    """Puts the digest of a local set of texts beside its path, so that the hash covers what the file holds. `where` is
    the list of sets, as a dotted key."""
    found: Any = raw
    for key in where.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    for evaluation in found if isinstance(found, list) else []:
        path = evaluation.get("path") if isinstance(evaluation, dict) else None
        if not isinstance(path, str) or "://" in path or evaluation.get("sha256") is not None:
            continue
        try:
            with _expanded(path).open("rb") as file:
                evaluation["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(f"{where}: {path} cannot be read ({error.strerror}); check the path") from None


def _expanded(path: str) -> Path:
    """`path` with a home folder in the place of `~`. Raises `ConfigError` where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: there is no user of that name; write the whole path") from None


def absolute(config: Config) -> Config:
    """`config` with local paths made absolute: workers need not share the driver's folder."""

    def fix(path: str) -> str:
        return path if "://" in path else str(_expanded(path).absolute())

    def moved(sets: list[EvaluationConfig]) -> list[EvaluationConfig]:
        return [one if one.path is None else one.model_copy(update={"path": fix(one.path)}) for one in sets]

    def local(section: Model) -> Model:
        return section.model_copy(update={"model": fix(section.model)}) if is_local_path(section.model) else section

    source, decontamination = config.source, config.decontamination
    screen, dedupe = config.screen, config.dedupe
    if source.path is not None:
        source = source.model_copy(update={"path": [fix(path) for path in source.paths]})
    if decontamination is not None:
        decontamination = decontamination.model_copy(update={"evaluations": moved(decontamination.evaluations)})
    if screen.jailbreaks is not None:
        jailbreaks = screen.jailbreaks.model_copy(update={"templates": moved(screen.jailbreaks.templates)})
        screen = screen.model_copy(update={"jailbreaks": jailbreaks})
    classifiers = [local(one) if isinstance(one, GuardConfig) else one for one in screen.classifiers]
    screen = screen.model_copy(update={"classifiers": classifiers})
    if dedupe.semantic is not None:
        dedupe = dedupe.model_copy(update={"semantic": local(dedupe.semantic)})
    return config.model_copy(
        update={
            "run_dir": fix(config.run_dir),
            "source": source,
            "teacher": local(config.teacher),
            "teachers": None if config.teachers is None else [local(teacher) for teacher in config.teachers],
            "rollout": None if config.rollout is None else local(config.rollout),
            "decontamination": decontamination,
            "dedupe": dedupe,
            "screen": screen,
        }
    )
