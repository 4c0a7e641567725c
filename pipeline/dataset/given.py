"""Whose are the ids that a source gives (`score.ids: source`)? With another tokenizer they mean nothing."""

import hashlib
from typing import Any

from stillhouse.pipeline.dataset.manifest import open_dataset, tokenizer_digests
from stillhouse.pipeline.folder.identity import run_date
from stillhouse.schemas.config import Config, ConfigError
from stillhouse.stages.sources.formats import is_known
from stillhouse.stages.teacher.chat import load_chat
from stillhouse.stages.teacher.pretrained import load_tokenizer

OWN = "teacher"
"""Value of `score.tokenizer_sha256` by which a user says that the ids are the teacher's own."""


def check_given_ids(config: Config) -> None:
    """Raises `ConfigError` where ids of the source are scored and their tokenizer is not the teacher's, or nobody says
    whose it is."""
    if not config.given_ids:
        return
    assert config.score is not None
    asked = config.score.tokenizer_sha256
    if asked == OWN:
        return
    told = {"score.tokenizer_sha256": asked} if asked is not None else _of_source(config)
    if not told:
        raise ConfigError(
            "score.tokenizer_sha256: the source is no Stillhouse dataset, whose manifest.json would name the tokenizer "
            "of its ids; name it here, or write teacher if they are the teacher's own"
        )
    own = tokenizer_digests(load_chat(config, run_date(config)))["tokenizer_sha256"]
    for where, digest in told.items():
        if digest != own:
            raise ConfigError(
                f"{where}: the ids are those of the tokenizer {digest[:12]}, and the teacher {config.teacher.model} "
                f"has {own[:12]}; set score.ids to text, by which the teacher's template and tokenizer read the answers"
            )


def _of_source(config: Config) -> dict[str, str]:
    """The digest of the tokenizer that each path of the source was made with; nothing where one is of no dataset."""
    found = {}
    for path in config.source.paths:
        folder = path.rstrip("/")
        for _ in range(3):  # a dataset's folder, or its data/, or files in that
            is_folder = folder.strip("/") and "*" not in folder and not is_known(folder) and not folder.endswith(":/")
            if is_folder and (manifest := _manifest(folder)) is not None:
                found[path] = str(manifest["teacher"]["tokenizer_sha256"])
                break
            folder = folder.rpartition("/")[0]
        else:
            return {}
    return found


def _manifest(folder: str) -> dict[str, Any] | None:
    try:
        return open_dataset(folder).manifest
    except ConfigError:
        return None


def check_student(config: Config) -> None:
    """Raises `ConfigError` where the student of the section `rollout` has another tokenizer than the teacher."""
    if config.rollout is None:
        return
    own, student = (_plain_digest(each) for each in (config, config.writer))
    if student != own:
        raise ConfigError(
            f"rollout.model: {config.rollout.model} has the tokenizer {student[:12]}, and the teacher "
            f"{config.teacher.model} has {own[:12]}; the teacher cannot read another tokenizer's ids, so put the "
            "teacher's tokenizer beside the student's weights if it was trained with that"
        )


def _plain_digest(config: Config) -> str:
    """Of a tokenizer, without the padding and truncation that a trainer may have left in it."""
    teacher = config.teacher
    try:
        tokenizer = load_tokenizer(teacher.model, teacher.revision, teacher.trust_remote_code).backend_tokenizer
    except (OSError, ValueError):
        raise ConfigError(f"rollout.model: no tokenizer at {teacher.model!r}; put the teacher's beside it") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
