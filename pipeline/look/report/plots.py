"""The plots as Vega-Lite specifications, and the library that draws them as one script.

Colours are the page's CSS variables, so that a plot follows the reader's light or dark without being drawn again.
"""

import math
from typing import Any

from stillhouse.pipeline.dataset.figures import percent

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
"""A name; nothing is fetched from there."""
CONFIG: dict[str, Any] = {
    "background": None,
    "view": {"stroke": None},
    "font": "system-ui, sans-serif",
    "axis": {
        "aria": False,
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--line)",
        "gridOpacity": 0.6,
        "labelFontSize": 11,
        "titleFontSize": 11,
    },
    "legend": {"labelColor": "var(--ink)", "titleColor": "var(--soft)", "orient": "top", "labelFontSize": 11},
}
COUNTS: dict[str, Any] = {
    "tickCount": 4,
    "tickMinStep": 1,
    "format": "~s",
    "labelOverlap": "greedy",
    "labelSeparation": 4,
}
"""An axis of rows or tokens, of which there are no halves."""
ALL, SHOWN, DROPPED = "var(--bar-all)", "var(--bar)", "var(--bar-dropped)"


def library() -> str:
    """Vega, Vega-Lite and vega-embed as a script of 0.9 MB that fetches nothing and needs no `eval`; sets
    `vegaEmbed`."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def linked(column: dict[str, Any]) -> dict[str, Any]:
    """A column's histogram; the page replaces the data set `bars` by what is chosen."""
    is_words = column["quantiles"] is None
    along: dict[str, Any] = {
        "field": "label",
        "type": "ordinal",
        "sort": None,
        "title": None,
        "axis": {"labelLimit": 120}
        if is_words
        else {
            "labelExpr": "split(datum.label, ' ')[0]",
            "labelOverlap": "greedy",
            "labelSeparation": 6,
            "labelAngle": 0,
        },
    }
    count = {"type": "quantitative", "title": None, "axis": COUNTS}
    a, b = ("y", "x") if is_words else ("x", "y")

    def layer(field: str, colour: str) -> dict[str, Any]:
        return {
            "mark": {"type": "bar", "fill": colour, "cursor": "pointer", "aria": False},
            "encoding": {a: along, b: {**count, "field": field}, "tooltip": [{"field": "note"}]},
        }

    size = {"height": 20 + 18 * len(column["labels"])} if is_words else {"height": 110}
    bars = [
        {"bin": n, "label": label, "all": rows, "shown": rows, "note": f"{label}: {rows:,} rows"}
        for n, (label, rows) in enumerate(zip(column["labels"], column["counts"], strict=True))
    ]
    return {
        **_head(f"Histogram of {column['name']}: {column['meaning']}. The same as a table below it."),
        "data": {"name": "bars", "values": bars},
        **size,
        "layer": [layer("all", ALL), layer("shown", SHOWN)],
    }


def score(curve: dict[str, Any]) -> dict[str, Any]:
    """The distribution of a score, kept and dropped rows on each other; the page fills the data set `rules`:
    {"at", "kind"}. Rows are on a square-root axis: nearly all scores lie near 0, and the few others matter."""
    bars = [
        {"from": start, "to": end, "low": low, "high": high, "what": what,
         "note": f"{start:g} to {end:g}: {rows:,} {what}"}
        for start, end, kept, dropped in curve["bars"]
        for low, high, rows, what in ((0, kept, kept, "kept"), (kept, kept + dropped, dropped, "dropped"))
        if rows
    ]  # fmt: skip
    x = {"field": "from", "type": "quantitative", "title": f"score: {curve['label']}", "scale": {"domain": [0, 1]}}
    y = {"field": "low", "type": "quantitative", "title": "rows (square root)", "scale": {"type": "sqrt"},
         "axis": COUNTS}  # fmt: skip
    colour = {
        "field": "what",
        "type": "nominal",
        "title": None,
        "scale": {"domain": ["kept", "dropped"], "range": [SHOWN, DROPPED]},
    }
    rules = {
        "data": {"name": "rules", "values": []},
        "mark": {"type": "rule", "strokeWidth": 2, "stroke": "var(--ink)", "aria": False},
        "encoding": {
            "x": {"field": "at", "type": "quantitative"},
            "strokeDash": {
                "field": "kind",
                "type": "nominal",
                "title": None,
                "scale": {"domain": ["configured", "slider"], "range": [[1, 0], [4, 3]]},
                "legend": {"symbolType": "stroke", "symbolStrokeColor": "var(--ink)"},
            },
        },
    }
    return {
        **_head(f"Distribution of {curve['column']} over the rows of {curve['stage']}, and its threshold."),
        "height": 150,
        "layer": [
            {
                "data": {"values": bars},
                "mark": {"type": "bar", "binSpacing": 0, "aria": False},
                "encoding": {"x": x, "x2": {"field": "to"}, "y": y, "y2": {"field": "high"}, "fill": colour,
                             "tooltip": [{"field": "note"}]},
            },
            rules,
        ],
    }  # fmt: skip


def bars(title: str, values: list[list[float]], x: str, y: str, *, is_mass: bool = False) -> dict[str, Any]:
    """Bars of [from, to, height]; with `is_mass` the axis shows exp(-x), as a percentage."""
    axis: dict[str, Any] = {"labelOverlap": "greedy", "labelSeparation": 8}
    axis |= {"labelExpr": "format(exp(-datum.value), '.1~p')"} if is_mass else {}

    def shown(value: float) -> str:
        return percent(math.exp(-value)) if is_mass else f"{value:g}"

    data = [
        {"from": start, "to": end, "height": height, "note": f"{shown(start)} to {shown(end)}: {height:,g}"}
        for start, end, height in values
    ]
    return {
        **_head(title),
        "height": 130,
        "data": {"values": data},
        "mark": {"type": "bar", "fill": SHOWN, "binSpacing": 0, "aria": False},
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "title": x, "scale": {"nice": False}, "axis": axis},
            "x2": {"field": "to"},
            "y": {"field": "height", "type": "quantitative", "title": y, "axis": COUNTS},
            "y2": {"datum": 0},
            "tooltip": [{"field": "note"}],
        },
    }


def _head(description: str) -> dict[str, Any]:
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
    }
