"""What travels with a job, against what Ray itself packs."""

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.cluster import package as packages
from stillhouse.pipeline.cluster.package import package
from stillhouse.schemas.config import ConfigError
from tests.support.data import ROOT

STAYS = (
    ".git/HEAD", "data/rows.jsonl", "runs/a/run.json", ".venv/pyvenv.cfg", "env39/pyvenv.cfg", "env39/lib/big.so",
    "conda/conda-meta/history", "elsewhere/mine/run.json", "elsewhere/mine/state/partition.json", "node_modules/x.js",
    "sub/__pycache__/x.pyc", "sub/.mypy_cache/x.json", "ignored/pyvenv.cfg", "sub/inner/secret.key",
)  # fmt: skip
TRAVELS = ("configs/run.yaml", "sub/code.py", "sub/data/few.jsonl", "sub/run.json", ".gitignore", "sub/.rayignore")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*STAYS, *TRAVELS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * 100)
    (tmp_path / ".gitignore").write_text("ignored/\n")
    (tmp_path / "sub/.rayignore").write_text("*.key\n")
    return tmp_path


def packed(folder: Path, excludes: list[str], out: Path) -> set[str]:
    """Files in the archive that Ray makes of a working directory."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    create_package(str(folder), out, include_gitignore=True, excludes=get_runtime_env_default_excludes() + excludes)
    with zipfile.ZipFile(out) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_ray_packs_what_is_said(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = package(folder, folder / "configs/run.yaml")
    out = tmp_path_factory.mktemp("out") / "package.zip"
    assert packed(folder, found.stays, out) == set(TRAVELS)
    assert found.stays == [".mypy_cache", "/conda", "/data", "/elsewhere/mine", "/env39", "/runs", "node_modules"]
    assert found.num_files == len(TRAVELS)
    assert found.num_bytes == sum((folder / name).stat().st_size for name in TRAVELS)
    assert set(STAYS) & packed(folder, [], out.with_name("all.zip")), "without them Ray would take some"


def test_the_checkout_travels_whole_and_small() -> None:
    found = package(ROOT, ROOT / "configs/quickstart.yaml")
    assert 300 < found.num_files < 2000
    assert 1e6 < found.num_bytes < 20e6


def test_too_much_is_refused_with_the_folder_that_is_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "checkpoints/last").mkdir(parents=True)
    with (folder / "checkpoints/last/weights.bin").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(
        ConfigError, match=r"100 MiB in 7 files .*; checkpoints/last/weights.bin has 100 MiB in 1 files"
    ):
        package(folder, folder / "configs/run.yaml")
    (folder / "checkpoints/last/weights.bin").unlink()
    monkeypatch.setattr(packages, "MAX_FILES", 30)
    for number in range(30):
        (folder / f"checkpoints/last/{number}").touch()
    with pytest.raises(
        ConfigError, match=r"31 files .* more than 64 MiB or 30; checkpoints/last has 0 MiB in 30 files"
    ):
        package(folder, folder / "configs/run.yaml")


def test_a_folder_that_leads_back_is_not_followed(folder: Path) -> None:
    (folder / "sub/round").symlink_to(folder)
    assert package(folder, folder / "configs/run.yaml").num_files == len(TRAVELS)


@pytest.mark.parametrize("place", ["data", "ignored", "env39"])
def test_a_configuration_that_would_stay_is_refused(folder: Path, place: str) -> None:
    (folder / place / "run.yaml").touch()
    with pytest.raises(ConfigError, match=r"run\.yaml: does not travel with the job"):
        package(folder, folder / place / "run.yaml")


def test_a_configuration_elsewhere_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: is not in .*sub, the folder that travels"):
        package(folder / "sub", folder / "configs/run.yaml")


def test_a_configuration_may_be_named_in_a_roundabout_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "configs")
    found = package(Path(".."), Path("../sub/../configs/run.yaml"))
    assert found.num_files == len(TRAVELS)
    (folder / "configs/round").symlink_to(folder)
    assert package(Path("../configs"), Path("run.yaml")).num_files == 1


@pytest.mark.parametrize(
    ("name", "needs", "is_ignored", "message"),
    [
        ("sub/code.py", os.R_OK, False, r"sub/code\.py: cannot be read, .* name it in \.rayignore"),
        ("sub/code.py", os.R_OK, True, None),
        ("sub/inner", os.R_OK, False, r"sub/inner: cannot be read, .* name it in \.rayignore"),
        ("sub/inner", os.R_OK, True, None),
        ("sub/inner", os.X_OK, False, r"sub/inner: cannot be entered, .* move it out"),
        ("sub/inner", os.X_OK, True, r"sub/inner: cannot be entered, .* move it out"),
    ],
)
def test_what_cannot_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, needs: int, is_ignored: bool, message: str | None
) -> None:
    """Permissions say nothing to root, as whom tests may run."""
    closed, iterdir = folder / name, Path.iterdir

    def listed(path: Path) -> Any:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == closed and mode & needs))
    monkeypatch.setattr(Path, "iterdir", listed)
    if is_ignored:
        (folder / "sub/.rayignore").write_text(f"*.key\n{closed.name}\n")
    if message is None:
        package(folder, folder / "configs/run.yaml")
        return
    with pytest.raises(ConfigError, match=message):
        package(folder, folder / "configs/run.yaml")
