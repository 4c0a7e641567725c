"""What others' readers meet in published files and exports: files without rows, encodings, ids, the card's labels."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stillhouse.pipeline.dataset import manifest
from stillhouse.pipeline.dataset.export import default_output, export
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.pipeline.folder import open_folder, shard
from stillhouse.schemas.config import Config, config_hash
from stillhouse.stages.layouts import LAYOUTS, Settings, load_layout
from stillhouse.stages.layouts.records import records
from tests.support.datasets import published_table, write_dataset
from tests.support.inline_pool import run_inline

WORDS = [
    "river",
    "stone",
    "lantern",
    "harvest",
    "whisper",
    "copper",
    "meadow",
    "thunder",
    "velvet",
    "compass",
    "orchard",
]


def jsonl(path: Path, questions: list[str]) -> str:
    path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": q}]}) + "\n" for q in questions))
    return str(path)


def num_rows(folder: Path, cache: Path, *, streaming: bool) -> int:
    loaded: Any = datasets.load_dataset(str(folder), split="train", streaming=streaming, cache_dir=str(cache))
    return sum(1 for _ in loaded) if streaming else loaded.num_rows


def test_shards_without_rows_are_read(raw_config: dict[str, Any], tmp_path: Path) -> None:
    """The last of 11 rows is dropped, and with it all that the second file had."""
    first = f"Tell me about {' '.join(WORDS)}"
    questions = [first, *(f"What does the word {word} mean to a sailor?" for word in WORDS[1:10]), first.upper()]
    raw_config["source"] = {"path": jsonl(tmp_path / "source.jsonl", questions)}
    config = Config.model_validate(raw_config)
    written, _ = run_inline(config)
    assert [file["rows"] == 0 for file in written["files"]] == [False, True]
    folder = Path(config.run_dir) / "dataset"
    for streaming in (False, True):
        assert num_rows(folder, tmp_path / "cache", streaming=streaming) == written["rows"]
    assert verify(config.run_dir, 1)["ok"]
    for name in LAYOUTS:
        exported = Path(default_output(config.run_dir, name))
        export(config.run_dir, name, str(exported), num_workers=1)
        for streaming in (False, True):
            assert num_rows(exported, tmp_path / name, streaming=streaming) == written["rows"]
        assert verify(str(exported), 1)["ok"]


def test_an_export_that_lost_all_rows_is_read(tmp_path: Path) -> None:
    run, output = write_dataset(tmp_path), tmp_path / "export"
    written = export(str(run), "distillkit", str(output), max_length=2, num_workers=1)
    assert (written["rows"], written["rows_too_long"]) == (0, 20)
    assert [pq.ParquetFile(file).num_row_groups for file in files(output)] == [0] * 3
    assert num_rows(output, tmp_path / "cache", streaming=True) == 0


def files(folder: Path) -> list[Path]:
    return sorted((folder / "data").glob("*.parquet"))


@pytest.mark.parametrize("name", [None, *(name for name in LAYOUTS if name != "openai")])
def test_only_encodings_that_every_reader_knows(tmp_path: Path, name: str | None) -> None:
    """Byte-split integers and half floats are what DuckDB, Spark and older PyArrow fail on; maps, large lists and empty
    structs are others' traps."""
    run = write_dataset(tmp_path)
    folder = run / "dataset"
    if name is not None:
        folder = tmp_path / "export"
        export(str(run), name, str(folder), num_workers=1)
    allowed = {"PLAIN", "RLE", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}
    for path in files(folder):
        file = pq.ParquetFile(path)
        for i in range(file.num_row_groups):
            assert file.metadata.row_group(i).num_rows > 0
            for j in range(file.metadata.num_columns):
                column = file.metadata.row_group(i).column(j)
                extra = {"BYTE_STREAM_SPLIT"} if column.physical_type in ("FLOAT", "DOUBLE") else set()
                assert set(column.encodings) <= allowed | extra, column.path_in_schema
                assert column.physical_type in ("BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE", "BYTE_ARRAY")
                assert column.compression == "ZSTD"


