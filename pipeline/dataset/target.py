"""Where exports and joined datasets go: files put if absent, and a manifest that comes last."""

import contextlib
import hashlib
from typing import Any

from stillhouse.pipeline.dataset.manifest import MANIFEST
from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.folder import Folder
from stillhouse.pipeline.folder.certified import parse_certified
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.schemas.config import ConfigError

CARD = "README.md"
STAGED = ".staged"
"""Where files are written before they get their names; hidden, so that no loader takes them for data."""


def finished(target: Folder, identity: str) -> dict[str, Any] | None:
    """The manifest of what `target` holds, if that has this `identity` and its files are there; else None, with what
    has to be made again deleted. Raises `ConfigError` where there is the manifest of something else."""
    target.sweep()
    data = target.get_or_none(MANIFEST)
    if data is None:
        return None
    with contextlib.suppress(ValueError):
        manifest = parse_certified(data)
        if manifest.get("identity") == identity:
            return manifest if _has_files(target, manifest) else None
    raise ConfigError(
        f"{target.url}: holds an export of other settings or of another dataset, or a damaged {MANIFEST}; choose "
        "another --output, or delete it"
    )


def _has_files(target: Folder, manifest: dict[str, Any]) -> bool:
    """Whether each file of the manifest is there and as long as it says. Where not, these and the manifest go."""
    there = {f"data/{name}": size for name, size in target.list("data").items()}
    wrong = [file["file"] for file in manifest["files"] if there.get(file["file"]) != file["bytes"]]
    for key in [MANIFEST, *wrong] if wrong else []:
        target.delete(key)
    return not wrong


def put_same(target: Folder, key: str, data: bytes) -> None:
    """Puts a file, unless it is there. Raises `ShardError` where another one is."""
    if not target.put_if_absent(key, data) and target.get(key) != data:
        raise ShardError(f"{target.path(key)}: is damaged or another export's; delete it, or choose another --output")


def file_entry(key: str, info: ShardInfo, data: bytes) -> dict[str, Any]:
    """A file as manifests list it."""
    return {
        "rows": info.rows_out,
        "target_tokens": info.num_target_tokens,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "file": key,
    }


def totals(files: list[dict[str, Any]]) -> dict[str, Any]:
    """What a manifest says of all its files."""
    return {what: sum(file[what] for file in files) for what in ("rows", "target_tokens", "bytes")} | {"files": files}
