"""Which files of a hub data set belong to which configuration and split, by the rules of `datasets` (5.2): what its
README says, or else what the names say.

https://huggingface.co/docs/hub/datasets-manual-configuration, https://huggingface.co/docs/hub/datasets-file-names-and-splits
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stillhouse.stages.sources.row import SourceError

Splits = dict[str, list[str]]
"""Names of files by their split, in the order in which they are read."""

TRAIN = "train"
_KEYWORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARDED = re.compile(r"(?:.*/)?(?P<split>[^/]+?)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")
_CONVERTED = re.compile(r"(?P<config>[^/]+)/(?P<split>[^/]+?)/\d{4}\.parquet")
"""What the hub's own conversion to Parquet (revision refs/convert/parquet) calls its files."""


def declares_configurations(readme: str | None) -> bool:
    return bool(_declared(readme))


def configurations(readme: str | None, names: Sequence[str]) -> tuple[dict[str, Splits], str | None]:
    """The configurations of a data set with the splits of each, and the name of the default one; None where none is."""
    declared = _declared(readme)
    if not declared:
        return _by_folder(names)
    found = {}
    for entry in declared:
        folder = str(entry.get("data_dir") or "").strip("/")
        inside = [name for name in names if not folder or name.startswith(f"{folder}/")]
        if entry.get("data_files") is None:
            splits = splits_by_name(inside)
        else:
            splits = {
                split: sorted({name for name in inside for pattern in patterns if _matches(pattern, name, folder)})
                for split, patterns in _patterns(entry["data_files"]).items()
            }
        found[str(entry.get("config_name", "default"))] = {split: files for split, files in splits.items() if files}
    default = [str(e.get("config_name", "default")) for e in declared if e.get("default") is True]
    return found, next(iter(default), "default" if "default" in found else None)


def chosen(
    where: str, key: str, found: Mapping[str, Any], asked: str | list[str] | None, default: str | None
) -> list[str]:
    """The names of `found` that are asked for, or else the only one or the default one. Raises `SourceError` where one
    is not there, or where there is a choice to be made."""
    if asked is None:
        if default is not None and default in found:
            return [default]
        if len(found) == 1:
            return [*found]
        raise SourceError(f"{where}: has several {key}s ({_listed(found)}); set source.{key}")
    names = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
    for name in names:
        if name not in found:
            raise SourceError(f"{where}: has no {key} {name!r} (it has {_listed(found)}); set source.{key}")
    return names


def splits_by_name(names: Iterable[str]) -> Splits:
    """Splits where no README says what they are: <split>-00000-of-00001, or the words train, validation, test in the
    names of folders, or of files. Files without such a word are left out where others are called train.

    Unlike in `datasets`, train_sft and train_gen are not one split, because a mix should be asked for, and files beside
    test are train.
    """
    names = sorted(names)
    sharded = {name: found["split"] for name in names if (found := _SHARDED.fullmatch(name))}
    if sharded:
        return _grouped(sharded)
    parts: tuple[Callable[[str], list[str]], ...] = (
        lambda name: name.split("/")[:-1],
        lambda name: name.split("/")[-1:],
    )
    for parts_of in parts:
        worded = {
            name: (part, split)
            for name in names
            for part in parts_of(name)
            if (split := _keyword(part.partition(".")[0])) is not None
        }
        if not worded:
            continue
        stems: dict[str, set[str]] = {}
        for part, split in worded.values():
            stems.setdefault(split, set()).add(_stem(part))
        splits = _grouped({n: _stem(part) if len(stems[split]) > 1 else split for n, (part, split) in worded.items()})
        rest = [name for name in names if name not in worded]
        return splits if TRAIN in stems or not rest else {TRAIN: rest} | splits
    return {TRAIN: names} if names else {}


def _grouped(by_name: Mapping[str, str]) -> Splits:
    splits: Splits = {}
    for name, split in by_name.items():
        splits.setdefault(split, []).append(name)
    return splits


def _stem(part: str) -> str:
    """The name of a file or folder without its suffix and what numbers it."""
    return re.split(r"[-_ ]*\d", part.partition(".")[0])[0]


def _keyword(text: str) -> str | None:
    """The split whose word stands in a name. `train-sft` counts, `constraint` does not."""
    words = re.split(r"[^A-Za-z]+", text)
    return next((split for word in words if (split := _KEYWORDS.get(word.lower())) is not None), None)


def _by_folder(names: Sequence[str]) -> tuple[dict[str, Splits], str | None]:
    """Configurations where no README says what they are: the folders at the top, if each has splits of its own."""
    converted = [_CONVERTED.fullmatch(name) for name in names]
    if names and all(converted):
        found: dict[str, Splits] = {}
        for name, match in zip(names, converted, strict=True):
            assert match is not None
            found.setdefault(match["config"], {}).setdefault(match["split"], []).append(name)
        return found, "default" if "default" in found else None
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.partition("/")[0] if "/" in name else "", []).append(name)
    has_splits = [
        folder and _keyword(folder) is None and all(_keyword(name.partition("/")[2]) is not None for name in inside)
        for folder, inside in folders.items()
    ]
    if len(folders) > 1 and all(has_splits):
        return {folder: splits_by_name([*inside]) for folder, inside in folders.items()}, None
    return {"default": splits_by_name(names)}, "default"


def _declared(readme: str | None) -> list[dict[str, Any]]:
    """The `configs` of a README's front matter."""
    import yaml

    found = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---", readme or "", re.DOTALL)
    try:
        front = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return []
    configs = front.get("configs") if isinstance(front, dict) else None
    return [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []


def _patterns(data_files: object) -> dict[str, list[str]]:
    """Patterns by split, from any of the forms that `data_files` may have."""

    def listed(value: object) -> list[str]:
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]

    if isinstance(data_files, dict):
        return {str(split): listed(paths) for split, paths in data_files.items()}
    if isinstance(data_files, list) and any(isinstance(item, dict) for item in data_files):
        splits: dict[str, list[str]] = {}
        for item in data_files:
            if isinstance(item, dict) and "path" in item:
                splits.setdefault(str(item.get("split", TRAIN)), []).extend(listed(item["path"]))
        return splits
    return {TRAIN: listed(data_files)}


def _matches(pattern: str, name: str, folder: str) -> bool:
    """Whether a path matches a glob, whose * stays within a folder and whose ** does not."""
    pattern = f"{folder}/{pattern}" if folder and not pattern.startswith(f"{folder}/") else pattern
    out = ""
    for part in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]*\]|[^*?\[]+|\[", pattern.removeprefix("./")):
        special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part)
        is_set = part.startswith("[") and part.endswith("]")
        out += special or (part.replace("[!", "[^") if is_set else re.escape(part))
    return re.fullmatch(out, name) is not None


def _listed(found: Iterable[str]) -> str:
    names = sorted(found)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
