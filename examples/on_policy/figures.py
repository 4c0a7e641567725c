"""What `on_policy.py` measured, as results.json, tables and a plot."""

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.distill_student import distill

if TYPE_CHECKING:
    from examples.on_policy.on_policy import Plan

METHODS = {
    "off": "the teacher's answers, all along",
    "cold": "the teacher's answers, then its own",
    "own": "its own answers from the start",
}
MEASURES = {
    "kl": "KL",
    "top_1": "top-1",
    "task": "right next tokens of the source's answers",
    "own_kl": "reverse KL on its own answers",
}


def at(points: list[dict[str, float]], tokens: int) -> dict[str, float]:
    return next(point for point in points if point["tokens"] >= tokens)


def summarise(seeds: list[dict[str, Any]], plan: "Plan") -> dict[str, Any]:
    """Of each method and measure the interval over seeds at the end of the budget; and its difference to `off`."""
    summary: dict[str, Any] = {}
    for method in METHODS:
        ends = [at(seed[method]["points"], plan.tokens) for seed in seeds]
        offs = [at(seed["off"]["points"], plan.tokens) for seed in seeds]
        summary[method] = {m: distill.interval([end[m] for end in ends]) for m in MEASURES}
        if method != "off":
            pairs = list(zip(ends, offs, strict=True))
            summary[method]["minus_off"] = {m: distill.interval([a[m] - b[m] for a, b in pairs]) for m in MEASURES}
    pairs = [(at(s["cold"]["points"], plan.tokens), at(s["own"]["points"], plan.tokens)) for s in seeds]
    summary["own"]["minus_cold"] = {m: distill.interval([b[m] - a[m] for a, b in pairs]) for m in MEASURES}
    return summary


def results(plan: "Plan", out: Path) -> dict[str, Any]:
    folder = plan.setting.run.parent / "results"
    seeds = []
    for seed in range(plan.seeds):
        files = {method: folder / f"{seed}-{method}.json" for method in METHODS}
        if all(file.exists() for file in files.values()):
            seeds.append({"seed": seed, **{method: json.loads(file.read_text()) for method, file in files.items()}})
    keys = ("tokens", "cold_tokens", "round_prompts", "seeds")
    value = {
        "plan": {key: getattr(plan, key) for key in keys},
        "references": json.loads((folder / "references.json").read_text()),
        "summary": summarise(seeds, plan),
        "seeds": seeds,
    }
    rounded: dict[str, Any] = distill.rounded(value)
    distill.write(out, rounded)
    return rounded


def tables(result: dict[str, Any]) -> str:
    """Markdown of docs/training/on_policy.md."""

    def cell(value: dict[str, float]) -> str:
        return f"{value['mean']:.3f}" + ("" if value["half"] is None else f" ± {value['half']:.3f}")

    lines = ["| learned from | " + " | ".join(MEASURES.values()) + " |", "|---|" + "---|" * len(MEASURES)]
    for method, words in METHODS.items():
        lines.append(f"| {words} | " + " | ".join(cell(result["summary"][method][m]) for m in MEASURES) + " |")
    for of, other in (("cold", "off"), ("own", "off"), ("own", "cold")):
        row = result["summary"][of][f"minus_{other}"]
        lines.append(f"| {of} less {other} | " + " | ".join(cell(row[m]) for m in MEASURES) + " |")
    lines += ["", "| KL after so many tokens | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    budget = result["plan"]["tokens"]
    for quarter in (1, 2, 3, 4):
        cells = []
        for method in METHODS:
            of_seeds = [seed[method]["points"] for seed in result["seeds"]]
            found = [p["kl"] for points in of_seeds for p in points if round(4 * p["tokens"] / budget) == quarter]
            cells.append(f"{statistics.fmean(found):.2f}" if found else "")
        lines.append(f"| {quarter * budget // 4:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


COLOURS = {"off": "#000000", "cold": "#0072b2", "own": "#d55e00"}


def plot(result: dict[str, Any], file: Path) -> None:
    """KL on the teacher's answers against tokens (a thin line for each seed, a thick one for their mean), and that on
    the student's own, round by round."""
    import altair

    rows = []
    for method in METHODS:
        for seed in result["seeds"]:
            points = seed[method]["points"]
            if method == "cold":
                points = [at(seed["off"]["points"], result["plan"]["cold_tokens"]), *points]
            kinds = {"kl": points, "own_kl": seed[method]["rounds"]}
            for measure, values in kinds.items():
                rows += [
                    {"learned from": METHODS[method], "seed": seed["seed"], "measure": measure, "number": number}
                    | {"tokens": value["tokens"], "nats": value[measure]}
                    for number, value in enumerate(values)
                ]
    colours = altair.Scale(domain=[*METHODS.values()], range=[*COLOURS.values()])
    colour = altair.Color("learned from:N", scale=colours, legend=altair.Legend(orient="bottom", labelLimit=400))
    charts = []
    for measure, title in (
        ("kl", "KL(teacher || student), held out, nats"),
        ("own_kl", "KL(student || teacher) on its fresh answers, nats"),
    ):
        of_measure = altair.InlineData(values=[row for row in rows if row["measure"] == measure])
        y = altair.Y("nats:Q", title=title, scale=altair.Scale(type="log"))
        base = altair.Chart(of_measure, width=320, height=260).encode(color=colour)
        x = altair.X("tokens:Q", title="supervised tokens")
        thin = base.mark_line(size=0.6, opacity=0.6).encode(x=x, y=y, detail="seed:N")
        means = base.transform_aggregate(tokens="mean(tokens)", nats="mean(nats)", groupby=["learned from", "number"])
        mean = means.mark_line(point=True).encode(x=x, y=y)
        charts.append(thin + mean)
    altair.hconcat(*charts).save(str(file))
