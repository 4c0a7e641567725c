"""What `inspect` found, for people, on standard error."""

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from stillhouse.pipeline import console as lines
from stillhouse.pipeline.dataset.figures import BIN, binned_nats, percent
from stillhouse.pipeline.dataset.teachers import called
from stillhouse.pipeline.look.inspect.heat import show_tokens
from stillhouse.pipeline.look.inspect.visible import visible
from stillhouse.pipeline.look.quantiles import QUANTILES, shown
from stillhouse.pipeline.look.quantiles import title as quantile_title
from stillhouse.pipeline.look.reasons import decided_by, words

ROLES = {"user": "bold blue", "assistant": "bold green", "system": "bold yellow"}
UNUSED = {
    "targets.num_draws": ("top_k",),
    "targets.draws_from": ("top_k",),
    "targets.top_p": ("sampled",),
    "targets.precision": ("sampled",),
}
"""Settings that mean nothing with some values of targets.method."""
ASKED = {"samples", "dropped", "row", "filters"}
MAX_SETTING = 60
"""Characters of a value; --json has all."""


def show(found: dict[str, Any]) -> None:
    console = lines.rich()
    if "against" in found:
        from stillhouse.pipeline.look.inspect.show_against import show_against

        show_against(console, found)
        return
    if ASKED & found.keys():  # what was asked for comes alone
        console.print(Text(visible(title(found), one_line=True), "bold"))
    else:
        show_facts(console, found)
    show_notes(console, found)
    for number, row in enumerate(found.get("samples", []), 1):
        heading(console, f"row {number}")
        show_conversation(console, row)
    for row in found.get("dropped", []):
        _show_dropped(console, row)
    if found.get("dropped") == []:
        console.print("no row was dropped for this reason")
    if "row" in found:
        _show_walk(console, found["row"])
    if "filters" in found:
        from stillhouse.pipeline.look.inspect.show_filters import show_filters

        show_filters(console, found["filters"])
    if not ASKED & found.keys() and found["rows"]:
        console.print(
            Text("see rows: --samples 3, --dropped REASON, --row ID; what filters took: --filters; all: --json", "dim")
        )


def heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(visible(text, one_line=True), "bold"))


def grid(*columns: str) -> Table:
    """A table without lines; columns whose names begin with > are numbers, and are never cut."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        is_number = name.startswith(">")
        table.add_column(
            name.removeprefix(">"), justify="right" if is_number else "left", overflow="fold", no_wrap=is_number
        )
    return table


def named(value: Any) -> Text:
    """Anybody's name in a cell."""
    return Text(visible(value, one_line=True))


def count(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.0f} kB"


def title(found: dict[str, Any]) -> str:
    teacher = called(found) if "teachers" in found else (found["teacher"] or {}).get("model")
    what = {"run": f"{found['state']} run", "export": f"export for {found['layout']}"}.get(found["kind"], found["kind"])
    if found["state"] == "unfinished" and found["kind"] != "run":
        what += " of an unfinished run"
    teacher = teacher if "teachers" in found else str(teacher or "").rstrip("/").rpartition("/")[2]
    by = f", teacher{'s' if 'teachers' in found else ''} {teacher}" if teacher else ""
    return f"{found['path']}: {what}{by}"


def size(found: dict[str, Any]) -> str:
    tokens = found["target_tokens"]
    written = f", {tokens:,} supervised tokens" if tokens else ""
    each = f" ({found['bytes'] / tokens:,.0f} bytes per token)" if tokens else ""
    rows = "" if found["stage"] is None else f"{found['rows']:,} rows in {found['stage']}"
    return f"{rows}{written}, {megabytes(found['bytes'])}{each}"


def show_facts(console: Console, found: dict[str, Any]) -> None:
    console.print(Text(visible(title(found), one_line=True), "bold"))
    if found["stage"] is not None:
        console.print(named(size(found)))
    console.print()
    console.print(_funnel(found["stages"], found["settings"] or {}))
    if found["numbers"]:
        heading(console, f"rows in {found['stage']}")
        console.print(quantiles(found["numbers"]))
        _show_values(console, found["values"])
    if found["fidelity"] and found["fidelity"]["tokens"]:
        _show_fidelity(console, found)
    if found["settings"]:
        heading(console, "settings")
        console.print(_settings(found["settings"]))


def show_notes(console: Console, found: dict[str, Any]) -> None:
    for line in found["set_aside"]:
        console.print(Text(visible(f"set aside: {line}", one_line=True), "yellow"))
    for line in found["notes"]:
        console.print(Text(visible(f"note: {line}", one_line=True), "yellow"))


def _funnel(stages: dict[str, Any], settings: dict[str, Any]) -> Table:
    table = grid("stage", ">shards", ">rows in", ">rows out", ">size", "dropped")
    for stage, counts in stages.items():
        shards = "-" if counts["shards"] is None else f"{counts['shards']}"
        shards += f" of {counts['of']}" if counts["of"] is not None and counts["shards"] is not None else ""
        dropped = "\n".join(_reason(stage, reason, n, settings) for reason, n in counts["dropped"].items())
        num_bytes = "-" if counts["bytes"] is None else megabytes(counts["bytes"])
        table.add_row(
            named(stage), shards, count(counts["rows_in"]), count(counts["rows_out"]), num_bytes, Text(dropped or "-")
        )
    return table


def _reason(stage: str, reason: str, count: int, settings: dict[str, Any]) -> str:
    by = decided_by(stage, reason, settings)
    return visible(f"{reason} {count:,}" + (f" ({by})" if by else ""), one_line=True)


