"""What filters took, for people."""

from typing import Any

from rich.console import Console
from rich.text import Text

from stillhouse.pipeline.look.filters.entry import told
from stillhouse.pipeline.look.inspect.show import count, grid, heading, named


def show_filters(console: Console, found: list[dict[str, Any]]) -> None:
    """A line for each filter; then one for each setting, with the value that was used in bold among others."""
    heading(console, "filters")
    table = grid("stage", "filter", ">read", ">found", ">dropped", ">seconds", ">rows/s")
    for one in found:
        rate = one["rows_per_second"]
        numbers = [
            count(one["read"]),
            count(one["found"]),
            "-" if one["reason"] is None else count(one["dropped"]),
            "-" if one["seconds"] is None else f"{one['seconds']:.2f}",
            "-" if rate is None else f"{rate:,.0f}",
        ]
        table.add_row(named(one["stage"]), named(one["title"]), *numbers)
    console.print(table)
    heading(console, "rows that a filter would take with another setting: value → rows, this run's in bold")
    settings = grid("", "")
    settings.show_header = False
    for one in found:
        for setting in one["settings"]:
            settings.add_row(named(f"{one['stage']}: {setting['key']}"), _values(setting))
    console.print(settings)


def _values(setting: dict[str, Any]) -> Text:
    text = Text()
    for number, (value, rows) in enumerate(setting["drops"]):
        style = "bold" if value == setting["value"] else ""
        text.append(" · " if number else "").append(f"{told(value)} → {rows:,}", style)
    if not setting["drops"]:
        text.append(told(setting["value"]), "bold")
    if setting["note"]:
        text.append(f" ({setting['note']})", "dim")
    return text
