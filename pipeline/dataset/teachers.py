"""Several teachers of one dataset: one tokenizer, and what a manifest says of each and of all."""

from typing import Any

from stillhouse.pipeline.folder.identity import run_date
from stillhouse.pipeline.folder.index import ShardSummary
from stillhouse.schemas.config import Config, ConfigError, values_of_teacher
from stillhouse.stages.teacher.pretrained import tokenizer_sha256

FACTS = "facts"
"""Under this key `state/teacher.json` has what was read of each teacher, by its name."""


def check_one_tokenizer(config: Config) -> None:
    """Raises `ConfigError` where `teachers` have different tokenizers: an id would mean one thing in this row and
    another in that, and no student could learn both; or where all of them read the same ids and have different
    templates. Raises `TemplateError` where one has none."""
    if config.teachers is None:
        return
    from stillhouse.stages.teacher.chat import load_chat

    first, *others = [
        (view.teacher, tokenizer_sha256(load_chat(view, run_date(view)).tokenizer)) for view in config.views()
    ]
    if config.mixture is not None and not config.given_ids:
        _check_one_template(config, "mixture", "all must read the same ids")
    elif config.rollout is not None:
        _check_one_template(config, "rollout", "the student reads by one")
    for teacher, digest in others:
        if digest != first[1]:
            raise ConfigError(
                f"teachers: {config.teacher_names[0]} has the tokenizer {first[1][:12]} and "
                f"{getattr(teacher, 'name', '')} {digest[:12]}; a dataset has one vocabulary, so give each tokenizer a "
                "run of its own"
            )


def _check_one_template(config: Config, key: str, why: str) -> None:
    from stillhouse.stages.teacher.chat import load_chat

    templates = [str(load_chat(view, run_date(view)).template) for view in config.views()]
    for name, template in zip(config.teacher_names, templates, strict=True):
        if template != templates[0]:
            raise ConfigError(
                f"{key}: {config.teacher_names[0]} and {name} have different chat templates, and {why}; give both the "
                "same chat_template"
            )


def of_all(facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`teacher` of a manifest from the facts about each of several: what they share, null where they differ. Ids are
    below `vocab_size` of any."""
    names = {name: None for of_one in facts.values() for name in of_one}
    shared = {}
    for name in names:
        values = [of_one.get(name) for of_one in facts.values()]
        shared[name] = values[0] if all(value == values[0] for value in values) else None
    return shared | {"vocab_size": max(of_one["vocab_size"] for of_one in facts.values())}


def of_each(
    config: Config, facts: dict[str, dict[str, Any]], published: dict[str, ShardSummary]
) -> list[dict[str, Any]]:
    """`teachers` of a manifest: of each its name, its rule, its rows and their supervised tokens, and its facts."""
    found = []
    for teacher in config.teachers or []:
        counts = [summary.teachers.get(teacher.name, {}) for summary in published.values()]
        rows, tokens = (sum(count.get(key, 0) for count in counts) for key in ("rows", "target_tokens"))
        if config.mixture is not None:
            rows = sum(summary.rows_out for summary in published.values())
            tokens = sum(summary.num_target_tokens for summary in published.values())
        of_run = {"name": teacher.name, "when": teacher.when, "license": teacher.license}
        found.append(of_run | {"rows": rows, "target_tokens": tokens} | facts[teacher.name])
    return found


def called(manifest: dict[str, Any]) -> str:
    """The teacher's model, or those of several with their names, for people."""
    if "teachers" not in manifest:
        return short(manifest["teacher"]["model"])
    return ", ".join(f"{short(teacher['model'])} ({teacher['name']})" for teacher in manifest["teachers"])


def short(model: str) -> str:
    """The last part of a folder's or a hub's name."""
    return model.rstrip("/").rpartition("/")[2]


def one_by_one(manifest: dict[str, Any]) -> dict[str | None, dict[str, Any]]:
    """`config` and `teacher` of a manifest, as those of a dataset with one teacher: of each of several by its name,
    else by None."""
    if "teachers" not in manifest:
        return {None: {key: manifest[key] for key in ("config", "teacher")}}
    if manifest["config"].get("mixture"):  # all have read the same ids
        return {None: {"config": values_of_teacher(manifest["config"], 0), "teacher": manifest["teachers"][0]}}
    return {
        teacher["name"]: {"config": values_of_teacher(manifest["config"], number), "teacher": teacher}
        for number, teacher in enumerate(manifest["teachers"])
    }
