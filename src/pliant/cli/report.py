"""Write the HTML report of a stored study, finished or not."""

from __future__ import annotations

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


def write(summary: dict[str, Any], asked: str | None, store: str) -> Path:
    """Writes the report to the asked place, or beside the store."""
    from pliant import report
    from pliant.core.errors import InputError

    path = Path(asked) if asked else Path(store).with_suffix(".html")
    try:
        return report.write(summary, path)
    except OSError as error:
        raise InputError(f"the report cannot be written to {path} ({error}): name another place with -o") from error
