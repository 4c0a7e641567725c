"""The cluster file is one that Ray accepts, for the recipe that it names."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.support.data import ROOT

BIN = Path(sys.executable).parent


def test_cluster_file_is_valid_against_rays_schema() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 1}, schema)


def test_cluster_file_runs_the_recipe_it_names() -> None:
    recipe = yaml.safe_load((ROOT / "configs/gemma2-lmsys.yaml").read_text())
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    per_replica = recipe["resources"]["generate"]["num_gpus"]
    assert per_replica == recipe["teacher"]["engine"]["tensor_parallel_size"]
    teacher = cluster["available_node_types"]["teacher"]
    assert teacher["resources"]["GPU"] % per_replica == 0
    assert (
        teacher["max_workers"] * teacher["resources"]["GPU"] // per_replica
        == recipe["resources"]["generate"]["max_workers"]
    )
