"""What a dataset was made from, read from its manifest: the source, and the teacher's tokenizer with its template."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from stillhouse.pipeline.dataset.manifest import MANIFEST, tokenizer_digests
from stillhouse.schemas.config import STORED, Config, ConfigError, nested_values, override, validated
from stillhouse.stages.teacher.chat import Chat, load_chat

SECTIONS = (
    "source",
    "ingest",
    "personal",
    "teacher",
    "teachers",
    "mixture",
    "sampling",
    "targets",
    "generate",
    "task",
    "score",
    "rollout",
)
MAY_DIFFER = ("source.", "teacher.model", "teacher.revision")
"""Keys of which another machine may have other values: where things are."""


def origin_config(manifest: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The configuration that decided prompts and targets (screen and review have their defaults), with `KEY=VALUE`
    overrides. Raises `ConfigError` for overrides that would make it another dataset's."""
    for text in overrides:
        if not text.startswith(MAY_DIFFER):
            raise ConfigError(
                f"--set {text.partition('=')[0]}: is the dataset's; only source.* and teacher.model can be set"
            )
    raw = nested_values(manifest["config"], SECTIONS)
    raw |= {"run_dir": ".", "publish": {"license": manifest.get("license", "other")}}
    override(raw, [*overrides])
    return validated(raw, MANIFEST, STORED)


def origin_chat(config: Config, manifest: dict[str, Any]) -> Chat:
    """The teacher's tokenizer and template. Raises `ConfigError` where these are not those that the manifest names, and
    `TemplateError` where there are none."""
    teacher = manifest["teacher"]
    day = teacher["chat_template_date"]
    chat = load_chat(config, None if day is None else date.fromisoformat(day))
    for key, digest in tokenizer_digests(chat).items():
        if digest != teacher[key]:
            what = key.removesuffix("_sha256").replace("_", " ")
            raise ConfigError(
                f"teacher.model: {config.teacher.model} has another {what} than the dataset's teacher; set it to that "
                "model and revision, and use the version of transformers that manifest.json names"
            )
    return chat
