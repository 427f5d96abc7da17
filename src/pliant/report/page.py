"""Writes the page: the template, its style and script, and plotly, all inside one file."""

from __future__ import annotations

import base64
import gzip
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from . import palette, words
from .view import view

_TEMPLATES = Path(__file__).parent / "templates"


def render(summary: dict[str, Any]) -> str:
    """The report of a study's summary as one HTML document that needs nothing else.

    Raises InputError when `summary` is not the summary of a study.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = view(summary)
    return environment.get_template("report.html").render(
        **shown,
        css=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "report.js").read_text(encoding="utf-8"),
        payload={"figures": shown["figures"], "dark": palette.dark()},
        plotly=_plotly(),
        number=words.number,
    )


def write(summary: dict[str, Any], path: str | Path) -> Path:
    """Writes `render(summary)` to `path`, whole or not at all; makes the folder. Returns the path."""
    path = Path(path)
    text = render(summary)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes private files; a report is made to be passed on
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


@cache
def _plotly() -> str:
    """plotly.js, gzipped and in base64: a third of its size, and every browser since 2023 can unpack it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
