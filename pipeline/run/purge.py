"""`stillhouse purge RUN --ids FILE`: prompts that somebody asked to delete leave every file of a run.

Order: what is to be done is written down (`state/purge.json`); digests of the ids (`state/purged.json`), so that no
stage brings the rows back; the manifest goes, so that no half of a dataset counts as one; each shard, from ingest on;
the manifest comes back; the note goes. Killed anywhere in it, a purge is finished by the next `purge` or `run`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stillhouse.pipeline import flow
from stillhouse.pipeline.dataset import manifest
from stillhouse.pipeline.errors import DamagedError, RedoError, ShardError
from stillhouse.pipeline.folder import Folder, index, keys, open_folder, partition, purged
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.certified import encode_certified, parse_certified
from stillhouse.pipeline.folder.identity import config_of
from stillhouse.pipeline.folder.shard import ShardId
from stillhouse.pipeline.run.rewrite import rewrite
from stillhouse.schemas.config import Config, ConfigError, as_path, config_hash

EXPORTS = "exports"
REPORT_FOLDERS = ("", "dataset")


def read_ids(path: str) -> list[str]:
    """The ids in a file, one a line, each once. Raises `ConfigError` where there are none."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--ids {path}: cannot be read ({type(error).__name__}); write one id a line, UTF-8"
        ) from None
    ids = list(dict.fromkeys(line.removesuffix("\r") for line in lines if line.strip()))
    if not ids:
        raise ConfigError(f"--ids {path}: holds no ids; write one a line")
    return ids


