"""How far a run is, read from its folder alone: works while it runs, after it died, and from any machine."""

from typing import Any

from pipeline import flow, manifest, runner, worker
from pipeline.report import say
from pipeline.shards import Store
from schemas.config import Config


def status(config: Config) -> dict[str, Any]:
    """Shards done and missing per stage, shards set aside, and whether the dataset is finished."""
    store = Store(config.run_dir)
    finished = manifest.read(store)
    started = store.get_or_none(runner.RUN_KEY) is not None
    names = runner.partition(store) if store.get_or_none(worker.PARTITION_KEY) is not None else None
    stages = {}
    for stage in flow.NAMES:
        folder = "dataset/data" if stage == "export" else stage
        stages[stage] = {"done": len(store.list(folder)), "of": None if names is None else len(names)}
    return {
        "run_dir": config.run_dir,
        "state": "finished" if finished else "unfinished" if started else "not started",
        "stages": stages,
        "set_aside": manifest.set_aside(store),
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
    if result["rows"] is not None:
        say(f"  {result['rows']:,} conversations, {result['target_tokens']:,} supervised tokens")
