"""Evaluation sets, item by item: files in any format that a source has, hub data sets.

What decides the data is what the set holds, so a file must have the digest that the configuration names.
"""

import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stillhouse.schemas.config import ConfigError, EvaluationConfig, SourceConfig
from stillhouse.stages.sources import formats
from stillhouse.stages.sources.conversation import CONTENT_FIELDS, Spelling, as_text, at, first
from stillhouse.stages.sources.files import files_of, open_file
from stillhouse.stages.sources.row import Row, SourceError

if TYPE_CHECKING:
    from stillhouse.stages.sources.streams import Reader


def read_evaluation(config: EvaluationConfig, key: str = "decontamination.evaluations") -> list[tuple[str, str]]:
    """The texts of a set in order, each with the name of its item: `<name>/<row>`, rows counted from 0 over all files.
    `key` is the configuration's that lists the set.

    Raises `ConfigError` where the set cannot be read, is another file than the configuration says, has a row that
    cannot be read, or holds no text in the columns that are named. Reading by a network raises its own errors too.
    """
    where = f"{key} ({config.name})"
    try:
        rows = list(_rows(config, where))
    except SourceError as error:
        raise ConfigError(f"{where}: {error}") from None
    if broken := sum(row.error is not None for row in rows):
        # One that is not looked for would look like one that is not there.
        raise ConfigError(f"{where}: {broken} of {len(rows)} rows cannot be read; repair the file")
    found = []
    for number, row in enumerate(rows):
        for column in config.columns:
            found += [(f"{config.name}/{number}", text) for text in _texts(at(row.value, column))]
    if not found:
        named = sorted(rows[0].value) if rows and isinstance(rows[0].value, dict) else []
        raise ConfigError(
            f"{where}: none of {len(rows)} rows has a text in {', '.join(config.columns)}; set `columns` to some of "
            f"{', '.join(named) or 'what it has'}"
        )
    return found


def _rows(config: EvaluationConfig, where: str) -> Iterator[Row]:
    if config.dataset is not None:
        source = SourceConfig(
            dataset=config.dataset, revision=config.revision, config=config.config, split=config.split
        )
    else:
        assert config.path is not None
        name = config.path
        data = _checked(config, where)
        source = SourceConfig(path=name)
    spelling = Spelling(source, every_column=True)
    if config.dataset is None:
        yield from formats.read(name, _stream(data), spelling)
        return
    for file in files_of(source):
        with file.open() as stream:
            yield from formats.read(file.name, stream, spelling)


def _stream(data: bytes) -> "Reader":
    return io.BufferedReader(io.BytesIO(data))


def _checked(config: EvaluationConfig, where: str) -> bytes:
    """The bytes of the file, which are those that the configuration names."""
    path = str(config.path)
    with open_file(path) as stream:
        data = stream.read()
    digest = hashlib.sha256(data).hexdigest()
    if config.sha256 is not None and digest != config.sha256:
        raise ConfigError(
            f"{where}: {path} has sha256 {digest[:12]}…, not {config.sha256[:12]}…; it changed since this run began, "
            "or is another file on this machine: put the right one there"
        )
    return data


def _texts(value: object) -> Iterator[str]:
    """All texts in a value: itself, those of a list at any depth, what a message says."""
    value = as_text(value)
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        yield from _texts(first(value, CONTENT_FIELDS))
