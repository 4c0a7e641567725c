"""docs/training as its readers copy it: what can be checked of its YAML, JSON and Python without the trainers.

That the trainers accept it, and learn the right thing, is in tests/trainers.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.pipeline.dataset.export import default_output
from stillhouse.schemas.config.load import load
from stillhouse.stages.kinds.code import CODE
from stillhouse.stages.kinds.language import LANGUAGE
from stillhouse.stages.layouts import LAYOUTS, Settings, load_layout
from stillhouse.stages.layouts.distillkit import compression_config
from tests.support.data import ROOT
from tests.support.datasets import K, V, published_table

PAGES = sorted((ROOT / "docs/training").glob("*.md"))


def text_of(page: str) -> str:
    return (ROOT / "docs/training" / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    """Fenced code, also of list items."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text_of(page), re.M | re.S)
    return [re.sub(f"^{indent}", "", code, flags=re.M) for indent, code in found]


def configuration(page: str, number: int = 0) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(blocks(page, "yaml")[number])
    return loaded


@pytest.mark.parametrize("page", [path.name for path in PAGES])
def test_code_parses(page: str) -> None:
    for code in blocks(page, "python"):
        ast.parse(code)
    for code in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(code), dict)


def test_settings_in_tables_parse() -> None:
    page = text_of("text.md")
    settings = re.findall(r"`(datasets?: .*?)`", page)
    assert len(settings) == 2
    for setting in settings:
        assert isinstance(yaml.safe_load(setting), dict), setting
    (entry,) = [json.loads(code)["stillhouse"] for code in re.findall(r"`(\{\"stillhouse\".*?\})`", page)]
    # Its loader reads one file, or all files of a folder; an export has a file for each shard.
    assert entry["file_name"].endswith(default_output("RUN", "openai") + "/data")
    names = {field.name for field in published_table(2).schema.field("messages").type.value_type}
    assert {entry["tags"]["role_tag"], entry["tags"]["content_tag"]} <= names
    assert entry["columns"] == {"messages": "messages"}


def test_the_quick_start_publishes_no_answer_that_was_cut_off() -> None:
    review = load(ROOT / "configs/quickstart.yaml").review
    assert review.drop_truncated
    assert review.max_dropped_fraction >= 0.9  # 49 of its 61 answers are longer than its max_tokens


@pytest.mark.parametrize("page", [path.name for path in PAGES])
def test_exports_that_are_named_exist(page: str) -> None:
    assert set(re.findall(r"RUN/exports/([\w-]+)", text_of(page))) <= {*LAYOUTS, "LAYOUT"}


def test_labels_of_scores_are_those_of_the_quick_start() -> None:
    classifiers = load(ROOT / "configs/quickstart.yaml").screen.classifiers
    known = {label for classifier in classifiers for label in classifier.thresholds} | {LANGUAGE, CODE}
    named = [
        label
        for path in [*PAGES, ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for label in re.findall(r"(?:response|prompt)_scores(?:\"\]\[\"|\.)(\w+)", path.read_text())
    ]
    assert named
    assert set(named) <= known


def test_the_tables_of_columns_are_those_of_the_exports() -> None:
    for name in LAYOUTS:
        layout = load_layout(name)
        if layout.is_jsonl:
            continue
        length = max(published_table().column("num_input_tokens").to_pylist()) if layout.has_equal_lengths else 0
        columns = layout.convert(published_table(), Settings("target", V, K, length)).column_names
        table = text_of(layout.page).partition("| column | |")[2].partition("\n\n")[0]
        named = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines()[2:]))
        assert set(columns) <= set(named), layout.page


