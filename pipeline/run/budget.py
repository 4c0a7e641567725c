"""What a stage may drop: no more than its `max_dropped_fraction`, and not all."""

from stillhouse.pipeline.errors import RunError
from stillhouse.pipeline.folder import index, keys
from stillhouse.pipeline.folder.index import ShardSummary
from stillhouse.pipeline.folder.purged import PURGED
from stillhouse.pipeline.folder.store import Folder
from stillhouse.schemas.config import Config


def check_budget(config: Config, folder: Folder, stage: str, summaries: dict[str, ShardSummary]) -> None:
    """Raises `RunError` when `stage` dropped more than its `max_dropped_fraction`."""
    rows_in, dropped = index.stage_counts(summaries)
    dropped.pop(PURGED, None)  # for no fault of the data
    total = sum(dropped.values())
    budget = getattr(getattr(config, stage), "max_dropped_fraction", 1.0)
    if rows_in and total > budget * rows_in:
        raise RunError(
            f"{stage}: dropped {total} of {rows_in} rows ({_counted(dropped)}), more than {stage}.max_dropped_fraction "
            f"{budget}; look into {folder.path(keys.ledger(stage))}, then raise the budget or change the stage"
        )


def require_rows(folder: Folder, stage: str, summaries: dict[str, ShardSummary]) -> None:
    """Raises `RunError` when `stage`, all of whose shards are there, left no row: engines would start for nothing."""
    if any(summary.rows_out for summary in summaries.values()):
        return
    rows_in, dropped = index.stage_counts(summaries)
    raise RunError(
        f"{stage}: nothing is left, all of {rows_in} rows were dropped ({_counted(dropped)}); look into "
        f"{folder.path(keys.ledger(stage))}, then change the stage or the source and start a new run_dir"
    )


def _counted(dropped: dict[str, int]) -> str:
    """Reasons with their counts, the largest first."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1]))