def quantiles(numbers: dict[str, Any]) -> Table:
    """Of columns with few values `shown` leaves some out."""
    there = {name: values for name, values in numbers.items() if values["count"]}
    columns = [q for q in QUANTILES if any(q in shown(values["count"]) for values in there.values())]
    table = grid("", *(f">{quantile_title(q)}" for q in columns))
    for name, values in there.items():
        own = shown(values["count"])
        table.add_row(named(name), *(count(values[q]) if q in own else "" for q in columns))
    return table


def _show_values(console: Console, values: dict[str, dict[str, int]]) -> None:
    for name, counts in values.items():
        if counts and set(counts) - {"null", "False"}:
            told = ", ".join(f"{value} {n:,}" for value, n in counts.items())
            console.print(named(f"{name}: {told}"))


def _show_fidelity(console: Console, found: dict[str, Any]) -> None:
    fidelity, part = found["fidelity"], found["fidelity_estimated_from"]
    estimated = "" if part is None else f", estimated from {part['rows']:,} of {part['of']:,} rows"
    heading(console, f"targets, over {fidelity['tokens']:,} tokens{estimated}")
    if found["verdict"]:
        console.print(f"{found['verdict']['level']}: {' '.join(found['verdict']['sentences'])}")
    names = ("p5", "p25", "p50", "p75", "p95")
    table = grid("", *(f">{quantile_title(q)}" for q in names))
    for name, values in fidelity_quantiles(fidelity).items():
        told = percent if name.startswith("mass") else binned_nats
        table.add_row(name, *(told(values[q]) for q in names))
    console.print(table)
    console.print(Text(f"nats, to {BIN:g}; mass to a tenth of itself. 1 nat more: 2.7 times less probable.", "dim"))
    for kind, name in (("top_k", "targets"), ("draws", "draws")):
        if kind in fidelity:
            of = "token kept" if "tokens_kept" in fidelity else "token"
            console.print(f"{fidelity[kind]['targets_per_token']:,} {name} per {of}")


def fidelity_quantiles(fidelity: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The rows of the table about tokens, by name."""
    found = (
        {"surprisal of the token written (nats)": fidelity["written_token_surprisal"]} if fidelity.get("tokens") else {}
    )
    if "teacher_entropy" in fidelity:
        found["entropy of the teacher (nats)"] = fidelity["teacher_entropy"]
    for kind, name in (("top_k", "top K"), ("draws", "draws")):
        if kind in fidelity:
            found[f"entropy, {name} (nats)"] = fidelity[kind]["entropy"]
            found[f"mass outside, {name}"] = fidelity[kind]["tail_mass"]
    return found


def _settings(settings: dict[str, Any]) -> Table:
    """A line for each section, without what is empty."""
    sections: dict[str, list[str]] = {}
    for key, value in settings.items():
        if value not in (None, [], {}, "") and not (key in UNUSED and settings.get("targets.method") in UNUSED[key]):
            section, _, name = key.rpartition(".")
            sections.setdefault(section, []).append(f"{name} {setting(value)}")
    table = grid("", "")
    table.show_header = False
    for section, values in sections.items():
        table.add_row(named(section), Text(visible(", ".join(values), one_line=True)))
    return table


def setting(value: Any) -> Text:
    text = visible(value, one_line=True)
    return Text(text if len(text) <= MAX_SETTING else f"{text[:MAX_SETTING]}…")


def show_conversation(console: Console, row: dict[str, Any]) -> None:
    columns = {name: value for name, value in row["columns"].items() if value is not None}
    console.print(Text(visible(", ".join(f"{name} {value}" for name, value in columns.items()), one_line=True), "dim"))
    console.print(messages(row["messages"]))


def messages(said: list[dict[str, Any]]) -> Group:
    parts: list[Text] = []
    for message in said:
        role = visible(message["role"], one_line=True)
        parts.append(Text(f"{role}:", ROLES.get(role, "bold")))
        if message["reasoning_content"] is not None:
            parts.append(Text(visible(message["reasoning_content"]), "italic dim"))
        parts.append(Text(visible(message["content"])))
    return Group(*parts)


def _show_dropped(console: Console, row: dict[str, Any]) -> None:
    scores = ", ".join(f"{label} {score:.4g}" for label, score in row["scores"].items())
    why = f"{row['reason']}{', ' + scores if scores else ''}"
    heading(console, f"{row['stage']} dropped {row['prompt_id']} because {words(row['reason'])} ({why})")
    if row["conversation"] is not None:
        show_conversation(console, row["conversation"])
    else:
        console.print(named(f"{row['note']} ({row['source']} row {row['source_row']})"))


def _show_walk(console: Console, walk: dict[str, Any]) -> None:
    heading(console, walk["id"])
    table = grid("stage", "", "where, and what is new there")
    known: dict[str, Any] = {}
    for step in walk["steps"]:
        new = {n: v for n, v in step["columns"].items() if v is not None and known.get(n) != v and n != "stage"}
        known |= step["columns"]
        what = step["status"] if step["reason"] is None else f"{step['status']}: {step['reason']}"
        told = ", ".join(f"{n} {v}" for n, v in new.items())
        # On a line of its own: a file's name that is broken cannot be copied.
        where = [] if step["file"] is None else [named(f"{step['file']} row {step['row']}")]
        table.add_row(named(step["stage"]), named(what), Text("\n").join([*where, named(told)] if told else where))
    console.print(table)
    for row in walk["conversations"]:
        heading(console, row["sample_id"] or row["prompt_id"])
        if row["template_added"]:
            console.print(Text("added by the chat template, and in no message:", ROLES["system"]))
            console.print(Text(visible(row["template_added"])))
        console.print(messages(row["messages"]))
        if row["tokens"]["ids"]:
            heading(console, "token by token")
            show_tokens(console, row["tokens"])
    if walk["more"]:
        console.print(f"and {walk['more']:,} more samples; --row SAMPLE_ID shows one")