def test_axolotl_neither_leaks_nor_drops() -> None:
    """2.71 nats between identical models where packing has no attention that knows of it, sdpa included."""
    first, packed = configuration("axolotl.md"), configuration("axolotl.md", 1)
    assert first["sample_packing"] is False
    assert packed == {"sample_packing": True, "attn_implementation": "flash_attention_2"}
    assert isinstance(first["learning_rate"], float)  # required; YAML reads 2e-5 as a string
    assert first["excess_length_strategy"] == "raise"
    assert first["dataset_prepared_path"]
    assert first["datasets"] == [{"path": default_output("RUN", "axolotl"), "type": None, "split": "train"}]
    assert first["kd_trainer"] is True
    assert (first["kd_temperature"], first["kd_normalize_topk"]) == (1.0, False)


def test_distillkit_says_what_a_cpu_needs() -> None:
    first, cpu = configuration("distillkit.md"), configuration("distillkit.md", 1)
    assert cpu == {"use_flash_attention": False, "training_args": {"bf16": False, "use_cpu": True}}
    assert first["dataset"]["train_dataset"]["repo_id"] == default_output("RUN", "distillkit")
    assert first["dataset"]["prepacked"] is True
    assert first["training_args"]["remove_unused_columns"] is False
    assert first["loss_functions"][0]["missing_probability_handling"] == "zero"
    compressor = first["teacher"]["logprob_compressor"]
    assert compressor.items() <= compression_config(Settings("target", 49152, 64, 100)).items()


def test_trl_says_what_a_cpu_needs() -> None:
    assert "`bf16=False, use_cpu=True`" in text_of("trl.md")
    calls = [code for code in blocks("trl.md", "python") if "SFTConfig(" in code]
    assert len(calls) == 2
    for code in calls:
        assert "max_length=None, packing=False" in code


def test_verl_batches_hold_what_its_loss_reads() -> None:
    """`distillation_loss` takes the three numbers from the batch."""
    prepare, assign = blocks("verl.md", "python")
    layout = load_layout("verl")
    assert set(layout.convert(published_table(2), Settings("target", V, K)).column_names) == set(
        re.findall(r'"(\w+)"', prepare.partition("names = ")[2].partition("\n")[0])
    )
    (call,) = [node for node in ast.walk(ast.parse(assign)) if getattr(node, "keywords", None)]
    assert isinstance(call, ast.Call)
    assert {keyword.arg for keyword in call.keywords} == {"dp_size", "batch_num_tokens", "global_batch_size"}
    settings = configuration("verl.md")
    assert (settings["loss_max_clamp"], settings["log_prob_min_clamp"]) == (None, None)
    assert (settings["use_policy_gradient"], settings["use_task_rewards"]) == (False, False)


def test_filters_run_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three conversations: whole, cut off, and cut off in its first answer; the whole one has the worse score."""
    import datasets

    def said(name: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": name}, {"role": "assistant", "content": "ä"}]

    table = pa.table(
        {
            "messages": [said("whole"), said("cut"), said("first")],
            "finish_reasons": [["stop", "stop"], ["length"], ["length", "stop"]],
            "response_scores": [{"profanity": 0.9}, {"profanity": 0.1}, {"profanity": 0.1}],
        }
    )
    (tmp_path / "RUN/dataset/data").mkdir(parents=True)
    pq.write_table(table, tmp_path / "RUN/dataset/data/train-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (code,) = blocks("text.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    lines = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert lines == [{"messages": said("whole")}]
    (code,) = [code for code in blocks("trl.md", "python") if ".filter(" in code]
    names = {"rows": names["rows"]}
    exec(code, names)
    assert [row["messages"][0]["content"] for row in names["rows"]] == ["cut", "first"]


def test_what_is_not_possible_is_said_where_people_look() -> None:
    index = text_of("README.md")
    for words in ("Megatron-LM", "DistillationTrainer", "--rlhf_type gkd", "finish_reasons", "chat template", "Pad"):
        assert words in index
    assert "live teacher" in text_of("trl.md")
    for words in ("131,072", "--logits-load-dir", "iteration"):
        assert words in text_of("megatron.md")
