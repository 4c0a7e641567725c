"""Data sets on the hub: one configuration, one split, one format, at one commit."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import SourceError, hub, read_rows
from stillhouse.stages.sources.splits import configurations
from tests.support.hub import Hub
from tests.support.python import run_python
from tests.support.source_files import ROWS, array, jsonl, parquet, values


@pytest.fixture
def server() -> Iterator[Hub]:
    encoded = {"data/b.parquet": parquet(ROWS[5:9]), "data/a.parquet": parquet(ROWS[:5])}
    readme = b"---\nconfigs:\n- config_name: default\n  data_files: data/*\n---\n# Chats"
    with Hub({**encoded, "README.md": readme, "also.jsonl": jsonl(ROWS[:9]), "dataset_infos.json": b"{}"}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


READ_HUB = """
import json, sys
from stillhouse.schemas.config import SourceConfig
from stillhouse.stages.sources import SourceError, read_rows
for revision in sys.argv[1:]:
    try:
        print(json.dumps([row for row in read_rows(SourceConfig(dataset="org/chats", revision=revision))]))
    except SourceError as error:
        print(json.dumps(str(error)))
"""


def test_a_hub_data_set_is_read_at_one_commit(server: Hub, tmp_path: Path) -> None:
    env = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_canary",
        "HF_HUB_OFFLINE": "0",  # this hub is on the loopback
        "NO_PROXY": "127.0.0.1",
    }
    rows, error = map(json.loads, run_python(READ_HUB, "v1", "no-such-tag", **env).splitlines())
    assert rows == [[row, None] for row in ROWS[:9]]
    assert server.tokens == {"Bearer hf_canary"}
    assert not any("jsonl" in path for path in server.requests)
    assert error.startswith("org/chats@no-such-tag: cannot be listed (RevisionNotFoundError); check")


Repository = Callable[..., list[Any]]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Writes files of a data set, by name and rows, and reads it: the rows."""
    monkeypatch.setattr(hub, "download", lambda dataset, commit, name: str(tmp_path / name))
    monkeypatch.setattr("stillhouse.stages.sources.files.download", lambda dataset, commit, name: str(tmp_path / name))

    def read(files: dict[str, list[Any]], readme: str | None = None, **keys: Any) -> list[Any]:
        for name, rows in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            encode = {"parquet": parquet, "json": array}.get(name.rpartition(".")[2].lower(), jsonl)
            (tmp_path / name).write_bytes(encode(rows))
        if readme is not None:
            (tmp_path / "README.md").write_text(readme)
        listed = sorted([*files, *(["README.md"] if readme is not None else [])])
        monkeypatch.setattr(hub, "_listing", lambda dataset, revision: ("c0ffee", listed))
        return values(list(read_rows(SourceConfig(dataset="org/chats", revision="v1", **keys))))

    return read


ULTRACHAT = {
    f"data/{split}-0000{i}-of-00002-abc.parquet": [ROWS[2 * n + i]]
    for n, split in enumerate(["test_gen", "test_sft", "train_gen", "train_sft"])
    for i in range(2)
}
README = "---\nconfigs:\n- config_name: default\n  data_files:\n" + "".join(
    f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train_sft", "test_sft", "train_gen", "test_gen")
)


@pytest.mark.parametrize("readme", [None, f"{README}---\n# UltraChat"])
def test_splits_are_never_mixed_by_accident(readme: str | None, repository: Repository) -> None:
    with pytest.raises(SourceError) as error:
        repository(ULTRACHAT, readme, limit=1)
    assert str(error.value) == (
        "org/chats@v1: has several splits (test_gen, test_sft, train_gen, train_sft); set source.split"
    )
    with pytest.raises(SourceError, match="has no split 'train' \\(it has test_gen, test_sft, train_gen, train_sft"):
        repository(ULTRACHAT, readme, split="train")
    assert repository(ULTRACHAT, readme, split="train_sft") == ROWS[6:8]
    assert repository(ULTRACHAT, readme, split=["train_gen", "test_sft"]) == ROWS[4:6] + ROWS[2:4]


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
        ["train.jsonl", "test.jsonl"],
        ["train/a.jsonl", "test/a.jsonl"],
        ["my_train_data.json", "dev.json"],
        ["chats.jsonl", "eval.jsonl"],  # `datasets` would read eval alone
    ],
)
def test_train_is_the_default(names: list[str], repository: Repository) -> None:
    assert repository({names[0]: ROWS[:3], names[1]: ROWS[3:5]}) == ROWS[:3]


def test_there_is_no_choice_where_there_is_one(repository: Repository) -> None:
    assert repository({"data/test-00000-of-00001.parquet": ROWS[:2]}) == ROWS[:2]
    assert repository({"a.jsonl": ROWS[:2], "b.jsonl": ROWS[2:3]}) == ROWS[:3]


def test_files_of_one_word_that_are_several_splits(repository: Repository) -> None:
    files = {"train_sft.jsonl": ROWS[:1], "train_gen_1.jsonl": ROWS[1:2], "train_gen_2.jsonl": ROWS[2:3]}
    with pytest.raises(SourceError, match=r"has several splits \(train_gen, train_sft\); set source.split"):
        repository(files)
    assert repository(files, split="train_gen") == ROWS[1:3]


