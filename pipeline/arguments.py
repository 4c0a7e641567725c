"""What the command `stillhouse` can be asked for."""

import argparse

from stillhouse.pipeline.cluster import arguments as cluster
from stillhouse.pipeline.cluster.arguments import named, positive, positive_number
from stillhouse.stages.layouts import LAYOUTS


def parser() -> argparse.ArgumentParser:
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
        command.add_argument("config", type=named, help="YAML file")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. sampling.seed=1"
        )
        if name == "run":
            command.add_argument(
                "--retry-set-aside", action="store_true", help="try shards again that failed too often"
            )
            command.add_argument("--no-report", action="store_true", help="write no report.html")
            command.add_argument(
                "--local", action="store_true", help="on this machine alone, in processes and without Ray"
            )
            command.add_argument(
                "--until", metavar="STAGE", help="stop after this stage; the same command without it goes on"
            )
        if name != "check":
            command.add_argument(
                "--sample",
                type=positive,
                metavar="N",
                help="of a preview: all stages on N rows drawn from the whole source, in RUN_DIR-sample-N",
            )
        if name == "check":
            command.add_argument("--rows", type=positive, default=1000, help="source rows to look at (default 1000)")
            command.add_argument(
                "--tokens-per-second",
                type=positive_number,
                default=2500.0,
                help="of one replica, for the estimate (default 2500)",
            )
            cluster.add_cluster(command, "none: this machine is looked at")
            command.add_argument(
                "--probe",
                action="store_true",
                help="start the teacher's engine on this machine and measure speed, lengths, bytes and memory",
            )
            command.add_argument(
                "--probe-seconds",
                type=positive_number,
                default=60.0,
                metavar="S",
                help="for each engine that is tried, its start not included (default 60)",
            )
    text = "write a finished dataset in the layout of a trainer; docs/training/ has a page for each"
    export = commands.add_parser("export", help=text, description=text, allow_abbrev=False)
    export.add_argument("run", type=named, help="run folder, or a copy of its dataset/")
    kinds = export.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--to", choices=LAYOUTS, help="the layout")
    kinds.add_argument(
        "--no-prompts", action="store_true", help="the dataset itself with its prompts withheld, to be passed on"
    )
    export.add_argument(
        "--output", type=named, help="where to; by default RUN/exports/LAYOUT, or RUN/exports/no-prompts"
    )
    export.add_argument("--targets", choices=("top_k", "sampled"), help="which of them, where the dataset has both")
    export.add_argument(
        "--max-length",
        type=positive,
        metavar="TOKENS",
        help="length of every row, for distillkit (default: the longest)",
    )
    text = "put the prompts back into a dataset that was exported with --no-prompts, from the source that it names"
    join = commands.add_parser("join", help=text, description=text, allow_abbrev=False)
    join.add_argument("folder", type=named, help="such an export")
    join.add_argument("--output", type=named, help="where to; by default FOLDER-joined")
    join.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="where the source or the teacher's tokenizer is here, e.g. source.path=…, teacher.model=…",
    )
    text = "delete prompts, and all that was made of them, from every file of a run folder"
    purge = commands.add_parser("purge", help=text, description=text, allow_abbrev=False)
    purge.add_argument("run", type=named, help="run folder; no run may be under way in it")
    purge.add_argument("--ids", type=named, required=True, metavar="FILE", help="ids of prompts or samples, one a line")
    text = "check a dataset or an export of one, to the last token: files, ids, text, probabilities, alignment"
    verify = commands.add_parser("verify", help=text, description=text, allow_abbrev=False)
    verify.add_argument("folder", type=named, help="run, dataset or export")
    verify.add_argument(
        "--dataset",
        type=named,
        metavar="RUN",
        help="what an export was made from (default: the run in whose exports/ it is)",
    )
    verify.add_argument(
        "--teacher",
        type=named,
        metavar="FOLDER",
        help="the teacher's tokenizer: folder or hub name (default: where the run had it)",
    )
    text = "write what a finished run came to as one page for a browser; run does so at its end"
    report = commands.add_parser("report", help=text, description=text, allow_abbrev=False)
    report.add_argument("run", type=named, help="run folder, or a copy of its dataset/")
    report.add_argument("--output", type=named, help="the file to write; by default RUN/report.html")
    report.add_argument("--no-text", action="store_true", help="no prompts, answers or tokens: may be passed on")
    report.add_argument(
        "--tokenizer", type=named, metavar="MODEL", help="folder or hub id, where the teacher is not found"
    )
    text = "look at a run at any stage, a dataset, an export or one file: counts, distributions, rows"
    inspect = commands.add_parser("inspect", help=text, description=text, allow_abbrev=False)
    inspect.add_argument("path", type=named, help="run, stage, dataset, export or file of one")
    inspect.add_argument("--stage", help="whose rows to look at (default: the last that has some)")
    inspect.add_argument("--samples", type=positive, default=0, metavar="N", help="show N rows, drawn by --seed")
    inspect.add_argument("--seed", type=_seed, default=0, help="of the draw (default 0)")
    inspect.add_argument("--dropped", metavar="REASON", help="show rows that were dropped for it (3, or --samples N)")
    inspect.add_argument("--row", metavar="ID", help="walk a prompt or sample through every stage, token by token")
    inspect.add_argument(
        "--tokenizer", type=named, metavar="MODEL", help="folder or hub id, where the teacher is not found"
    )
    inspect.add_argument("--filters", action="store_true", help="what each filter took, and would with other settings")
    inspect.add_argument(
        "--against", type=named, metavar="OTHER", help="compare with another run or dataset; --samples N answers"
    )
    text = "look at rows in a browser: a page for this machine alone, over the files as they are"
    view = commands.add_parser("view", help=text, description=text, allow_abbrev=False)
    view.add_argument("path", type=named, help="run, stage's folder, dataset, export or one shard")
    view.add_argument("--port", type=positive, help="of 127.0.0.1 (default: 8427, or a free one)")
    view.add_argument("--no-browser", action="store_true", help="only print the address, also on a desktop")
    view.add_argument(
        "--tokenizer", type=named, metavar="MODEL", help="folder or hub id of it (default: the run's teacher)"
    )
    cluster.add_commands(commands)
    for command in (export, verify):
        command.add_argument("--workers", type=positive, help="processes (default: one for each core)")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="the result as JSON on standard output")
        command.add_argument("--verbose", action="store_true", help="log more; a full traceback on failure")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)
