"""What the command line refuses, in one sentence and with exit code 2."""

import argparse
from collections.abc import Iterator

import pytest

from stillhouse.pipeline.arguments import parser

FREE = {"--set", "--until", "--stage", "--dropped", "--row", "--env"}
"""Options with a value that is no path, model or address; commands themselves refuse what they do not know."""


def options() -> Iterator[tuple[str, argparse.Action]]:
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        yield from ((name, action) for action in command._actions if action.nargs is None and not action.choices)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as raised:
        parser().parse_args(argv)
    assert raised.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "argv",
    [
        ["inspect", ""],
        ["inspect", "runs/x", "--against", ""],
        ["export", "", "--to", "axolotl"],
        ["export", "runs/x", "--to", "axolotl", "--output", " "],
        ["join", ""],
        ["purge", "", "--ids", "ids"],
        ["report", "file://"],
        ["verify", "runs/x", "--dataset", ""],
        ["view", ""],
        ["status", ""],
        ["submit", "c.yaml", "--working-dir", ""],
        ["stop", ""],
    ],
)
def test_an_empty_path_is_not_the_current_folder(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(argv, capsys).endswith(": is empty; write what it names")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many", ""])
def test_a_number_that_can_be_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [(name, action) for name, action in options() if isinstance(action.default, int | float)]
    assert {action.dest for _, action in numbers} == {"rows", "tokens_per_second", "probe_seconds", "samples", "seed"}
    for name, action in numbers:
        if (action.dest, text) != ("seed", "0"):
            assert f"{text!r} is not a" in refused([name, "x", f"{action.option_strings[0]}={text}"], capsys)
    assert "is not an integer >= 1" in refused(["export", "x", "--to", "distillkit", f"--max-length={text}"], capsys)


def test_every_argument_that_may_be_a_path_is_checked() -> None:
    unchecked = {(name, (*action.option_strings, action.dest)[0]) for name, action in options() if action.type is None}
    assert {option for _, option in unchecked} <= FREE
