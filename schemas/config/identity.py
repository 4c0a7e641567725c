"""Which configuration is which: the keys that decide what is written, and their hash."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from stillhouse.schemas.config.run import Config
from stillhouse.schemas.config.section import Added, Free, Section
from stillhouse.schemas.config.teacher import FREE_ENGINE_OPTIONS, TeacherConfig
from stillhouse.schemas.config.teachers import OF_GENERATE


def deciding_values(config: Config) -> dict[str, Any]:
    """Every key that decides what is written, dotted, with its JSON value (free keys left out)."""
    flat: dict[str, Any] = {}

    def visit(section: Section, prefix: str) -> None:
        for name, field in type(section).model_fields.items():
            if any(isinstance(mark, Free) for mark in field.metadata):
                continue
            value, key = getattr(section, name), prefix + name
            if value is None and any(isinstance(mark, Added) for mark in field.metadata):
                continue
            if key == "task" and value == "generate":  # younger than run folders that must stay valid
                continue
            if key == "teacher" and config.teachers is not None:  # the first of them
                continue
            if key == "sampling" and config.task == "score":  # only its seed is read
                flat["sampling.seed"] = config.sampling.seed
            elif isinstance(value, Section):
                visit(value, f"{key}.")
            elif name == "engine":
                flat[key] = {k: v for k, v in sorted(value.items()) if k not in FREE_ENGINE_OPTIONS}
            elif isinstance(value, list) and value and isinstance(value[0], Section):
                for i, item in enumerate(value):
                    visit(item, f"{key}[{i}].")
            else:
                flat[key] = value

    visit(config, "")
    return flat


def values_of_teacher(deciding: Mapping[str, Any], number: int) -> dict[str, Any]:
    """`deciding_values` of a run with several teachers, as those of `Config.of_teacher` of one: `number` in their
    order."""
    prefix = f"teachers[{number}]."
    found = {key: value for key, value in deciding.items() if not key.startswith("teachers[")}
    for key, value in deciding.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            if name in OF_GENERATE and value is not None:
                found[f"generate.{name}"] = value
            elif name in TeacherConfig.model_fields:
                found[f"teacher.{name}"] = value
    return found


def nested_values(deciding: Mapping[str, Any], sections: Iterable[str]) -> dict[str, Any]:
    """The `sections` (and keys of no section) of a configuration, lists of flat sections (`teachers`) among them, as
    YAML would give them, from its `deciding_values`."""
    nested: dict[str, Any] = {}
    for key, value in deciding.items():
        first, *inner = key.split(".")
        listed, bracket, number = first.partition("[")
        if listed not in sections:
            continue
        if bracket:
            items = nested.setdefault(listed, [])
            items += [{} for _ in range(int(number[:-1]) + 1 - len(items))]
            items[int(number[:-1])][inner[0]] = value
            continue
        if not inner:
            nested[first] = value
            continue
        node = nested.setdefault(first, {})
        for name in inner[:-1]:
            node = node.setdefault(name, {})
        node[inner[-1]] = value
    return nested


def config_hash(config: Config) -> str:
    """sha256 (hex) of `deciding_values` as canonical JSON."""
    return values_hash(deciding_values(config))


def values_hash(values: Mapping[str, Any]) -> str:
    """`config_hash` of `deciding_values`, which a manifest keeps."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys at which two `deciding_values` differ, sorted."""
    missing = object()
    return sorted(key for key in old.keys() | new.keys() if old.get(key, missing) != new.get(key, missing))