def purge(url: str, ids: Iterable[str], report: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
    """Deletes prompts, named by a `prompt_id` or a `sample_id`, with all that was made of them. Returns `prompts` (how
    many were found now), `already` (ids that an earlier purge deleted), `unknown` (ids that are neither), `shards`
    rewritten, `exports` deleted, `links` among the exports, behind which nothing is touched, and `rows` of the dataset
    before and after (None where it is not finished).

    Raises `ConfigError` where no run is there, `ShardError` where a stage's files are gone or damaged.
    """
    config, folder = config_of(url), open_folder(url)
    finish(config, report)
    register = purged.read(folder)
    names = _shards(folder)
    wanted = {name: _prompt_of(name, config.writing.n) for name in ids}
    candidates = {*wanted, *wanted.values()}
    found = {name: _ids(config, folder, name) & candidates for name in names}
    known: set[str] = set().union(*found.values())
    chosen = {name: name if name in known else prompt for name, prompt in wanted.items()}
    prompt_ids = {prompt for prompt in chosen.values() if prompt in known}
    missing = [name for name, prompt in chosen.items() if prompt not in known]
    already = [name for name in missing if register.has(name) or register.has(wanted[name])]
    result: dict[str, Any] = {
        "prompts": len(prompt_ids),
        "already": len(already),
        "unknown": [name for name in missing if name not in already],
        "shards": 0,
        "exports": [],
        "links": _links(url),
        "rows": [None, None],
    }
    if not prompt_ids:
        return result
    affected = [name for name in names if found[name] & prompt_ids or _leads(folder, name, prompt_ids)]
    for name in affected:
        _require_whole(config, folder, name, len(names))
    finished = manifest.finished(folder)
    exports = sorted({key.split("/")[1] for key in folder.walk(EXPORTS) if key.count("/") > 1})
    plan = {"prompt_ids": sorted(prompt_ids), "shards": affected, "is_finished": finished is not None}
    folder.put(keys.PURGE, encode_certified(plan))
    written = finish(config, report)
    rows = [finished and finished["rows"], written and written["rows"]]
    return result | {"shards": len(affected), "exports": exports, "rows": rows}


def _links(url: str) -> list[str]:
    """Exports that are links: what is behind one may be anybody's, or the run itself."""
    place = Path(as_path(url)) / EXPORTS
    return [] if "://" in as_path(url) else sorted(path.name for path in place.glob("*") if path.is_symlink())


def finish(config: Config, report: Callable[[str], None]) -> dict[str, Any] | None:
    """Does what is left of a purge that is under way. Returns the manifest that it wrote."""
    folder = open_folder(config.run_dir)
    data = folder.get_or_none(keys.PURGE)
    if data is None:
        return None
    try:
        plan = parse_certified(data)
    except ValueError:
        raise ShardError(f"{folder.path(keys.PURGE)}: is damaged; delete it, then purge the same ids again") from None
    register = purged.add(folder, plan["prompt_ids"])
    # A report may have any name (`report --output`).
    pages = [f"{where}/{name}".lstrip("/") for where in REPORT_FOLDERS for name in folder.names(where)]
    for key in (keys.MANIFEST, keys.CARD, *(page for page in pages if page.endswith(".html"))):
        folder.delete(key)
    exports = folder.walk(EXPORTS)
    for key in sorted(exports, key=lambda key: keys.name(key) != manifest.MANIFEST):
        folder.delete(key)
    names = _shards(folder)
    for name in plan["shards"]:
        for key in folder.walk(keys.PARTS):
            if keys.name(key).startswith(f"{name.removesuffix('.parquet')}."):
                folder.delete(key)  # by numbers of rows that are others now
        rewrite(config, folder, name, len(names), register)
        report(f"purge {name}: done")
    for key in [*folder.walk(keys.DAMAGED), *folder.walk(keys.STAGED)]:
        folder.delete(key)  # nobody can tell what is in them
    written = None
    if plan["is_finished"]:
        try:
            summaries = {stage.name: index.read(config, folder, stage.name, names) for stage in flow.of(config)}
        except RedoError as error:
            raise ShardError(f"{error}; run again") from None
        written = manifest.write(config, folder, summaries)
    folder.delete(keys.PURGE)
    return written


def _prompt_of(name: str, samples: int) -> str:
    """The prompt of a sample's id; `name` itself where it can be none's."""
    prompt, _, number = name.rpartition("/")
    return prompt if prompt and number.isdecimal() and int(number) < samples else name


def _shards(folder: Folder) -> list[str]:
    try:
        names = partition.read(folder)
    except FileNotFoundError:  # ingest is not over
        return [keys.shard_name(n) for n in range(partition.num_ingested(folder))]
    if len(names) < partition.num_ingested(folder):
        left = folder.path(keys.stage_shard("ingest", keys.shard_name(len(names)), 0))
        raise ShardError(f"{left}: is no shard of this run, and may hold prompts; delete it, then purge again")
    return names


def _ids(config: Config, folder: Folder, name: str) -> set[str]:
    """The ids of all prompts that ingest has read into a shard, or dropped. Raises `ShardError` where it is gone."""
    key = keys.stage_shard("ingest", name, 0)
    try:
        found = shards.load(folder, key, ["prompt_id"], ShardId("ingest", name, config_hash(config)))
    except FileNotFoundError:
        raise ShardError(f"{folder.path(key)}: is gone; a purge needs the shards of every stage") from None
    except DamagedError as error:
        raise ShardError(f"{error}; run again, then purge") from None
    ledger = found.info.ledger if found.info is not None else []
    dropped = {row["prompt_id"] for row in ledger if row["prompt_id"] is not None}
    return dropped | set(found.table.column("prompt_id").to_pylist())


def _leads(folder: Folder, name: str, prompt_ids: set[str]) -> bool:
    """Whether one of `prompt_ids` leads the cluster of a row in a shard."""
    for key in (keys.stage_shard("dedupe", name, 0), keys.assignment("dedupe", name)):
        try:
            leaders = shards.read(folder, key, ["cluster_id"]).column("cluster_id").to_pylist()
        except (FileNotFoundError, DamagedError):
            continue
        if not prompt_ids.isdisjoint(leaders):
            return True
    return False


def _require_whole(config: Config, folder: Folder, name: str, num_shards: int) -> None:
    """Raises `ShardError` where a shard is gone whose successor is there: its counts could not be told any more. Shards
    that were made from other answers than there are now are deleted, as a run does."""
    before: str | None = ""
    for stage in flow.of(config):
        key = keys.stage_shard(stage.name, name, num_shards)
        if not folder.exists(key):
            before = None
            continue
        if before is None:
            raise ShardError(
                f"{folder.path(key)}: is there, and the shard that it was made from is gone; a purge needs the shards "
                "of every stage"
            )
        info, sha256, _ = shards.read_footer(folder, key)
        if stage.follows_answers and info.source_sha256 != before:
            folder.delete(key)
            before = None
            continue
        before = sha256
