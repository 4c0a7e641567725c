"""How far a run is, read from its folder alone: works while it runs, after it died, and from any machine."""

import contextlib
import math
from datetime import UTC, datetime
from typing import Any

from stillhouse.pipeline import flow
from stillhouse.pipeline.console import message
from stillhouse.pipeline.dataset import manifest
from stillhouse.pipeline.folder import index, keys, open_folder, partition
from stillhouse.pipeline.folder.certified import parse_object
from stillhouse.pipeline.folder.store import Folder
from stillhouse.schemas.config import Config

SILENT_AFTER_S = 120.0
"""A run that goes on writes every 15 s (`run.timeline`), and a store may take a while; silent for so long, it was
killed."""


def status(config: Config) -> dict[str, Any]:
    """Shards done and missing per stage, shards set aside, damaged ones, and whether the dataset is finished.

    Damage is looked for where that is cheap: in the footers of what was written since the run last looked; and what
    the run itself has put away is counted. Writes nothing.
    """
    folder = open_folder(config.run_dir)
    finished = manifest.finished(folder)
    started = folder.get_or_none(keys.RUN) is not None
    state = "finished" if finished else "unfinished" if started else "not started"
    try:
        names = partition.read(folder)
    except FileNotFoundError:
        names = None
    stages, damaged, put_away = {}, [], {}
    for stage in flow.of(config):
        present = folder.list(keys.stage_folder(stage.name))
        stages[stage.name] = {"done": len(present), "of": None if names is None else len(names)}
        if names is not None:
            damaged += [text for _, text in index.scan(config, folder, stage.name, names, save=False)[1]]
        if files := list(folder.list(keys.damaged_folder(stage.name))):
            put_away[keys.damaged_folder(stage.name)] = files
    return {
        "run_dir": config.run_dir,
        "state": "being purged; run or purge again to go on" if folder.exists(keys.PURGE) else state,
        "now": [] if finished else _now(folder),
        "stages": stages,
        "set_aside": manifest.set_aside(config, folder),
        "damaged": damaged,
        "put_away": put_away,
        "rows": finished and finished["rows"],
        "target_tokens": finished and finished["target_tokens"],
    }


def _now(folder: Folder) -> list[dict[str, Any]]:
    """What each run on the folder that did not end said of itself last: `run.progress.Snapshot` with `seconds_ago`, the
    newest first. Of its clock and the storage's the later counts: one that is behind makes no run silent."""
    found, now = list[dict[str, Any]](), datetime.now(UTC).timestamp()
    for name, entry in folder.entries(keys.NOW).items():
        # A run that ends takes its file away, maybe now; one that is damaged says nothing.
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            facts = parse_object(folder.get(f"{keys.NOW}/{name}"))
            written = max(datetime.fromisoformat(facts["written"]).timestamp(), entry.modified)
            found.append({**facts, "seconds_ago": max(0, math.floor(now - written))})
    return sorted(found, key=lambda facts: facts["seconds_ago"])


def show(result: dict[str, Any]) -> None:
    """`status` for people, on standard error."""
    message(f"{result['run_dir']}: {result['state']}")
    for now in result["now"]:
        said = f"{now['step']}: {now['text']}"
        if now["seconds_ago"] < SILENT_AFTER_S:
            message(f"  a run goes on; {now['seconds_ago']} s ago it said: {said}")
    if result["now"] and result["now"][0]["seconds_ago"] >= SILENT_AFTER_S:
        message(
            f"  the last run is silent since {result['now'][0]['written']} and was killed, unless this machine's clock "
            "is ahead; run again to go on"
        )
    for stage, counts in result["stages"].items():
        total = "?" if counts["of"] is None else counts["of"]
        message(f"  {stage:10}{counts['done']:>7} of {total} shards")
    for line in result["set_aside"]:
        message(f"  set aside: {line}")
    for line in result["damaged"]:
        message(f"  damaged: {line}; run again to make it again")
    for folder, files in result["put_away"].items():
        message(f"  found damaged and made again or to be made: {folder}/{{{','.join(files)}}}")
    if result["rows"] is not None:
        message(f"  {result['rows']:,} conversations, {result['target_tokens']:,} supervised tokens")