CONFIGS = """---
license: mit
configs:
- config_name: en
  data_files: "en/*.jsonl"
- config_name: fr
  data_files:
  - split: train
    path: fr/train*
  - split: test
    path: ["fr/test.jsonl"]
- config_name: gone
  data_files: nothing/**
---
"""
TWO = {"en/a.jsonl": ROWS[:1], "fr/train.jsonl": ROWS[1:2], "fr/test.jsonl": ROWS[2:3], "other.jsonl": ROWS[3:4]}


def test_configurations(repository: Repository) -> None:
    with pytest.raises(SourceError, match=r"^org/chats@v1: has several configs \(en, fr\); set source.config$"):
        repository(TWO, CONFIGS)
    assert repository(TWO, CONFIGS, config="en") == ROWS[:1]
    assert repository(TWO, CONFIGS, config="fr") == ROWS[1:2]
    assert repository(TWO, CONFIGS, config="fr", split="test") == ROWS[2:3]
    assert repository(TWO, CONFIGS, config=["fr", "en"]) == [ROWS[1], ROWS[0]]
    with pytest.raises(SourceError, match=r"has no config 'de' \(it has en, fr\)"):
        repository(TWO, CONFIGS, config="de")
    with pytest.raises(SourceError, match=r"v1 \(config fr\): has no split 'dev' \(it has test, train\)"):
        repository(TWO, CONFIGS, config="fr", split="dev")
    marked = CONFIGS.replace("config_name: fr", "config_name: fr\n  default: true")
    assert repository(TWO, marked) == ROWS[1:2]


def test_configurations_that_no_readme_declares(repository: Repository) -> None:
    converted = {
        f"{c}/{s}/0000.parquet": [ROWS[n]] for n, (c, s) in enumerate([("a", "train"), ("b", "partial-train")])
    }
    folders = {"de/train.jsonl": ROWS[:1], "fr/train.jsonl": ROWS[1:2], "fr/test.jsonl": ROWS[2:3]}
    for files, name in ((converted, "b"), (folders, "fr")):
        with pytest.raises(SourceError, match="has several configs"):
            repository(files)
        assert repository(files, config=name) == ROWS[1:2]


@pytest.mark.parametrize("data", ["chats.jsonl", "data/part-1.json", "train.ndjson"])
def test_a_table_of_statistics_is_not_the_data(data: str, repository: Repository) -> None:
    statistics = [{"split": "train", "rows": n} for n in range(30)]
    assert repository({data: ROWS[:2], "statistics.parquet": statistics}) == ROWS[:2]
    assert repository({data: ROWS[:2], "stats/train.parquet": statistics}) == ROWS[:2]


@pytest.mark.parametrize(
    ("files", "read"),
    [
        ({"b.parquet": 0, "a.json": 1, "a.jsonl": 2, "a/b.PARQUET": 3}, [3, 0]),
        ({"c.ndjson": 0, "b.json": 1, "a.jsonl": 2, "README.md": 3}, [2, 0]),
        ({"b.json": 0, "a.json": 1, ".hidden/c.jsonl": 2, "_x.parquet": 3}, [1, 0]),
    ],
)
def test_the_best_format_of_those_that_hold_conversations(
    files: dict[str, int], read: list[int], repository: Repository
) -> None:
    assert repository({name: [ROWS[i]] for name, i in files.items()}) == [ROWS[i] for i in read]


@pytest.mark.parametrize("config", ["default", "en", "fr"])
def test_datasets_finds_the_same_splits(config: str, repository: Repository, tmp_path: Path) -> None:
    from datasets import load_dataset_builder

    names: dict[str, tuple[dict[str, Any], str | None]] = {
        "default": (ULTRACHAT, f"{README}---\n"),
        "en": (TWO, CONFIGS.replace("- config_name: gone\n  data_files: nothing/**\n", "")),
    }
    files, readme = names["default" if config == "default" else "en"]
    repository(files, readme, config=config, split={"default": "train_sft"}.get(config))
    builder = load_dataset_builder(str(tmp_path), config, cache_dir=str(tmp_path / "cache"))
    theirs = {
        str(split): [str(Path(file).relative_to(tmp_path)) for file in found]
        for split, found in builder.config.data_files.items()
    }
    assert configurations(readme, sorted(files))[0][config] == theirs


@pytest.mark.parametrize(
    "names",
    [
        [
            "data/train-00000-of-00002.jsonl",
            "data/train-00001-of-00002.jsonl",
            "data/test-00000-of-00001.jsonl",
            "x.jsonl",
        ],
        ["train/a.jsonl", "train/b.jsonl", "validation/a.jsonl"],
        ["chat-train-1.jsonl", "chat-train-2.jsonl", "chat-dev.jsonl"],
        ["a.jsonl", "b/c.jsonl"],
        ["constraint.jsonl", "latest.jsonl"],
    ],
)
def test_datasets_finds_the_same_splits_in_names(names: list[str], tmp_path: Path) -> None:
    from datasets.data_files import DataFilesDict, get_data_patterns

    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jsonl(ROWS[:1]))
    found = DataFilesDict.from_patterns(get_data_patterns(str(tmp_path)), str(tmp_path))
    theirs = {
        str(split): sorted(str(Path(file).relative_to(tmp_path)) for file in files) for split, files in found.items()
    }
    assert configurations(None, sorted(names)) == ({"default": theirs}, "default")
