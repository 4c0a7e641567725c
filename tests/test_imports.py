"""The layers: schemas <- stages <- pipeline, and who may import the heavy libraries."""

import ast
from pathlib import Path

from tests.support.data import ROOT

PARTS = {"chat", "classifiers", "fidelity", "object_store", "sources", "teacher"}
"""What stages share; stages themselves stand alone."""
LAYERS = {"schemas": {"schemas"}, "stages": {"schemas", "stages"}, "pipeline": {"schemas", "stages", "pipeline"}}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_imports_point_one_way() -> None:
    for layer, allowed in LAYERS.items():
        for path in (ROOT / layer).rglob("*.py"):
            for name in imports(path):
                top = name.partition(".")[0]
                assert top not in LAYERS or top in allowed, f"{path} imports {name}"


def test_stages_do_not_import_each_other() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        used = {name.split(".")[2] for name in imports(path) if name.startswith("stillhouse.stages.")}
        assert used <= PARTS, f"{path} imports {used - PARTS}"


def test_heavy_libraries_have_one_door() -> None:
    for path in [p for layer in LAYERS for p in (ROOT / layer).rglob("*.py")]:
        tops = {name.partition(".")[0] for name in imports(path)}
        assert "ray" not in tops or path.name == "runner.py", path
        assert "vllm" not in tops or path.name in ("teacher.py", "draws.py"), path
        if "schemas" in path.parts:
            assert not tops & {"ray", "torch", "vllm", "transformers"}, path
