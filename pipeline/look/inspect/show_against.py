"""Two runs side by side, for people, on standard error."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stillhouse.pipeline.dataset.figures import binned_nats, percent
from stillhouse.pipeline.look.inspect.show import (
    count,
    fidelity_quantiles,
    grid,
    heading,
    messages,
    named,
    setting,
    show_notes,
    size,
    title,
)
from stillhouse.pipeline.look.inspect.visible import visible
from stillhouse.pipeline.look.quantiles import shown
from stillhouse.pipeline.look.quantiles import title as quantile_title

QUANTILES = ("p5", "p25", "p50", "p75", "p95")


def show_against(console: Console, found: dict[str, Any]) -> None:
    compared = found["against"]
    pair = (found, compared["facts"])
    for name, facts in zip("AB", pair, strict=True):
        console.print(Text(visible(f"{name}  {title(facts)}", one_line=True), "bold"))
        console.print(named(f"   {size(facts)}"))
        show_notes(console, facts)
    heading(console, "settings that differ")
    if compared["settings"] is None:
        console.print("not known: one of them has no configuration")
    elif not compared["settings"]:
        console.print("none")
    else:
        table = grid("", "", "")
        table.show_header = False
        for key, values in compared["settings"].items():
            for run, value in zip("AB", values, strict=True):
                table.add_row(named(key if run == "A" else ""), run, setting(value))
        console.print(table)
    heading(console, "rows that differ")
    console.print(_rows(compared["stages"]) if compared["stages"] else "none")
    _show_distributions(console, pair)
    if compared["prompts"] is not None:
        told = compared["prompts"]
        heading(
            console,
            f"prompts: {told['both']:,} in both, {told['only_here']:,} in A alone, {told['only_there']:,} in B alone",
        )
    for answer in compared["answers"]:
        heading(console, answer["prompt_id"])
        a, b = (row["messages"] for row in answer["conversations"])
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        console.print(messages(a[:same]))
        console.print(_side_by_side(a[same:], b[same:]))
    if compared["prompts"] is not None and compared["prompts"]["both"] and not compared["answers"]:
        console.print(Text("see how both answered: --samples 3", "dim"))


def _rows(stages: dict[str, Any]) -> Table:
    table = grid("stage", "", ">A", ">B")
    for stage, compared in stages.items():
        differing = {"rows in": compared["rows_in"], "rows out": compared["rows_out"], **compared["dropped"]}
        for what, (a, b) in differing.items():
            if a != b:
                table.add_row(named(stage), named(what), count(a), count(b))
                stage = ""
    return table


def _show_distributions(console: Console, pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    table = grid("", "", *(f">{quantile_title(q)}" for q in QUANTILES))
    rows = [{**facts["numbers"], **fidelity_quantiles(facts["fidelity"] or {})} for facts in pair]
    for name in dict.fromkeys([*rows[0], *rows[1]]):
        cells = [_cells(name, row[name]) if row.get(name, {}).keys() >= {*QUANTILES} else None for row in rows]
        if cells[0] != cells[1]:
            for run, values in zip("AB", cells, strict=True):
                table.add_row(named(name if run == "A" else ""), run, *(values or ["-"] * len(QUANTILES)))
    heading(console, "distributions that differ")
    console.print(table if table.row_count else "none")


def _cells(name: str, values: dict[str, Any]) -> list[str]:
    """Columns have a count, and few values few quantiles; what was counted over tokens has neither."""
    if "count" in values:
        return [count(values[q]) if q in shown(values["count"]) else "" for q in QUANTILES]
    told = percent if name.startswith("mass") else binned_nats
    return [told(values[q]) for q in QUANTILES]


def _side_by_side(*answers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    for name in "AB":
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(messages(answer) for answer in answers))
    return table
