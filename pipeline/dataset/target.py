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
    """The manifest of what `target` holds, if that has this `identity`; None where there is no manifest. Raises
    `ConfigError` where there is another one."""
    data = target.get_or_none(MANIFEST)
    if data is None:
        return None
    with contextlib.suppress(ValueError):
        manifest = parse_certified(data)
        if manifest.get("identity") == identity:
            return manifest
    raise ConfigError(
        f"{target.url}: holds an export of other settings or of another dataset, or a damaged {MANIFEST}; choose "
        "another --output, or delete it"
    )


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
