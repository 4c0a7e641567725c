"""Puts the report together: one HTML file with its data, scripts and styles, that fetches nothing."""

import base64
import functools
import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.pipeline.dataset.figures import BIN, binned_nats
from stillhouse.pipeline.dataset.teachers import called
from stillhouse.pipeline.dataset.templates import environment
from stillhouse.pipeline.folder.identity import day_begun
from stillhouse.pipeline.look.filters import filters
from stillhouse.pipeline.look.filters.entry import told
from stillhouse.pipeline.look.page import asset
from stillhouse.pipeline.look.place import Place
from stillhouse.pipeline.look.quantiles import title as quantile_title
from stillhouse.pipeline.look.reasons import words
from stillhouse.pipeline.look.report import plots
from stillhouse.pipeline.look.report.clusters import clusters
from stillhouse.pipeline.look.report.funnel import funnel, reasons, worth_a_look
from stillhouse.pipeline.look.report.histograms import histograms, number
from stillhouse.pipeline.look.report.rows import read
from stillhouse.pipeline.look.report.samples import samples
from stillhouse.pipeline.look.report.targets import distributions
from stillhouse.pipeline.look.report.thresholds import thresholds
from stillhouse.pipeline.look.report.times import times
from stillhouse.pipeline.look.verdict import verdict
from stillhouse.stages.teacher import fidelity

if TYPE_CHECKING:
    import jinja2

MOST_BYTES = 5_000_000
"""Of a report: conversations are left out, from the last on, until it is smaller."""

ADDED_CHARACTERS = 200
"""Of what a template added, in the list of what is odd."""


def html(place: Place, *, with_text: bool, mark: str, tokenizer: str | None = None) -> bytes:
    """The report of a finished run or dataset, `mark` at its end; `tokenizer`: the model whose it is, by default the
    run's teacher. Without text it holds no prompt, no answer and no
    token. Its bytes depend on the data alone, and on what `state/timeline/` says."""
    with ThreadPoolExecutor(1) as pool:  # the library takes a second or two of a core that is free
        library = pool.submit(plots.library)
        return _html(place, with_text=with_text, mark=mark, model=tokenizer, library=library)


def _html(place: Place, *, with_text: bool, mark: str, model: str | None, library: "Future[str]") -> bytes:
    assert place.manifest is not None
    rows = read(place)
    # From what the shards counted, as `inspect` has it: manifests of before have shares that were rounded.
    manifest = place.manifest | ({"fidelity": fidelity.report(rows.fidelity)} if rows.fidelity.get("tokens") else {})
    settings = place.config or manifest["config"]
    columns, curves, stages = histograms(rows), thresholds(place, rows), funnel(manifest)
    tokens, time = distributions(rows.fidelity), times(place)
    conversations, note = [], None
    if with_text:
        from stillhouse.pipeline.look.tokens import teacher_tokenizer

        tokenizer, note = teacher_tokenizer(place, model)
        conversations = samples(place, rows, tokenizer)
    odd = worth_a_look(manifest, stages, rows) + _added(conversations)
    specs = [plots.linked(column) for column in columns["columns"]] + [plots.score(curve) for curve in curves]
    for part in tokens:
        title, unit = f"{part['name']} of all tokens: {part['meaning']}.", "mass" if part["is_mass"] else "nats"
        specs.append(plots.bars(title, part["bars"], unit, "tokens", is_mass=part["is_mass"]))
    if time and time["speed"]:
        specs.append(
            plots.bars("Tokens per second while the teacher wrote.", time["speed"], "seconds", "tokens per second")
        )
    style = asset("conversation.css") + _own("report.css")
    scripts = [library.result(), asset("conversation.js") + _own("report.js")]
    facts = {
        "name": place.folder.url.rstrip("/").rpartition("/")[2],
        "manifest": manifest,
        "config": settings,
        "model": called(manifest),
        "stages": stages,
        "reasons": reasons(stages),
        "verdict": verdict(manifest["fidelity"], settings),
        "odd": odd,
        "bin": BIN,
        "day": day_begun(place.folder) if place.is_run else None,
        "columns": columns,
        "curves": curves,
        "filters": filters(place),
        "tokens": tokens,
        "clusters": clusters(place, with_text=with_text),
        "time": time,
        "is_run": place.is_run,
        "with_text": with_text,
        "note": note,
        "specs": specs,
        "style": style,
        "scripts": scripts,
        "policy": _policy(style, scripts),
    }
    template = _template()
    while True:
        text = template.render(**facts, conversations=conversations)
        data = (text + mark).encode(errors="backslashreplace")
        if len(data) < MOST_BYTES or not conversations:
            return data
        conversations.pop()


def _added(conversations: list[dict[str, Any]]) -> list[str]:
    """What the template adds to conversations, where it does."""
    added = [one["template_added"] for one in conversations if one["template_added"]]
    if not added:
        return []
    return [
        f"The template added a system prompt in {len(added):,} of the {len(conversations):,} conversations below: "
        f"“{added[0][:ADDED_CHARACTERS]}{'…' if len(added[0]) > ADDED_CHARACTERS else ''}”. It is in input_ids, so a "
        "student trains on it, and in no messages."
    ]


def _policy(style: str, scripts: list[str]) -> str:
    """What the page may do: run and look as its own scripts and styles say, by their digests, and nothing else."""
    sources = " ".join(_digest(script) for script in scripts)
    allowed = f"default-src 'none'; script-src {sources}; style-src {_digest(style)}; img-src data:"
    return f"{allowed}; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _own(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@functools.cache
def _template() -> "jinja2.Template":
    templates = environment(Path(__file__).parent, autoescape=True)
    templates.filters["number"] = number
    templates.filters["binned_nats"] = binned_nats
    templates.filters["words"] = words
    templates.filters["told"] = told
    templates.filters["quantile"] = quantile_title
    return templates.get_template("report.html.j2")
