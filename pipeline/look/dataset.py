"""What `export` and `verify` say, for people."""

import shlex
from typing import Any

from stillhouse.pipeline.console import message
from stillhouse.pipeline.dataset.checks.alignment import MIN_TOKENS


def show_export(url: str, manifest: dict[str, Any]) -> None:
    """What was exported, and what to know before training."""
    message(
        f"{manifest['layout']}: {manifest['rows']:,} conversations, {manifest['target_tokens']:,} supervised tokens, "
        f"{manifest['bytes'] / 1e6:,.1f} MB in {url}"
    )
    if manifest["rows_too_long"]:
        message(
            f"left out: {manifest['rows_too_long']:,} conversations of more than "
            f"{manifest['settings']['max_length']:,} tokens (--max-length)"
        )
    for note in manifest["notes"]:
        message(f"note: {note}")


def show_withheld(url: str, manifest: dict[str, Any]) -> None:
    """What an export without prompts holds, and how it is joined."""
    message(f"no prompts: {manifest['rows']:,} conversations, {manifest['bytes'] / 1e6:,.1f} MB in {url}")
    if manifest["withheld"]["ids"]:
        message("note: ids were made of prompts, so rows are named by their place in the source")
    message(f"join:       stillhouse join {shlex.quote(url)}")
    message("note: answers that repeat their prompt are published as they are (docs/publishing.md)")


def show_verify(result: dict[str, Any]) -> None:
    """What was checked, and what was found."""
    message(
        f"{result['folder']}: {result['layout']}, {result['files']} files, {result['rows']:,} conversations, "
        f"{result['target_tokens']:,} supervised tokens"
    )
    if result["alignment"] != "none":
        before, own, after = result["probability_before_own_after"]
        verdict = (
            f"a row gives its own token a mean probability of {own}, the one before {before}, the one after {after}"
            if result["alignment_tokens"]
            else f"not averaged, fewer than {MIN_TOKENS} tokens"
        )
        message(f"  alignment ({result['alignment']}): {verdict}")
    if result["dataset"] is not None:
        message(f"  compared with the dataset of {result['dataset']}, row by row")
    for sentence in result["not_checked"]:
        message(f"  not checked: {sentence}")
    for problem in result["problems"]:
        message(f"  {problem}")
    if result["num_problems"] > len(result["problems"]):
        message(f"  and {result['num_problems'] - len(result['problems']):,} more")
    message("  no problems found" if result["ok"] else f"  {result['num_problems']:,} problems")
