"""What `stillhouse purge` says, for people."""

from typing import Any

from stillhouse.pipeline.console import message


def show_purge(url: str, result: dict[str, Any]) -> None:
    """What was deleted, what was not found, and what is left to do."""
    message(f"purged: {result['prompts']:,} prompts, in {result['shards']:,} shards of every stage")
    before, after = result["rows"]
    if after is not None:
        message(f"dataset: {before:,} conversations before, {after:,} now")
    if result["already"]:
        message(f"already purged before: {result['already']:,} ids")
    if result["unknown"]:
        message(f"unknown: {len(result['unknown']):,} ids, which no prompt of this run has or had:")
        for name in result["unknown"]:
            message(f"  {name}")
    for name in result["exports"]:
        message(f"deleted: {url}/exports/{name}; export it again")
    for name in result["links"]:
        message(f"not touched: {url}/exports/{name} is a link; delete what is behind it yourself")
    if result["prompts"]:
        message("note: prompts that were dropped as duplicates of a purged one stay dropped")
        message("note: copies elsewhere (a hub, --output, a student) are not reached")
