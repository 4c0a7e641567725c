"""Cards, letter for letter: each is compared with the one in `cards/`."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.dataset import card
from stillhouse.schemas.config import Config
from stillhouse.stages.layouts import load_layout

CARDS = Path(__file__).parent / "cards"


def quantiles(scale: float) -> dict[str, float]:
    return {f"p{q}": scale * q / 100 + 1e-5 for q in (5, 25, 50, 75, 95)}


TOP_K = {"tail_mass": quantiles(0.1), "entropy": quantiles(2.0)}
DRAWS = {"tail_mass": quantiles(0.3), "entropy": quantiles(1.0), "written_token_among_them": 0.25}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "top_p": (
        {"dataset": "org/data", "revision": "1" * 40},
        {"method": "top_k", "top_p": 0.9, "precision": 0.015625},
        {
            "tokens": 12345,
            "probed_tokens": 120,
            "written_token_surprisal": quantiles(1.0),
            "top_k": {**TOP_K, "written_token_among_them": 0.987},
            "probed_entropy": quantiles(3.0),
            "probed_kl_top_k": quantiles(4.0),
            "probed_kl_top_k_tail": quantiles(5.0),
        },
    ),
    "both": (
        {"path": "/d/a.jsonl", "name": "own"},
        {"method": "both", "draws_from": "top_k"},
        {
            "tokens": 1,
            "probed_tokens": 1,
            "written_token_surprisal": quantiles(1.0),
            "top_k": {**TOP_K, "written_token_among_them": 0.5},
            "draws": DRAWS,
            "probed_kl_draws": quantiles(7.0),
        },
    ),
    "sampled": ({"path": "/d/a.jsonl"}, {"method": "sampled"}, {"tokens": 0, "probed_tokens": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_dataset_card(name: str) -> None:
    source, targets, fidelity = CASES[name]
    config = Config.model_validate(
        {
            "run_dir": "/runs/a",
            "source": source,
            "teacher": {"model": "/models/Gemma-2/", "revision": "0123abc", "max_model_len": 100},
            "sampling": {"max_tokens": 10},
            "targets": targets,
        }
    )
    manifest = {
        "rows": 12345,
        "target_tokens": 1234567,
        "bytes": 1234567890,
        "config_hash": "0123456789abcdef" * 4,
        "teacher": {"vocab_size": 256000},
        "fidelity": fidelity,
        "stages": {
            "ingest": {"rows_in": 20000, "rows_out": 19000, "dropped": {"a": 900, "b": 100}},
            "review": {"rows_in": 5, "rows_out": 5, "dropped": {}},
        },
    }
    assert card.dataset_card(config, manifest) == (CARDS / f"{name}.md").read_text()


@pytest.mark.parametrize("of_all", [False, True])
def test_card_of_a_dataset_without_prompts(of_all: bool) -> None:
    """It says what is withheld, beside what it says else."""
    source, targets, fidelity = CASES["top_p"]
    raw = {"run_dir": "/runs/a", "source": source, "targets": targets, "sampling": {"max_tokens": 10}}
    teacher = {"model": "/models/Gemma-2/", "revision": "0123abc", "max_model_len": 100}
    config = Config.model_validate(raw | {"teacher": teacher})
    manifest: dict[str, Any] = {
        "rows": 12345,
        "target_tokens": 1234567,
        "bytes": 1234567890,
        "config_hash": "0123456789abcdef" * 4,
        "teacher": {"vocab_size": 256000},
        "fidelity": fidelity,
        "config": {},
        "stages": {},
    }
    plain = card.dataset_card(config, manifest)
    text = card.dataset_card(config, manifest | {"withheld": {"system_prompts": of_all, "ids": of_all}})
    section = text.partition("**The prompts are withheld.**")[2].partition("## Columns")[0]
    assert ("system's" in section, "rows are named by their place" in section) == (of_all, of_all)
    assert "stillhouse join FOLDER" in section
    whole, _, columns = text.replace("**The prompts are withheld.**" + section, "").partition("## Terms")
    assert whole == plain.partition("## Terms")[0]
    assert "terms of their source" in columns
    assert "--no-prompts" not in columns


@pytest.mark.parametrize(
    ("layout_name", "kind", "max_length", "notes"),
    [
        ("distillkit", "draw", 2048, ["one", "two <b> & `c`"]),
        ("axolotl", "target", 0, ["one", "two <b> & `c`"]),
        ("openai", "target", 0, []),
    ],
)
def test_export_card(layout_name: str, kind: str, max_length: int, notes: list[str]) -> None:
    layout = load_layout(layout_name)
    manifest = {
        "layout": layout_name,
        "trainer": layout.trainer,
        "alignment": layout.alignment,
        "settings": {"kind": kind, "max_length": max_length},
        "rows": 1234,
        "rows_too_long": 5678,
        "target_tokens": 99999,
        "dataset_config_hash": "fedcba9876543210",
        "notes": notes,
    }
    assert card.export_card(manifest, layout) == (CARDS / f"export_{layout_name}.md").read_text()


def test_a_name_with_the_templates_marks_is_only_a_name() -> None:
    layout = load_layout("openai")
    manifest = {
        "trainer": "{{ 7 * 7 }} {% raw %}",
        "alignment": "none",
        "settings": {"kind": "target", "max_length": 0},
        "rows": 1,
        "target_tokens": 1,
        "dataset_config_hash": "f",
        "notes": ["{# gone #}"],
    }
    text = card.export_card(manifest, layout)
    assert "# Distillation targets for {{ 7 * 7 }} {% raw %}\n" in text
    assert "- {# gone #}\n" in text
