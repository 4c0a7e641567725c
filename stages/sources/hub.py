"""Which files of a data set on the Hugging Face hub are read, at one commit."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import formats
from stillhouse.stages.sources.conversation import Spelling
from stillhouse.stages.sources.formats import FORMATS, Format, format_of, known_suffixes
from stillhouse.stages.sources.row import SourceError
from stillhouse.stages.sources.splits import TRAIN, chosen, configurations, declares_configurations

_NUM_ROWS_TRIED = 20


def hub_names(config: SourceConfig, is_data: Callable[[str], bool]) -> tuple[str | None, list[str]]:
    """The commit of `source.dataset`, and its files of the configuration and split that are asked for, in the order in
    which they are read.

    Only one format is read, because data sets often hold the same rows in two: the best of which the first
    file has a conversation, so that a table of statistics is not taken for the data.
    """
    dataset, where = config.dataset, f"{config.dataset}@{config.revision}"
    assert dataset is not None
    commit, listed = _listing(dataset, config.revision)
    names = [name for name in listed if is_data(name)]
    if not names:
        raise SourceError(f"{where}: matches no data file ({len(listed)} of other kinds); wanted {known_suffixes()}")
    readme = None
    if "README.md" in listed:
        readme = Path(download(dataset, commit, "README.md")).read_text("utf-8", "replace")
    spelling = Spelling(config)

    def holds_conversations(kind: Format, names: list[str]) -> bool:
        first = next(name for name in names if format_of(name)[0] == kind)
        return _has_conversation(first, download(dataset, commit, first), spelling)

    if not declares_configurations(readme) and len(kinds := _formats(names)) > 1:
        # A split that only a table of statistics has is no split.
        kinds = [kind for kind in kinds if holds_conversations(kind, names)] or kinds
        names = [name for name in names if format_of(name)[0] in kinds]
    found, default = configurations(readme, names)
    found = {name: splits for name, splits in found.items() if splits}
    if not found:
        raise SourceError(
            f"{where}: its README names data files that are not there, or of other kinds; set source.revision to "
            "another, or download it and set source.path"
        )
    wanted: list[str] = []
    for name in chosen(where, "config", found, config.config, default):
        inside = where if len(found) == 1 else f"{where} (config {name})"
        for split in chosen(inside, "split", found[name], config.split, TRAIN):
            wanted += [file for file in found[name][split] if file not in wanted]
    best, *others = _formats(wanted)
    if others:
        best = next((kind for kind in (best, *others) if holds_conversations(kind, wanted)), best)
    return commit, [name for name in wanted if format_of(name)[0] == best]


def _formats(names: list[str]) -> list[Format]:
    """The formats of files, the best first."""
    found = {format_of(name)[0] for name in names}
    return [kind for kind in dict.fromkeys(FORMATS.values()) if kind in found]


def _has_conversation(name: str, path: str, spelling: Spelling) -> bool:
    try:
        with open(path, "rb") as stream:
            rows = islice(formats.read(name, stream, spelling), _NUM_ROWS_TRIED)
            return any(spelling.has_conversation(row.value) for row in rows)
    except SourceError:
        return False


def _listing(dataset: str, revision: str | None) -> tuple[str | None, list[str]]:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        # A branch may move between the listing and a download; a commit does not.
        commit = api.repo_info(dataset, repo_type="dataset", revision=revision).sha
        return commit, sorted(api.list_repo_files(dataset, repo_type="dataset", revision=commit))
    except _failures() as error:
        raise SourceError(
            f"{dataset}@{revision}: cannot be listed ({type(error).__name__}); check the id, the revision, HF_TOKEN "
            "and the network"
        ) from None


def download(dataset: str, commit: str | None, name: str) -> str:
    """The path of a file of a data set in the local cache. Raises `SourceError`."""
    from huggingface_hub import hf_hub_download

    try:
        return str(hf_hub_download(dataset, name, repo_type="dataset", revision=commit))
    except _failures() as error:
        raise SourceError(
            f"{dataset}@{commit}/{name}: cannot be downloaded ({type(error).__name__}); "
            "check HF_TOKEN, the disk and the network"
        ) from None


def _failures() -> tuple[type[Exception], ...]:
    # Its own HTTPError, because the HTTP library below it differs between versions of the hub's client.
    from huggingface_hub.errors import HFValidationError, HTTPError

    return HFValidationError, HTTPError, OSError
