"""The command `stillhouse`; `pipeline/arguments.py` says what it can be asked for.

Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 3 finished with shards set aside, 130 interrupted, 141 done
but nobody has read the whole result.
Standard output holds the result as JSON with `--json`, and nothing else; what people read goes to standard error.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from stillhouse.pipeline import console
from stillhouse.pipeline.arguments import parser
from stillhouse.pipeline.cluster import RAYS_COPY
from stillhouse.pipeline.cluster import arguments as cluster
from stillhouse.schemas.arrow import keep_pandas_out
from stillhouse.schemas.config import Config, ConfigError, load, sampled

Command = Callable[..., tuple[dict[str, Any], int]]
EXIT_FAILED, EXIT_USAGE, EXIT_SET_ASIDE, EXIT_INTERRUPTED, EXIT_UNREAD = 1, 2, 3, 130, 141


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
    arguments = parser().parse_args(argv)
    arguments.is_process = is_process
    results = results or sys.stdout
    # Heavy imports wait until the configuration is valid: a typo answers at once.
    config = None
    try:
        if "config" in arguments:
            config = load(arguments.config, arguments.set)
            if getattr(arguments, "sample", None) is not None:
                config = sampled(config, arguments.sample)
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, stream=sys.stderr)
    # A cluster ends a job by SIGTERM; it means what Ctrl-C means.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commands: dict[str, Command] = {
        "check": _check,
        "run": _run,
        "status": _status,
        "inspect": _inspect,
        "export": _export,
        "join": _join,
        "purge": _purge,
        "verify": _verify,
        "report": _report,
        "view": _view,
        **cluster.COMMANDS,
    }
    command = commands[arguments.command]
    if is_process:
        keep_pandas_out()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result, code = command(arguments) if config is None else command(config, arguments)
        return _write(result, results, code) if arguments.json else code
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on with what is missing", EXIT_INTERRUPTED)
    except Exception as error:  # of any type, because Python would print its message
        from stillhouse.pipeline.errors import safe_message

        if not arguments.verbose:
            return _fail(f"{safe_message(error)} (--verbose shows where)", EXIT_FAILED)
        # Lines of code only: the message of an error that is not ours can quote a prompt.
        console.message("".join(traceback.format_tb(error.__traceback__)).rstrip("\n"))
        return _fail(safe_message(error), EXIT_FAILED)


def _write(result: dict[str, Any], results: TextIO, code: int) -> int:
    """Writes the result. A reader that wants no more of it (`| head`) ends this quietly, as it ends other commands."""
    try:
        print(json.dumps(result), file=results, flush=True)
    except BrokenPipeError:
        console.discard(results)
        return EXIT_UNREAD
    return code


def _fail(message: str, code: int) -> int:
    console.message(f"stillhouse: {message}")
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
    from stillhouse.pipeline.look.summary import stopped, summary
    from stillhouse.pipeline.run import driver
    from stillhouse.pipeline.run.metrics import Metrics
    from stillhouse.pipeline.run.pool import LocalPool, Pool
    from stillhouse.pipeline.run.progress import Progress, Reports
    from stillhouse.pipeline.run.ray_pool import RAYS_LINES, RayPool
    from stillhouse.pipeline.run.timeline import Timeline

    if not arguments.local and not arguments.verbose and arguments.is_process:
        console.drop_lines(RAYS_LINES)
    pool: Pool = LocalPool() if arguments.local else RayPool()
    if arguments.sample is not None:
        console.message(f"sample: {arguments.sample:,} rows of the whole source, in {config.run_dir}")
    progress = Progress()
    timeline = Timeline(config.run_dir, progress)
    metrics = [] if arguments.local else [Metrics(config.run_dir, progress)]
    try:
        report = Reports(progress, timeline, *metrics)
        manifest = driver.run(config, report, pool, retry_set_aside=arguments.retry_set_aside, until=arguments.until)
    finally:
        progress.close()
        timeline.close()
    code = EXIT_SET_ASIDE if manifest["set_aside"] else 0
    if "until" in manifest:
        stopped(config, manifest, progress.seconds, _run_command(arguments))
        return manifest, code
    summary(
        config,
        manifest,
        seconds=progress.seconds,
        num_made=progress.num_made,
        num_others=progress.num_others,
        generate_seconds=progress.generate_seconds,
        generate_tokens=progress.generate_tokens,
    )
    if not arguments.no_report:
        _report_of_run(config, manifest)
    if arguments.sample is not None:
        arguments.sample = None
        console.message(f"whole:    {_run_command(arguments)}")
    return manifest, code


def _run_command(arguments: argparse.Namespace) -> str:
    """The command of a run, without --until."""
    words = ["stillhouse", "run", arguments.config]
    words += [word for value in arguments.set for word in ("--set", value)]
    words += ["--local"] * arguments.local
    words += ["--sample", str(arguments.sample)] if arguments.sample is not None else []
    return shlex.join(words)


def _report_of_run(config: Config, manifest: dict[str, Any]) -> None:
    """Writes the report of a finished run, which is not to fail for it."""
    from stillhouse.pipeline.errors import safe_message
    from stillhouse.pipeline.look import report

    try:
        console.message(f"report:   {report.write_after_run(config.run_dir, manifest)}")
    except Exception as error:  # of any kind: the dataset is there
        again = shlex.join(["stillhouse", "report", config.run_dir])
        console.message(f"report:   not written ({safe_message(error)}); `{again}` tries again")


def _status(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.look import status

    result = status.status(config)
    status.show(result)
    return result, EXIT_SET_ASIDE if result["set_aside"] else 0


def _inspect(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.look.inspect.command import Asked, inspect
    from stillhouse.pipeline.look.inspect.show import show

    names = ("stage", "samples", "seed", "dropped", "row", "tokenizer", "against", "filters")
    result = inspect(arguments.path, Asked(**{name: getattr(arguments, name) for name in names}))
    if not arguments.json:
        show(result)
    return result, 0


def _check(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.look import check

    if arguments.address is not None:
        return cluster.check(config, arguments)
    cluster.refuse_travels(arguments)
    if arguments.probe and config.task == "score":
        raise ConfigError(
            "--probe: tries how fast a teacher writes, and with task: score it writes nothing; leave it out, and try "
            "`run --sample`"
        )
    if arguments.probe and config.teachers is not None:
        raise ConfigError(
            "--probe: starts one engine, and this configuration has several teachers; try each under `teacher` alone"
        )
    result, ingested = check.look(config, arguments.rows, arguments.tokens_per_second)
    check.show(result)
    if arguments.probe and not result["problems"]:
        from stillhouse.pipeline.look import probe

        estimate = result.get("estimate")
        result["probe"] = probe.probe(config, ingested, estimate, arguments.probe_seconds)
        probe.show(result["probe"], estimate)
    return result, EXIT_FAILED if result["problems"] else 0


def _export(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.console import message
    from stillhouse.pipeline.dataset import withhold
    from stillhouse.pipeline.dataset.export import default_output, export
    from stillhouse.pipeline.look.dataset import show_export, show_withheld

    if arguments.no_prompts:
        if arguments.targets is not None or arguments.max_length is not None:
            raise ConfigError("--targets, --max-length: mean nothing with --no-prompts, which keeps all columns")
        output = arguments.output or default_output(arguments.run, withhold.LAYOUT)
        _refuse_rays_copy("--output", output)
        manifest = withhold.withhold(arguments.run, output, arguments.workers, message)
        show_withheld(output, manifest)
        return manifest, 0
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


def _join(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.console import message
    from stillhouse.pipeline.dataset.join import default_output, join

    output = arguments.output or default_output(arguments.folder)
    _refuse_rays_copy("--output", output)
    manifest = join(arguments.folder, output, arguments.set, message)
    message(f"joined: {manifest['rows']:,} conversations with their prompts in {output}")
    return manifest, 0


def _purge(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.look.purge import show_purge
    from stillhouse.pipeline.run.purge import purge, read_ids

    result = purge(arguments.run, read_ids(arguments.ids), console.message)
    show_purge(arguments.run, result)
    return result, 0


def _verify(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.dataset.verify import verify
    from stillhouse.pipeline.look.dataset import show_verify

    result = verify(arguments.folder, arguments.workers, arguments.dataset, arguments.teacher)
    show_verify(result)
    return result, 0 if result["ok"] else EXIT_FAILED


def _report(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.look import report

    _refuse_rays_copy("--output" if arguments.output else "report", arguments.output or arguments.run)
    if arguments.no_text and arguments.tokenizer is not None:
        raise ConfigError("--tokenizer: means nothing with --no-text, which shows no tokens")
    with_text = not arguments.no_text
    result = report.write(arguments.run, arguments.output, with_text=with_text, tokenizer=arguments.tokenizer)
    console.message(f"report: {result['report']} ({result['bytes'] / 1e6:.1f} MB)")
    return result, 0


def _view(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from stillhouse.pipeline.look.view.serve import serve

    return serve(arguments.path, arguments.port, arguments.tokenizer, may_open_browser=not arguments.no_browser), 0
