"""What a path is, wherever it is, and what of it is listed."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.look.place import Place, open_place
from stillhouse.schemas.config import ConfigError
from tests.support.data import STAGES
from tests.support.datasets import make_export

DATA = "dataset/data/train-00001-of-00004.parquet"


def what(place: Place) -> tuple[str, list[str], list[str], bool]:
    return place.kind, [*place.stages], [*place.ledger], place.is_run


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", ("run", [*STAGES], [*STAGES[:-1]], True)),
        ("generate", ("stage", ["generate"], [], True)),
        ("generate/", ("stage", ["generate"], [], True)),
        ("dataset/data", ("stage", ["publish"], [], True)),
        ("ledger/screen", ("stage", [], ["screen"], True)),
        ("dataset", ("dataset", ["publish"], [], True)),
        ("generate/00001.parquet", ("shard", ["generate"], [], True)),
        (DATA, ("shard", ["publish"], [], True)),
        ("ledger/screen/00001.parquet", ("shard", [], ["screen"], True)),
    ],
)
def test_parts_of_a_run(looked_at: Path, path: str, expected: tuple[str, list[str], list[str], bool]) -> None:
    place = open_place(f"{looked_at}/{path}")
    assert what(place) == expected
    assert place.folder.url == str(looked_at)
    for files in [*place.stages.values(), *place.ledger.values()]:
        assert len(files) == (1 if place.kind == "shard" else 4)
        assert [place.sizes[key] for key in files] == [(looked_at / key).stat().st_size for key in files]
    assert place.manifest == _without_digest(looked_at / "dataset/manifest.json")
    assert place.config == json.loads((looked_at / "run.json").read_text())["deciding"]
    assert place.run is not None
    assert what(place.run) == ("run", [*STAGES], [*STAGES[:-1]], True)


def _without_digest(path: Path) -> dict[str, object]:
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        ("dataset", "", ("dataset", ["publish"], [], False)),
        ("dataset", "data/train-00001-of-00004.parquet", ("shard", ["publish"], [], False)),
        ("dataset/data", "", ("stage", ["publish"], [], False)),
        ("generate", "", ("stage", ["generate"], [], False)),
        ("generate", "00001.parquet", ("shard", ["generate"], [], False)),
        ("ledger/screen", "", ("stage", [], ["ledger"], False)),
    ],
)
def test_copies(
    looked_at: Path, tmp_path: Path, source: str, path: str, expected: tuple[str, list[str], list[str], bool]
) -> None:
    shutil.copytree(looked_at / source, tmp_path / "copy")
    place = open_place(str(tmp_path / "copy" / path))
    assert what(place) == expected
    assert place.run is None
    manifest = _without_digest(looked_at / "dataset/manifest.json")
    assert place.manifest == (manifest if source == "dataset" else None)
    assert place.config == (manifest["config"] if source == "dataset" else None)


@pytest.mark.parametrize("layout", ["verl", "openai"])
def test_exports(looked_at: Path, tmp_path: Path, layout: str) -> None:
    run = shutil.copytree(looked_at, tmp_path / "run")
    output, _ = make_export(run, layout)
    place = open_place(str(output))
    assert what(place) == ("export", [layout], [], False)
    assert len(place.stages[layout]) == 4
    assert place.layout == layout
    (file,) = open_place(f"{output}/{place.stages[layout][1]}").stages[layout]
    assert file == place.stages[layout][1]


def test_object_store(looked_at: Path, bucket: str) -> None:
    folder = open_folder(f"{bucket}/place")
    for key in ("run.json", "dataset/manifest.json", DATA, "generate/00000.parquet", "ledger/screen/00000.parquet"):
        folder.put(key, (looked_at / key).read_bytes())
    kinds = {path: what(open_place(f"{bucket}/place{path}")) for path in ("", "/generate", f"/{DATA}", "/dataset/")}
    assert kinds == {
        "": ("run", ["generate", "publish"], ["screen"], True),
        "/generate": ("stage", ["generate"], [], True),
        f"/{DATA}": ("shard", ["publish"], [], True),
        "/dataset/": ("dataset", ["publish"], [], True),
    }
    with pytest.raises(ConfigError, match="holds no run"):
        open_place(f"{bucket}/nothing")


def test_what_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        open_place(str(tmp_path))
    with pytest.raises(ConfigError, match="holds no run"):
        open_place(str(tmp_path / "missing.parquet"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="neither a folder nor a file"):
        open_place(str(tmp_path / "notes.txt"))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    for path in ("", "other.parquet"):
        with pytest.raises(ShardError, match="not written by Stillhouse"):
            open_place(str(tmp_path / path))


def test_damaged_descriptions_are_told_and_the_rest_is_there(looked_at: Path, tmp_path: Path) -> None:
    run = shutil.copytree(looked_at, tmp_path / "run")
    (run / "run.json").write_text("{")
    (run / "dataset/manifest.json").write_text('{"x": 1}')
    place = open_place(str(run))
    assert (place.manifest, place.config) == (None, None)
    assert [*place.stages] == [*STAGES]
    assert [note.partition(": ")[2][:10] for note in place.notes] == ["is damaged", "is damaged"]
