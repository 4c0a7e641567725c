"""The command: `stillhouse check | run | status CONFIG`.

Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 3 finished with shards set aside, 130 interrupted.
With `--json` the result is JSON on standard output; what people read goes to standard error.
"""

import argparse
import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.config import Config, ConfigError, is_local_path, load

if TYPE_CHECKING:
    from pipeline.worker import Done

EXIT_FAILED, EXIT_USAGE, EXIT_SET_ASIDE, EXIT_INTERRUPTED = 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = _parser().parse_args(argv)
    # Heavy imports wait until the configuration is valid: a typo answers at once.
    try:
        config = absolute(load(arguments.config, arguments.set))
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, stream=sys.stderr)
    # A cluster ends a job by SIGTERM; it means what Ctrl-C means.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = {"check": _check, "run": _run, "status": _status}[arguments.command]
    try:
        # Standard output is for the result: libraries that print (Ray does) print to standard error.
        with contextlib.redirect_stdout(sys.stderr):
            result, code = command(config, arguments)
        if arguments.json:
            print(json.dumps(result))
        return code
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on with what is missing", EXIT_INTERRUPTED)
    except (RuntimeError, ValueError, OSError) as error:
        from pipeline.worker import describe

        if arguments.verbose:
            raise
        return _fail(f"{describe(error)} (--verbose shows where)", EXIT_FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stillhouse", description="Prompts in, a distilled student's training set out.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("check", "validate a configuration, look at the source, estimate tokens, bytes and GPU hours"),
        ("run", "do all that is missing of a run"),
        ("status", "say how far a run is"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("config", help="YAML file")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. sampling.seed=1"
        )
        command.add_argument("--json", action="store_true", help="the result as JSON on standard output")
        command.add_argument("--verbose", action="store_true", help="log more; a full traceback on failure")
        if name == "run":
            command.add_argument(
                "--retry-set-aside", action="store_true", help="try shards again that failed too often"
            )
        if name == "check":
            command.add_argument("--rows", type=int, default=1000, help="source rows to look at (default 1000)")
            command.add_argument(
                "--tokens-per-second",
                type=float,
                default=2500.0,
                help="of one replica, for the estimate (default 2500)",
            )
    return parser


def _fail(message: str, code: int) -> int:
    print(f"stillhouse: {message}", file=sys.stderr)
    return code


def absolute(config: Config) -> Config:
    """`config` with local paths made absolute: workers need not share the driver's folder."""

    def fix(path: str | None) -> str | None:
        return path if path is None or "://" in path else str(Path(path).expanduser().absolute())

    source = config.source
    if source.path is not None:
        paths = [source.path] if isinstance(source.path, str) else source.path
        source = source.model_copy(update={"path": [fix(path) for path in paths]})
    teacher = config.teacher
    local = {"model": fix(teacher.model)} if is_local_path(teacher.model) else {}
    teacher = teacher.model_copy(update={**local, "chat_template": fix(teacher.chat_template)})
    return config.model_copy(update={"run_dir": fix(config.run_dir), "source": source, "teacher": teacher})


class Progress:
    """A bar per stage on a terminal; elsewhere a line per shard."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._terminal = sys.stderr.isatty()
        self.generate_seconds, self.generate_tokens = 0.0, 0
        self._started = time.monotonic()

    def __call__(self, step: str, total: int, done: "Done | None") -> None:
        if done is None:
            self._started = time.monotonic()
            if self._terminal:
                from tqdm import tqdm

                self.close()
                self._bar = tqdm(
                    total=total if total >= 0 else None, desc=f"{step:16}", unit="shard", disable=total == 0
                )
            return
        if step == "generate":
            self.generate_seconds = time.monotonic() - self._started
            self.generate_tokens += done.num_target_tokens
        if self._bar is not None:
            self._bar.update()
            if done.error:
                self._bar.write(done.error, file=sys.stderr)
            return
        tokens = f", {done.num_target_tokens:,} tokens" if done.num_target_tokens else ""
        text = (
            done.error
            or f"{step} {done.shard}: {done.rows_in:,} rows in, {done.rows_out:,} out{tokens}, {done.seconds:.1f} s"
        )
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _run(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from pipeline import runner

    started = time.monotonic()
    progress = Progress()
    try:
        manifest = runner.run(config, progress, retry_set_aside=arguments.retry_set_aside)
    finally:
        progress.close()
    _summary(config, manifest, progress, time.monotonic() - started)
    return manifest, EXIT_SET_ASIDE if manifest["set_aside"] else 0


def _summary(config: Config, manifest: dict[str, Any], progress: Progress, seconds: float) -> None:
    say = lambda text="": print(text, file=sys.stderr)  # noqa: E731
    say()
    say(f"{'stage':10}{'rows in':>10}{'rows out':>10}   dropped")
    for stage, counts in manifest["stages"].items():
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in counts["dropped"].items()) or "-"
        say(f"{stage:10}{counts['rows_in']:>10,}{counts['rows_out']:>10,}   {dropped}")
    say()
    per_token = manifest["bytes"] / max(manifest["target_tokens"], 1)
    say(
        f"{manifest['rows']:,} conversations, {manifest['target_tokens']:,} supervised tokens with their distributions, "
        f"{manifest['bytes'] / 1e6:,.1f} MB ({per_token:,.0f} bytes per token)"
    )
    if progress.generate_tokens:
        rate = progress.generate_tokens / progress.generate_seconds
        say(
            f"generate: {rate:,.0f} tokens/s over {progress.generate_seconds:,.0f} s, engine start included; "
            f"all: {seconds:,.0f} s"
        )
    else:
        say(f"nothing was missing ({seconds:.1f} s)")
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


def _status(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from pipeline import status

    result = status.status(config)
    status.show(result)
    return result, EXIT_SET_ASIDE if result["set_aside"] else 0


def _check(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from pipeline import check

    result = check.check(config, rows=arguments.rows, tokens_per_second=arguments.tokens_per_second)
    check.show(result)
    return result, 0
