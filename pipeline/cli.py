"""The command: `stillhouse check | run | status CONFIG`, `export RUN --to LAYOUT`, `verify FOLDER`; on a cluster
`submit CONFIG`, `jobs`, `logs` and `stop` (`cluster.arguments`).

Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 3 finished with shards set aside, 130 interrupted.
Standard output holds the result as JSON with `--json`, and nothing else; what people read goes to standard error.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from stillhouse.pipeline import console
from stillhouse.pipeline.cluster import RAYS_COPY
from stillhouse.pipeline.cluster import arguments as cluster
from stillhouse.schemas.arrow import keep_pandas_out
from stillhouse.schemas.config import Config, ConfigError, load
from stillhouse.stages.layouts import LAYOUTS

Command = Callable[..., tuple[dict[str, Any], int]]
EXIT_FAILED, EXIT_USAGE, EXIT_SET_ASIDE, EXIT_INTERRUPTED = 1, 2, 3, 130


def command() -> int:
    """The process `stillhouse`: `main`, with standard output kept for the result.

    Libraries print, and so do their C++ threads and child processes, some until the very end (Ray does). So file
    descriptor 1 is standard error from here on, and the result goes to a copy of what it was.
    """
    # Imports and a tokenizer make a million objects that all stay: a tenth of the start went into looking for garbage.
    gc.set_threshold(200_000, 20, 20)
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        os.dup2(2, 1)
        return main(results=results, is_process=True)


def main(argv: Sequence[str] | None = None, results: TextIO | None = None, *, is_process: bool = False) -> int:
    """Runs the command line and returns its exit code. The result is written to `results`, by default `sys.stdout`.
    `is_process`: this process does nothing else, so that its file descriptors may be changed."""
    arguments = _parser().parse_args(argv)
    arguments.is_process = is_process
    results = results or sys.stdout
    # Heavy imports wait until the configuration is valid: a typo answers at once.
    config = None
    try:
        if "config" in arguments:
            config = load(arguments.config, arguments.set)
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, stream=sys.stderr)
    # A cluster ends a job by SIGTERM; it means what Ctrl-C means.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commands: dict[str, Command] = {
        "check": _check,
        "run": _run,
        "status": _status,
        "export": _export,
        "verify": _verify,
        **cluster.COMMANDS,
    }
    command = commands[arguments.command]
    if is_process and arguments.command != "run":  # Ray Data may want pandas
        keep_pandas_out()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result, code = command(arguments) if config is None else command(config, arguments)
        if arguments.json:
            print(json.dumps(result), file=results, flush=True)
        return code
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on with what is missing", EXIT_INTERRUPTED)
    except Exception as error:  # of any type, because Python would print its message
        from stillhouse.pipeline.errors import safe_message

        if not arguments.verbose:
            return _fail(f"{safe_message(error)} (--verbose shows where)", EXIT_FAILED)
        # Lines of code only: the message of an error that is not ours can quote a prompt.
        print("".join(traceback.format_tb(error.__traceback__)), end="", file=sys.stderr)
        return _fail(safe_message(error), EXIT_FAILED)


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
        if name == "run":
            command.add_argument(
                "--retry-set-aside", action="store_true", help="try shards again that failed too often"
            )
            command.add_argument(
                "--local", action="store_true", help="on this machine alone, in processes and without Ray"
            )
        if name == "check":
            command.add_argument("--rows", type=int, default=1000, help="source rows to look at (default 1000)")
            command.add_argument(
                "--tokens-per-second",
                type=float,
                default=2500.0,
                help="of one replica, for the estimate (default 2500)",
            )
            cluster.add_cluster(command)
    text = "write a finished dataset in the layout of a trainer; docs/training/ has a page for each"
    export = commands.add_parser("export", help=text, description=text, allow_abbrev=False)
    export.add_argument("run", help="run folder, or a copy of its dataset/")
    export.add_argument("--to", required=True, choices=LAYOUTS, help="the layout")
    export.add_argument("--output", help="where to; by default RUN/exports/LAYOUT")
    export.add_argument("--targets", choices=("top_k", "sampled"), help="which of them, where the dataset has both")
    export.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="length of every row, for distillkit (default: the longest)"
    )
    text = "check a dataset or an export of one: checksums, shapes, ids, alignment"
    verify = commands.add_parser("verify", help=text, description=text, allow_abbrev=False)
    verify.add_argument("folder", help="run, dataset or export")
    cluster.add_commands(commands)
    for command in (export, verify):
        command.add_argument("--workers", type=_positive, help="processes (default: one for each core)")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="the result as JSON on standard output")
        command.add_argument("--verbose", action="store_true", help="log more; a full traceback on failure")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def _fail(message: str, code: int) -> int:
    print(f"stillhouse: {message}", file=sys.stderr)
    return code


def _refuse_rays_copy(key: str, location: str) -> None:
    """Raises `ConfigError` where something would be written into the copy of a working directory that Ray makes for a
    job: on each node another one, and deleted after the job."""
    local = location.removeprefix("file://")
    path = os.path.abspath(local)
    if "://" not in local and RAYS_COPY in path:
        raise ConfigError(
            f"{key}: {path} is in Ray's copy of the job's working directory, which Ray deletes (a relative path begins "
            "there); write an absolute path that all nodes see, or an object-store URL"
        )


def _run(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    _refuse_rays_copy("run_dir", config.run_dir)
    from stillhouse.pipeline.look.summary import summary
    from stillhouse.pipeline.run import driver
    from stillhouse.pipeline.run.pool import LocalPool, Pool
    from stillhouse.pipeline.run.progress import Progress
    from stillhouse.pipeline.run.ray_pool import RAYS_LINES, RayPool

    if not arguments.local and not arguments.verbose and arguments.is_process:
        console.drop_lines(RAYS_LINES)
    pool: Pool = LocalPool() if arguments.local else RayPool()
    progress = Progress()
    try:
        manifest = driver.run(config, progress, pool, retry_set_aside=arguments.retry_set_aside)
    finally:
        progress.close()
    summary(
        config,
        manifest,
        seconds=progress.seconds,
        num_made=progress.num_made,
        num_others=progress.num_others,
        generate_seconds=progress.generate_seconds,
        generate_tokens=progress.generate_tokens,
    )
    return manifest, EXIT_SET_ASIDE if manifest["set_aside"] else 0


def _status(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.look import status

    result = status.status(config)
    status.show(result)
    return result, EXIT_SET_ASIDE if result["set_aside"] else 0


def _check(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.look import check

    if arguments.address is not None:
        return cluster.check(config, arguments)
    result = check.check(config, rows=arguments.rows, tokens_per_second=arguments.tokens_per_second)
    check.show(result)
    return result, EXIT_FAILED if result["problems"] else 0


def _export(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.console import message
    from stillhouse.pipeline.dataset.export import default_output, export
    from stillhouse.pipeline.look.dataset import show_export

    kinds: dict[str | None, Any] = {None: None, "top_k": "target", "sampled": "draw"}
    output = arguments.output or default_output(arguments.run, arguments.to)
    _refuse_rays_copy("--output", output)
    manifest = export(
        arguments.run,
        arguments.to,
        output,
        kinds[arguments.targets],
        arguments.max_length,
        arguments.workers,
        message,
    )
    show_export(output, manifest)
    return manifest, 0


def _verify(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.dataset.verify import verify
    from stillhouse.pipeline.look.dataset import show_verify

    result = verify(arguments.folder, arguments.workers)
    show_verify(result)
    return result, 0 if result["ok"] else EXIT_FAILED
