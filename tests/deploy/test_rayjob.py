"""The RayJob and the image that it runs. KubeRay's own schema is not in this repository: `make test-deploy` fetches
it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.data import ROOT

SCHEMA = ROOT / "data/deploy/rayjobs.yaml"
"""KubeRay's custom resource definition, with a pinned digest in the Makefile."""


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())
    return loaded


def groups(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


def strict(schema: Any) -> Any:
    """The schema as the API server applies it to a new object: fields that it does not name are refused."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    keeps = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema and not keeps:
        made["additionalProperties"] = False
    return made


@pytest.mark.skipif(not SCHEMA.exists(), reason="`make test-deploy` fetches KubeRay's schema")
def test_job_is_valid_against_kuberays_schema(job: dict[str, Any]) -> None:
    definition = yaml.load(SCHEMA.read_text(), Loader=yaml.CSafeLoader)
    (version,) = (
        v for v in definition["spec"]["versions"] if f"{definition['spec']['group']}/{v['name']}" == "ray.io/v1"
    )
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    spec = strict(properties["spec"])
    jsonschema.validate(job["spec"], spec)
    for where in ([], ["rayClusterSpec"], ["rayClusterSpec", "workerGroupSpecs", 1, "template", "spec"]):
        broken = json.loads(json.dumps(job["spec"]))
        inner = broken
        for key in where:
            inner = inner[key]
        inner["noSuchField"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, spec)


def test_job_is_of_the_kind_and_version_that_are_locked(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in (ROOT / "requirements/gpu.txt").read_text()


def test_pods_have_one_image_the_token_and_the_secrets(job: dict[str, Any]) -> None:
    assert len({container(group)["image"] for group in groups(job)}) == 1
    auth = job["spec"]["rayClusterSpec"]["authOptions"]
    assert auth["mode"] == "token"
    text = (ROOT / "deploy/rayjob.yaml").read_text()
    made = set(re.findall(r"kubectl create (?:secret generic|configmap) (\S+)", text))
    used = {auth["secretName"]}
    for group in groups(job):
        used |= {source["secretRef"]["name"] for source in container(group)["envFrom"]}
        used |= {
            volume["configMap"]["name"]
            for volume in group["template"]["spec"].get("volumes", [])
            if "configMap" in volume
        }
    assert used == made
    mounted = {
        mount["mountPath"] for mount in container(job["spec"]["rayClusterSpec"]["headGroupSpec"])["volumeMounts"]
    }
    assert job["spec"]["entrypoint"].split()[:4] == ["python", "-m", "stillhouse", "run"]
    assert job["spec"]["entrypoint"].split()[4] == "/config/run.yaml"
    assert "/config" in mounted
    assert "--from-file=run.yaml=configs/gemma2-lmsys.yaml" in text


def test_groups_have_room_for_the_recipe(job: dict[str, Any]) -> None:
    recipe = yaml.safe_load((ROOT / "configs/gemma2-lmsys.yaml").read_text())
    generate = recipe["resources"]["generate"]
    by_name = {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    limits = container(by_name["teacher"])["resources"]["limits"]
    replicas = int(limits["nvidia.com/gpu"]) // generate["num_gpus"]
    assert by_name["teacher"]["maxReplicas"] * replicas == generate["max_workers"]
    assert int(limits["cpu"]) >= replicas * generate["num_cpus"]
    assert {group["minReplicas"] for group in by_name.values()} == {0}
    shm = {volume["name"]: volume for volume in by_name["teacher"]["template"]["spec"]["volumes"]}["shm"]
    assert shm["emptyDir"]["medium"] == "Memory"  # tensor parallelism fails on Kubernetes' 64 MB
    for group in groups(job):
        mounts = {mount["name"] for mount in container(group).get("volumeMounts", [])}
        assert mounts == {volume["name"] for volume in group["template"]["spec"].get("volumes", [])}


def test_ray_starts_with_options_that_it_has(job: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    for group in groups(job):
        for name, value in group["rayStartParams"].items():
            assert f"--{name}" in known
            assert isinstance(value, str)  # KubeRay takes nothing else
        assert group["rayStartParams"]["metrics-export-port"] == "8080"
        assert {"name": "metrics", "containerPort": 8080} in container(group)["ports"]


def test_image_is_made_of_what_is_there() -> None:
    lines = re.sub(r"\\\n", " ", (ROOT / "deploy/Dockerfile").read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert {step for step, _ in steps} == {"FROM", "ARG", "RUN", "ENV", "COPY", "USER", "WORKDIR"}
    for build in re.findall(r"--build-arg BUILD=(\w+)", "\n".join(lines)):
        assert (ROOT / f"requirements/{build}.txt").exists()
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split()
    for source in (rest.split()[0] for step, rest in steps if step == "COPY"):
        assert (ROOT / source).exists()
        assert source not in ignored
    assert {".git", ".venv*", "data", "runs"} <= set(ignored)
    assert any("install.sh" in rest and "${BUILD}.txt" in rest for step, rest in steps if step == "RUN")