def test_a_table_of_no_rows_has_no_row_group() -> None:
    empty = published_table().slice(0, 0)
    data = shard.encode_parts(empty.schema, [empty, published_table(), empty])
    assert pq.ParquetFile(pa.BufferReader(data)).num_row_groups == 1
    data = shard.encode(empty)
    assert pq.ParquetFile(pa.BufferReader(data)).num_row_groups == 0
    assert shard.decode(data, "a file").table.equals(empty)


@pytest.mark.parametrize("kind", ["target", "draw"])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.7, "precision": 1 / 64}])
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "openai"])
def test_no_layout_names_an_id_that_no_token_has(name: str, options: dict[str, Any], kind: Any) -> None:
    """A student of the same family can have a smaller output layer than its teacher: Qwen2.5-7B has 152,064 rows, its
    smaller sisters 151,936."""
    table = published_table(**options)
    layout = load_layout(name)
    column = table.column(f"{kind}_lengths").combine_chunks().flatten().to_numpy()
    length = max(table.column("num_input_tokens").to_pylist()) if layout.has_equal_lengths else 0
    settings = Settings(kind, 152_064, int(column.max()), length)
    of_data = {*table.column(f"{kind}_ids").combine_chunks().flatten().to_pylist()}
    of_data |= {*table.column("input_ids").combine_chunks().flatten().to_pylist()}
    converted = layout.convert(table, settings)
    assert layout.read_row is not None
    names = [n for n in converted.column_names if n in ("token_ids", "teacher_ids", "target_tokens")]
    if name == "distillkit-compressed":  # the same rectangle, packed
        converted, names = load_layout("distillkit").convert(table, settings), ["token_ids"]
    for n in names:
        assert set(np.unique(converted.column(n).combine_chunks().flatten().flatten().to_numpy())) <= of_data
    for record in records(layout.convert(table, settings)):
        row = layout.read_row(record, settings)
        assert {int(i) for i, p in zip(row.ids.ravel(), row.probs.ravel(), strict=True) if p > 0} <= of_data
        if name in ("distillkit", "distillkit-compressed", "verl"):
            # An empty place beside targets names none of these: a loss that looks there finds little of the student.
            for ids, probs in zip(row.ids, row.probs, strict=True):
                assert not set(ids[probs == 0].tolist()) & set(ids[probs > 0].tolist())


@pytest.mark.parametrize(
    "label", ["llama3.1: see the terms", "no", "other # mine", "'", '"', "1e3", "mit", "gemma\n---"]
)
def test_any_license_is_a_string_on_the_card(raw_config: dict[str, Any], label: str) -> None:
    raw_config["publish"] = {"license": label}
    config = Config.model_validate(raw_config)
    (Path(config.run_dir) / "dataset").mkdir(parents=True)
    raw_config["source"]["limit"] = 12
    config = Config.model_validate(raw_config)
    run_inline(config)
    card = (Path(config.run_dir) / "dataset/README.md").read_text()
    head = yaml.safe_load(card.removeprefix("---\n").partition("\n---\n")[0])
    assert head["license"] == label
    assert head["task_categories"] == ["text-generation"]


def test_a_label_decides_nothing_but_the_card(raw_config: dict[str, Any]) -> None:
    raw_config["source"]["limit"] = 12
    config = Config.model_validate(raw_config)
    first, _ = run_inline(config)
    raw_config["publish"] = {"license": "mit"}
    relabelled = Config.model_validate(raw_config)
    assert config_hash(relabelled) == config_hash(config)
    second, trouble = run_inline(relabelled)
    assert (trouble, second["license"]) == ("", "mit")
    assert second["files"] == first["files"]
    folder = open_folder(config.run_dir)
    assert manifest.finished(folder) == second
    assert b'license: "mit"' in folder.get("dataset/README.md")
