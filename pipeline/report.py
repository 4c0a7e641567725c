"""What people read while a run goes on and when it has ended. All of it on standard error."""

import sys
import time
from typing import Any

from stillhouse.pipeline.worker import Done
from stillhouse.schemas.config import Config


def say(text: str = "") -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar per stage on a terminal; elsewhere a line per shard."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._terminal = sys.stderr.isatty()
        self.generate_seconds, self.generate_tokens = 0.0, 0
        self.num_made = 0
        self.num_others = 0  # shards that another run wrote while this one was about to
        self._begun = self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return time.monotonic() - self._begun

    def __call__(self, step: str, total: int, done: Done | None) -> None:
        if done is None:
            self._started = time.monotonic()
            if self._terminal:
                from tqdm import tqdm

                self.close()
                self._bar = tqdm(
                    total=total if total >= 0 else None, desc=f"{step:16}", unit="shard", disable=total == 0
                )
            return
        self.num_made += done.error is None and done.redo is None
        self.num_others += done.is_others
        if step == "generate" and not done.is_others:
            self.generate_seconds = time.monotonic() - self._started
            self.generate_tokens += done.num_target_tokens
        if self._bar is not None:
            self._bar.update()
            if done.error or done.redo:
                self._bar.write(done.error or done.redo, file=sys.stderr)
            return
        tokens = f", {done.num_target_tokens:,} tokens" if done.num_target_tokens else ""
        end = "written by another run" if done.is_others else f"{done.seconds:.1f} s"
        text = (
            done.error
            or done.redo
            or f"{step} {done.shard}: {done.rows_in:,} rows in, {done.rows_out:,} out{tokens}, {end}"
        )
        say(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def summary(config: Config, manifest: dict[str, Any], progress: Progress) -> None:
    """What a run came to: rows by stage, tokens, bytes, speed, and where to look."""
    say()
    say(f"{'stage':10}{'rows in':>10}{'rows out':>10}   dropped")
    for stage, counts in manifest["stages"].items():
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in counts["dropped"].items()) or "-"
        say(f"{stage:10}{counts['rows_in']:>10,}{counts['rows_out']:>10,}   {dropped}")
    say()
    per_token = manifest["bytes"] / max(manifest["target_tokens"], 1)
    say(
        f"{manifest['rows']:,} conversations, {manifest['target_tokens']:,} supervised tokens with distributions, "
        f"{manifest['bytes'] / 1e6:,.1f} MB ({per_token:,.0f} bytes per token)"
    )
    if progress.generate_tokens:
        rate = progress.generate_tokens / progress.generate_seconds
        say(f"generate: {rate:,.0f} tokens/s over {progress.generate_seconds:,.0f} s, engine start included")
    if progress.num_made:
        say(f"all:      {progress.seconds:,.0f} s")
    else:
        say(f"nothing was missing ({progress.seconds:.1f} s)")
    if progress.num_others:
        say(f"shared:   {progress.num_others:,} shards were written by another run on this folder meanwhile")
    say(f"dataset:  {config.run_dir}/dataset   (data/*.parquet, manifest.json, README.md)")
    say(
        f"look:     python -c \"import datasets; print(datasets.load_dataset('parquet', "
        f"data_files='{config.run_dir}/dataset/data/*.parquet', split='train')[0]['messages'])\""
    )
    say(f"dropped:  {config.run_dir}/ledger/<stage>/*.parquet")
    for line in manifest["set_aside"]:
        say(f"set aside: {line}")
    if manifest["set_aside"]:
        say("some shards are missing from the dataset; `run --retry-set-aside` tries them again")
