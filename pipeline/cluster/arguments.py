"""The commands about clusters as arguments; `commands` does what they ask, and is imported when one is."""

import argparse
import contextlib
import math
from collections.abc import Callable
from typing import Any

from stillhouse.schemas.config import Config, ConfigError

Result = tuple[dict[str, Any], int]
FROM_RAY = "RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
TRAVELS: dict[str, Any] = {"working_dir": ".", "runtime_env": "image", "env": []}
"""What is said of a job alone, where nobody says it."""


def add_commands(commands: Any) -> None:
    """`submit`, `jobs`, `logs` and `stop`, to argparse's subparsers."""
    text = "run a configuration as a job of a Ray cluster, after a look at the cluster, and follow it"
    submit = commands.add_parser("submit", help=text, description=text, allow_abbrev=False)
    submit.add_argument("config", type=named, help="YAML file, in the folder that travels")
    submit.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override")
    add_cluster(submit)
    submit.add_argument("--rows", type=positive, default=1000, help="source rows to look at (default 1000)")
    submit.add_argument(
        "--tokens-per-second",
        type=positive_number,
        default=2500.0,
        help="of one replica, for the estimate (default 2500)",
    )
    submit.add_argument("--retry-set-aside", action="store_true", help="try shards again that failed too often")
    submit.add_argument("--until", metavar="STAGE", help="stop after this stage; the same command without it goes on")
    submit.add_argument(
        "--sample",
        type=positive,
        metavar="N",
        help="submit a preview: all stages on N rows drawn from the whole source, in RUN_DIR-sample-N",
    )
    submit.add_argument("--no-preflight", action="store_true", help="do not look at the cluster first")
    submit.add_argument("--detach", action="store_true", help="do not follow the job")
    text = "list the jobs that were submitted"
    jobs = commands.add_parser("jobs", help=text, description=text, allow_abbrev=False)
    text = "what a job has said; while it runs, follow it"
    logs = commands.add_parser("logs", help=text, description=text, allow_abbrev=False)
    text = "end a job; finished shards stay, and the next submit goes on with what is missing"
    stop = commands.add_parser("stop", help=text, description=text, allow_abbrev=False)
    for command in (logs, stop):
        command.add_argument("job", type=named, help="run folder (its newest job), or a job's id")
    for command in (jobs, logs, stop):
        _add_address(command)


def positive(text: str) -> int:
    """An argument that is a count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def positive_number(text: str) -> float:
    """An argument that is a speed or a time."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number > 0")


def named(text: str) -> str:
    """An argument that names something: a path, a model, an address. An empty path would mean the current folder."""
    if not text.removeprefix("file://").strip():
        raise argparse.ArgumentTypeError("is empty; write what it names")
    return text


def add_cluster(command: argparse.ArgumentParser, address: str = FROM_RAY) -> None:
    """Where a job goes, and what goes with it. `address` says what is asked without --address."""
    _add_address(command, address)
    command.add_argument(
        "--working-dir",
        type=named,
        default=TRAVELS["working_dir"],
        metavar="FOLDER",
        help="what travels with the job (default: this folder)",
    )
    command.add_argument(
        "--runtime-env",
        type=named,
        default=TRAVELS["runtime_env"],
        metavar="image|cpu|gpu|FILE",
        help="the nodes' packages: their image's (default), or made from requirements/cpu.txt, gpu.txt or another lock",
    )
    command.add_argument(
        "--env",
        action="append",
        default=TRAVELS["env"],
        metavar="NAME",
        help="hand this variable on; Ray's dashboard shows it",
    )


def _add_address(command: argparse.ArgumentParser, default: str = FROM_RAY) -> None:
    command.add_argument(
        "--address",
        type=named,
        help=f"the head's dashboard, http://HEAD:8265 (default: {default})",
    )


def check(config: Config, arguments: argparse.Namespace) -> Result:
    if arguments.probe:
        raise ConfigError("--probe: measures this machine, and --address asks a cluster; leave one of them out")
    from stillhouse.pipeline.cluster import commands

    return commands.check(config, arguments)


def refuse_travels(arguments: argparse.Namespace) -> None:
    """Raises `ConfigError` where something is said of a job, and there is none."""
    for name, default in TRAVELS.items():
        if getattr(arguments, name) != default:
            raise ConfigError(
                f"--{name.replace('_', '-')}: is said of a cluster's job, and check without --address looks at this "
                "machine; give --address, or leave it out"
            )


def _submit(config: Config, arguments: argparse.Namespace) -> Result:
    from stillhouse.pipeline.cluster import commands

    return commands.submit(config, arguments)


def _jobs(arguments: argparse.Namespace) -> Result:
    from stillhouse.pipeline.cluster import commands

    return commands.jobs(arguments)


def _logs(arguments: argparse.Namespace) -> Result:
    from stillhouse.pipeline.cluster import commands

    return commands.logs(arguments)


def _stop(arguments: argparse.Namespace) -> Result:
    from stillhouse.pipeline.cluster import commands

    return commands.stop(arguments)


COMMANDS: dict[str, Callable[..., Result]] = {"submit": _submit, "jobs": _jobs, "logs": _logs, "stop": _stop}
