"""What a run came to, for people."""

import shlex
from typing import Any

from stillhouse.pipeline.console import message
from stillhouse.schemas.config import Config


def summary(
    config: Config,
    manifest: dict[str, Any],
    *,
    seconds: float,
    num_made: int,
    num_others: int,
    generate_seconds: float,
    generate_tokens: int,
) -> None:
    """Rows by stage, tokens, bytes, speed, and where to look. `num_made` shards were made in this run, of which
    `num_others` by another one on the same folder."""
    _show_stages(manifest)
    per_token = manifest["bytes"] / max(manifest["target_tokens"], 1)
    message(
        f"{manifest['rows']:,} conversations, {manifest['target_tokens']:,} supervised tokens with distributions, "
        f"{manifest['bytes'] / 1e6:,.1f} MB ({per_token:,.0f} bytes per token)"
    )
    if generate_tokens:
        rate = generate_tokens / generate_seconds
        message(f"{config.task + ':':9} {rate:,.0f} tokens/s over {generate_seconds:,.0f} s, engine start included")
    message(f"all:      {seconds:,.0f} s" if num_made else f"nothing was missing ({seconds:.1f} s)")
    if num_others:
        message(f"shared:   {num_others:,} shards were written by another run on this folder meanwhile")
    message(f"dataset:  {config.run_dir}/dataset   (data/*.parquet, manifest.json, README.md)")
    message(f"look:     stillhouse inspect {shlex.quote(config.run_dir)} --samples 3")
    message(f"dropped:  {config.run_dir}/ledger/<stage>/*.parquet")
    _show_set_aside(manifest)


def stopped(config: Config, result: dict[str, Any], seconds: float, command: str) -> None:
    """What a run with `--until` came to, where to look, and the `command` that goes on."""
    _show_stages(result)
    until = result["until"]
    message(f"all:      {seconds:,.0f} s; stopped after {until}, as asked")
    message(f"look:     {config.run_dir}/{until}/*.parquet")
    message(f"dropped:  {config.run_dir}/ledger/<stage>/*.parquet")
    message(f"go on:    {command}")
    _show_set_aside(result)


def _show_stages(result: dict[str, Any]) -> None:
    message()
    message(f"{'stage':10}{'rows in':>10}{'rows out':>10}   dropped")
    for stage, counts in result["stages"].items():
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in counts["dropped"].items()) or "-"
        message(f"{stage:10}{counts['rows_in']:>10,}{counts['rows_out']:>10,}   {dropped}")
    message()


def _show_set_aside(result: dict[str, Any]) -> None:
    for line in result["set_aside"]:
        message(f"set aside: {line}")
    if result["set_aside"]:
        message("some shards are missing from the dataset; `run --retry-set-aside` tries them again")
