"""Evaluation sets in every place and format, and that a set which is not what it was is refused."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stillhouse.schemas.config import ConfigError, EvaluationConfig
from stillhouse.stages.sources import evaluations, files
from stillhouse.stages.sources.evaluations import read_evaluation
from stillhouse.stages.sources.files import File
from tests.support.s3 import BUCKET, bucket

__all__ = ["bucket"]

ROWS = [{"question": "What is it?", "choices": ["One thing", "Another"]}, {"question": "And, this?", "choices": []}]
TEXTS = [("set/0", "What is it?"), ("set/0", "One thing"), ("set/0", "Another"), ("set/1", "And, this?")]


def config(place: Path | str, columns: tuple[str, ...] = ("question", "choices"), **values: Any) -> EvaluationConfig:
    return EvaluationConfig.model_validate({"name": "set", "path": str(place), "columns": list(columns)} | values)


def jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_files_of_every_format(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "set.parquet")
    assert read_evaluation(config(tmp_path / "set.parquet")) == TEXTS
    assert read_evaluation(config(jsonl(tmp_path / "set.jsonl"))) == TEXTS
    assert read_evaluation(config(jsonl(tmp_path / "set.json"))) == TEXTS
    (tmp_path / "set.csv").write_bytes(b'\xef\xbb\xbfid,question\n1,What is it?\n2,"And,\r\nthis?"\n')
    found = read_evaluation(config(tmp_path / "set.csv", ("question",)))
    assert found == [("set/0", "What is it?"), ("set/1", "And,\r\nthis?")]


def test_messages_and_paths_into_objects(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(
        '{"turns": [{"role": "user", "content": "First?"}, "Second?"], "meta": {"key": " "}}\n'
        '{"turns": [{"content": null, "text": "Fourth?"}, {"data": {"content": "Fifth?"}}]}\n'
        '{"meta": {"key": "Third?"}}\n'
    )
    found = read_evaluation(config(tmp_path / "set.jsonl", ("turns", "meta.key")))
    assert found == [
        *(("set/0", text) for text in ("First?", "Second?")),
        *(("set/1", text) for text in ("Fourth?", "Fifth?")),
        ("set/2", "Third?"),
    ]


def test_another_file_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "set.jsonl")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_evaluation(config(path, sha256=digest)) == TEXTS
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ConfigError, match=rf"set\.jsonl has sha256 [0-9a-f]{{12}}…, not {digest[:12]}…; it changed"):
        read_evaluation(config(path, sha256=digest))


def test_what_cannot_be_read_says_so_without_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "set.jsonl")
    with pytest.raises(ConfigError, match=r"none of 2 rows has a text in prompt; set `columns` to some of choices, q"):
        read_evaluation(config(path, ("prompt",)))
    path.write_text(path.read_text() + "{secret\n")
    with pytest.raises(ConfigError, match="1 of 3 rows cannot be read; repair") as error:
        read_evaluation(config(path))
    assert "secret" not in str(error.value)
    for name, reason in (
        ("none.jsonl", "cannot be opened"),
        ("set.txt", "no known suffix"),
        ("bad.csv", "1 of 1 rows"),
    ):
        if name != "none.jsonl":
            (tmp_path / name).write_bytes(b"question\n\xff\n")
        with pytest.raises(ConfigError, match=rf"decontamination\.evaluations \(set\): .*{reason}"):
            read_evaluation(config(tmp_path / name))


def test_a_file_of_several_splits_is_refused(tmp_path: Path) -> None:
    for names in (("dev", "test"), ("train", "validation"), ("en", "fr")):
        (tmp_path / "set.json").write_text(json.dumps(dict.fromkeys(names, ROWS)))
        with pytest.raises(ConfigError, match=rf"set\.json: holds lists of rows under {', '.join(names)}; "):
            read_evaluation(config(tmp_path / "set.json"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "s3://b/x.jsonl"}, "needs its `sha256`"),
        ({"path": "ftp://b/x.jsonl"}, "no known object store"),
        ({"dataset": "a/b", "path": None}, "needs a `revision`"),
        ({"dataset": "a/b", "revision": "c"}, "exactly one"),
        ({"dataset": "a/b", "revision": "c", "path": None, "sha256": "0" * 64}, "`sha256` is of a file"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_what_decides_the_data_has_to_be_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config("x.jsonl", **values)


def test_a_set_in_an_object_store(bucket: str, tmp_path: Path) -> None:
    from obstore.store import from_url

    data = jsonl(tmp_path / "set.jsonl").read_bytes()
    from_url(f"s3://{BUCKET}", client_options={"allow_http": True}).put("evals/set.jsonl", data)
    url = f"s3://{BUCKET}/evals/set.jsonl"
    assert read_evaluation(config(url, sha256=hashlib.sha256(data).hexdigest())) == TEXTS
    with pytest.raises(ConfigError, match=r"none\.jsonl: cannot be opened"):
        read_evaluation(config(f"s3://{BUCKET}/none.jsonl", sha256="0" * 64))


def test_a_hub_set_is_read_at_its_revision_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def files_of(source: Any) -> list[Any]:
        asked.append((source.dataset, source.revision, source.config, source.split))
        return [File(f"{name}.jsonl", partial(files.open_file, str(tmp_path / f"{name}.jsonl"))) for name in "ab"]

    for name in "ab":
        jsonl(tmp_path / f"{name}.jsonl")
    monkeypatch.setattr(evaluations, "files_of", files_of)
    found = read_evaluation(config("x", path=None, dataset="o/s", revision="c1", config="main", split="dev"))
    assert asked == [("o/s", "c1", "main", "dev")]
    assert found == TEXTS + [(f"set/{int(name[4:]) + 2}", text) for name, text in TEXTS]
