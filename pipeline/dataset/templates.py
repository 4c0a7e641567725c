"""Jinja templates of cards and reports."""

from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.pipeline.dataset.figures import percent

if TYPE_CHECKING:
    import jinja2


def environment(folder: Path, *, autoescape: bool = False) -> "jinja2.Environment":
    """Reads templates from `folder`; a name that a template asks for and nobody gave is an error. `autoescape` is for
    HTML."""
    import jinja2  # once, at the end, and not in every process of an export

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["thousands"] = "{:,}".format
    templates.filters["percent"] = percent
    return templates
