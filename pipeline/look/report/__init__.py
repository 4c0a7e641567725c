"""`report.html`: one file that says what a run came to, for whoever gets the dataset first.

Importing this package is cheap, and so is finding that a report is up to date; what makes one is imported then.
"""

import hashlib
import json
from typing import Any

from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.folder import Folder, keys, open_folder
from stillhouse.schemas.config import ConfigError

VERSION = 3
"""Of the page: a report of another one is written again."""
_MARK = "<!-- stillhouse report "


def write_after_run(url: str, manifest: dict[str, Any]) -> str:
    """Brings the report of a finished run up to date, and returns where it is. `manifest` is the run's."""
    folder = open_folder(url)
    if not _is_current(folder, manifest):
        _write(url, folder, keys.REPORT, with_text=True)
    return folder.path(keys.REPORT)


def write(
    url: str, output: str | None = None, *, with_text: bool = True, tokenizer: str | None = None
) -> dict[str, Any]:
    """Writes the report of a finished run or dataset at `url` to the file `output`, by default into it as report.html
    (or report-no-text.html), whatever is there. `tokenizer`: a folder or hub id, where the teacher's is not found.

    Returns {"report", "bytes", "rows", "with_text"}. Raises `ConfigError` where there is no finished dataset, and
    `ShardError` where it is damaged.
    """
    from stillhouse.pipeline.dataset.target import STAGED

    if output is None:
        above, name = url, keys.REPORT if with_text else "report-no-text.html"
    else:
        above, _, name = output.rpartition("/")
        if not name:
            raise ConfigError(f"--output {output}: names a folder; name a file, such as {output}report.html")
        above = above or ("/" if output.startswith("/") else ".")
    folder = open_folder(above)
    if folder.exists(keys.RUN):  # there purge looks for what a killed writer left
        return _write(url, folder, name, with_text=with_text, tokenizer=tokenizer)
    folder = open_folder(above, STAGED)
    result = _write(url, folder, name, with_text=with_text, tokenizer=tokenizer)
    folder.remove_staged()
    return result


def _write(url: str, folder: Folder, key: str, *, with_text: bool, tokenizer: str | None = None) -> dict[str, Any]:
    from stillhouse.pipeline.look.place import open_place
    from stillhouse.pipeline.look.report import page

    place = open_place(url)
    if place.kind not in ("run", "dataset") or place.manifest is None:
        if place.notes:
            raise ShardError(place.notes[0])
        raise ConfigError(f"{url}: holds no finished dataset; finish the run first, or name a run or dataset folder")
    mark = _mark(place.manifest, with_text=with_text)
    data = page.html(place, with_text=with_text, mark=mark, tokenizer=tokenizer)
    folder.put(key, data)
    return {"report": folder.path(key), "bytes": len(data), "rows": place.manifest["rows"], "with_text": with_text}


def _is_current(folder: Folder, manifest: dict[str, Any]) -> bool:
    mark = _mark(manifest, with_text=True).encode()
    try:
        return folder.tail(keys.REPORT, len(mark)) == mark
    except FileNotFoundError:
        return False


def _mark(manifest: dict[str, Any], *, with_text: bool) -> str:
    """The end of a report: what it was made from."""
    made_from = json.dumps([VERSION, with_text, manifest], sort_keys=True)
    return f"{_MARK}{hashlib.sha256(made_from.encode()).hexdigest()} -->\n"
