"""The cards of a dataset and of an export: what their users have to know, as Markdown. The text is in `*.md.j2`."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.pipeline.dataset.figures import BIN, binned_nats, percent
from stillhouse.pipeline.dataset.teachers import called, short
from stillhouse.pipeline.dataset.templates import environment
from stillhouse.schemas.config import Config
from stillhouse.stages.layouts import Layout

if TYPE_CHECKING:
    import jinja2

QUANTILES = ("p5", "p25", "p50", "p75", "p95")


def dataset_card(config: Config, manifest: dict[str, Any]) -> str:
    """The card of a dataset. `datasets` and the hub know the split from the files' names."""
    return _template("card.md.j2").render(
        config=config,
        manifest=manifest,
        name=called(manifest) if "teachers" in manifest else short(config.teacher.model),
        quantiles=_quantiles(manifest["fidelity"]),
        bin=BIN,
    )


def export_card(manifest: dict[str, Any], layout: Layout) -> str:
    """The card of an export."""
    return _template("export_card.md.j2").render(manifest=manifest, layout=layout)


@functools.cache
def _template(name: str) -> "jinja2.Template":
    templates = environment(Path(__file__).parent)
    # A JSON string is YAML as well, whatever is in it: a colon, a quote, a lone `no`.
    templates.filters["yaml"] = json.dumps
    return templates.get_template(name)


def _quantiles(fidelity: dict[str, Any]) -> dict[str, list[str]]:
    """The rows of the card's table: what was measured, and its quantiles over tokens."""
    binned = {"surprisal of the token written": fidelity.get("written_token_surprisal")}
    binned["entropy of the teacher, whole distribution"] = fidelity.get("teacher_entropy")
    masses = {}
    for key, name in (("top_k", "top K"), ("draws", "draws")):
        if key in fidelity:
            masses[f"mass outside the {name}"] = fidelity[key]["tail_mass"]
            binned[f"entropy of the {name}"] = fidelity[key]["entropy"]
    exact = {
        "entropy of the teacher": fidelity.get("probed_entropy"),
        "KL of the top K, tail left out": fidelity.get("probed_kl_top_k"),
        "KL of the top K, with its tail": fidelity.get("probed_kl_top_k_tail"),
        "KL of the draws (scatter, not bias)": fidelity.get("probed_kl_draws"),
    }
    kinds: list[tuple[dict[str, Any], Callable[[float], str]]] = [
        (binned, binned_nats), (masses, percent), (exact, "{:.3g}".format),
    ]  # fmt: skip
    return {
        name: [told(values[quantile]) for quantile in QUANTILES]
        for measured, told in kinds
        for name, values in measured.items()
        if values
    }
