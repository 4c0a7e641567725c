"""The tokens of a conversation in a terminal: each coloured by its log-probability, the least likely with what the
teacher would rather have written."""

import math
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stillhouse.pipeline.look.inspect.visible import visible

MAX_TOKENS = 30
"""Rows of the table; --json has all."""
NUM_ALTERNATIVES = 3
"""Of each token in the table."""
_STYLES = ("green", "cyan", "bright_yellow", "yellow", "magenta", "bold red")
SHARES = (0.9, 0.6, 0.35, 0.15, 0.02)
"""Probabilities at and above which a token has each of the styles but the last; conversation.js has the same."""
BANDS = ("≥ 90 %", "60 – 90", "35 – 60", "15 – 35", "2 – 15", "< 2 %")
"""The same in words: each band begins where the next one ends."""


def show_tokens(console: Console, tokens: dict[str, Any]) -> None:
    """Nothing where the conversation has none."""
    if not tokens["ids"]:
        return
    text, s = Text(), 0
    for token, supervised in zip(tokens["texts"], tokens["supervised"], strict=True):
        colour = "dim"
        if supervised:
            colour = style(tokens["logprobs"][s]) if s < len(tokens["logprobs"]) else ""
            s += 1
        # A newline is seen, and still ends the line.
        text.append(visible(token, one_line=True) + ("\n" if token.endswith("\n") else ""), colour)
    console.print(text)
    legend = Text("dim: read by the teacher; written with a probability of ")
    for name, colour in zip(BANDS, _STYLES, strict=True):
        legend.append(f"{name} ", colour)
    console.print(legend)
    console.print()
    if tokens["logprobs"]:
        console.print(_table(tokens))


def style(logprob: float | None) -> str:
    value = 0.0 if logprob is None else math.exp(logprob)
    return next((colour for share, colour in zip(SHARES, _STYLES, strict=False) if value >= share), _STYLES[-1])


def _table(tokens: dict[str, Any]) -> Table:
    written = [
        (i, text)
        for i, (text, supervised) in enumerate(zip(tokens["texts"], tokens["supervised"], strict=True))
        if supervised
    ]
    logprobs = [-math.inf if logprob is None else logprob for logprob in tokens["logprobs"]]
    surprising = sorted(range(len(written)), key=logprobs.__getitem__)
    chosen = surprising[:MAX_TOKENS]
    few = len(chosen) < len(written)
    which = f"{MAX_TOKENS} of {len(written):,} tokens" if few else f"its {len(written):,} tokens"
    title = f"{which}, least likely first; log-probabilities in nats (1 nat: a factor of 2.7), · is a space"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("place", justify="right")
    table.add_column("token", overflow="fold")
    table.add_column("logprob", justify="right")
    has_targets = tokens["ranks"] is not None
    if has_targets:
        table.add_column("rank", justify="right")
    if tokens["tails"] is not None:
        table.add_column("tail", justify="right")
    if "entropies" in tokens:
        table.add_column("entropy", justify="right")
    if has_targets:
        table.add_column("most probable", overflow="fold")
    if tokens["draws"] is not None:
        table.add_column("drawn most", overflow="fold")
    for s in chosen:
        place, text = written[s]
        logprob = tokens["logprobs"][s]
        cells: list[str | Text] = [str(place), Text(_spaced(text), style(logprob)), _number(logprob)]
        if has_targets:
            rank = tokens["ranks"][s]
            cells.append("none" if rank is None else str(rank + 1))
        if tokens["tails"] is not None:
            cells.append(_number(tokens["tails"][s]))
        if "entropies" in tokens:
            cells.append(_number(tokens["entropies"][s]))
        if has_targets:
            cells.append(Text(_listed(tokens["alternatives"][s][:NUM_ALTERNATIVES], lambda value: f"{value:.2f}")))
        if tokens["draws"] is not None:
            cells.append(Text(_listed(tokens["draws"][s][:NUM_ALTERNATIVES], lambda value: f"{value}x")))
        table.add_row(*cells)
    return table


def _spaced(text: str) -> str:
    """A token's own spaces are seen."""
    return visible(text, one_line=True).replace(" ", "·")


def _listed(alternatives: list[Any], form: Any) -> str:
    return "  ".join(f"{_spaced(text)} {form(value)}" for _, text, value in alternatives)


def _number(value: float | None) -> str:
    return "-inf" if value is None else f"{value:.2f}"
