"""How far a run is, read from its folder alone: works while it runs, after it died, and from any machine."""

from typing import Any

from stillhouse.pipeline.shards import Store

from stillhouse.pipeline import flow, index, manifest, runner, worker
from stillhouse.pipeline.report import say
from stillhouse.schemas.config import Config


def status(config: Config) -> dict[str, Any]:
    """Shards done and missing per stage, shards set aside, damaged ones, and whether the dataset is finished.

    Damage is looked for where that is cheap: in what was written since the run last looked, in footers and published
    files; and what the run itself has put away is counted. Writes nothing.
    """
    store = Store(config.run_dir)
    finished = runner.finished_manifest(store)
    started = store.get_or_none(runner.RUN_KEY) is not None
    try:
        names = runner.partition(store)
    except FileNotFoundError:
        names = None
    stages, damaged, put_away = {}, [], {}
    for stage in flow.NAMES:
        folder = "dataset/data" if stage == "publish" else stage
        stages[stage] = {"done": len(store.list(folder)), "of": None if names is None else len(names)}
        if names is not None:
            damaged += [message for _, message in index.scan(config, store, stage, names, save=False)[1]]
        if files := list(store.list(f"{worker.DAMAGED}/{folder}")):
            put_away[f"{worker.DAMAGED}/{folder}"] = files
    return {
        "run_dir": config.run_dir,
        "state": "finished" if finished else "unfinished" if started else "not started",
        "stages": stages,
        "set_aside": manifest.set_aside(store),
        "damaged": damaged,
        "put_away": put_away,
        "rows": finished and finished["rows"],
        "target_tokens": finished and finished["target_tokens"],
    }


def show(result: dict[str, Any]) -> None:
    """`status` for people, on standard error."""
    say(f"{result['run_dir']}: {result['state']}")
    for stage, counts in result["stages"].items():
        total = "?" if counts["of"] is None else counts["of"]
        say(f"  {stage:10}{counts['done']:>7} of {total} shards")
    for line in result["set_aside"]:
        say(f"  set aside: {line}")
    for line in result["damaged"]:
        say(f"  damaged: {line}; run again to make it again")
    for folder, files in result["put_away"].items():
        say(f"  found damaged and made again or to be made: {folder}/{{{','.join(files)}}}")
    if result["rows"] is not None:
        say(f"  {result['rows']:,} conversations, {result['target_tokens']:,} supervised tokens")
