"""The files for `ray up` are ones that Ray accepts, for the recipe that they name. Nothing is started."""

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.data import ROOT

FILES = ("ray_cluster.yaml", "deploy/ray_cluster_gcp.yaml", "deploy/ray_cluster_onprem.yaml")
CLOUDS = FILES[:2]


def cluster(file: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return loaded


@pytest.mark.parametrize("file", FILES)
def test_file_is_valid_against_rays_schema(file: str) -> None:
    """As `ray up` checks it: on-premises files get their kind of node first."""
    import ray
    from ray.autoscaler._private.util import prepare_config

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(prepare_config(cluster(file)), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**prepare_config(cluster(file)), "max_worker": 1}, schema)


@pytest.mark.parametrize("file", FILES)
def test_ray_up_takes_the_file(file: str) -> None:
    """What `ray up` does with it before it asks a cloud for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster(file))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    broken = copy.deepcopy(cluster(file))
    del broken["provider"]["head_ip" if "onprem" in file else "type"]
    with pytest.raises((Exception, SystemExit)):
        validate_config(prepare_config(broken))


@pytest.mark.parametrize("file", FILES)
def test_ray_starts_with_options_that_it_has_and_the_token(file: str) -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    loaded = cluster(file)
    for commands in (loaded["head_start_ray_commands"], loaded["worker_start_ray_commands"]):
        words = shlex.split(next(command for command in commands if " start " in command))
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= known
        # A head turns to tokens by itself where it finds one; the other nodes have to be told.
        assert words[0] == "RAY_AUTH_MODE=token"
        assert "--metrics-export-port=8080" in words
    assert loaded["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("file", FILES)
def test_set_up_is_that_of_the_lock(file: str) -> None:
    """Every command is one that a shell can read, and every file that one names is in the project."""
    loaded = cluster(file)
    commands = loaded["setup_commands"] + loaded.get("head_setup_commands", [])
    for command in commands + loaded["head_start_ray_commands"] + loaded["worker_start_ray_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    installs = [command for command in commands if "install.sh" in command]
    assert [shlex.split(command)[3:] for command in installs] == [
        ["--no-deps", "-r", "~/stillhouse/requirements/gpu.txt"],
        ["--no-deps", "~/stillhouse"],
    ]
    for path in re.findall(r"~/stillhouse/(\S+)", " ".join(commands)):
        assert (ROOT / path).exists()
    assert loaded["setup_commands"] == cluster(FILES[0])["setup_commands"]
    assert loaded["file_mounts"] == cluster(FILES[0])["file_mounts"]


@pytest.mark.parametrize("file", CLOUDS)
def test_file_runs_the_recipe_it_names(file: str) -> None:
    recipe = yaml.safe_load((ROOT / "configs/gemma2-lmsys.yaml").read_text())
    generate, types = recipe["resources"]["generate"], cluster(file)["available_node_types"]
    assert generate["num_gpus"] == recipe["teacher"]["engine"]["tensor_parallel_size"]
    teacher = types["teacher"]
    assert teacher["resources"]["GPU"] % generate["num_gpus"] == 0
    replicas_per_node = teacher["resources"]["GPU"] // generate["num_gpus"]
    assert teacher["max_workers"] * replicas_per_node == generate["max_workers"]
    assert replicas_per_node * generate["num_cpus"] <= teacher["resources"]["CPU"]
    assert types["head"]["resources"] == {"CPU": 0}
    # Every stage has a kind of node with room for a worker, and none needs one that is always there.
    for stage, resources in recipe["resources"].items():
        if isinstance(resources, dict):
            needed = (resources.get("num_cpus", 1), resources.get("num_gpus", 0))
            assert any(
                kind["resources"]["CPU"] >= needed[0] and kind["resources"].get("GPU", 0) >= needed[1]
                for kind in types.values()
            ), stage
    assert sum(kind["min_workers"] for kind in types.values()) == 0
    assert cluster(file)["max_workers"] == sum(kind["max_workers"] for kind in types.values())


@pytest.mark.parametrize("file", CLOUDS)
def test_what_is_a_users_is_marked(file: str) -> None:
    """Nothing that names an account, an image or a place is left without a mark, on its line or above it."""
    lines = (ROOT / file).read_text().splitlines()
    ours = re.compile(r"region:|availability_zone:|project_id:|ImageId:|IamInstance|email:|spot\}|preemptible")
    found = [number for number, line in enumerate(lines) if ours.search(line) and not line.lstrip().startswith("#")]
    assert len(found) >= 4
    for number in found:
        assert "CHANGE" in "".join(lines[max(0, number - 5) : number + 1]), lines[number]
