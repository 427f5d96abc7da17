"""Write the HTML report of a stored study, finished or not."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from .output import Output
from .parser import Parser


def configure(parser: Parser) -> None:
    parser.add_argument("store", metavar="STORE", help="the study's file, such as run/study.db")
    parser.add_argument("-o", "--out", metavar="FILE", help="where to write it (default: beside the store, .html)")


def execute(args: Namespace, out: Output) -> int:
    from pliant.study import Study

    summary = Study.load(args.store).summary()
    path = write(summary, args.out, args.store)
    out.data({**summary, "report": str(path)})
    out.line(str(path))
    return 0


def check_place(asked: str | None, store: str) -> None:
    """Refuses a place that cannot be written before a study is run, not after it."""
    from pliant.core.errors import InputError

    folder = (Path(asked) if asked else Path(store)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error}): name another place with -o or --store") from error


def write(summary: dict[str, Any], asked: str | None, store: str) -> Path:
    """Writes the report to the asked place, or beside the store."""
    from pliant import report
    from pliant.core.errors import InputError

    path = Path(asked) if asked else Path(store).with_suffix(".html")
    try:
        return report.write(summary, path)
    except OSError as error:
        raise InputError(f"the report cannot be written to {path} ({error}): name another place with -o") from error
